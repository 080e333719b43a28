from django.contrib.auth.views import LoginView
from django.urls import path
from orders import views

urlpatterns = [
    path("", views.kitchen),
    path("login", LoginView.as_view()),
    path("orders/<int:order_id>/ready", views.ready, name="ready"),
]
