"""An order becomes ready, and its customer gets a push, in one transaction."""

from datetime import timedelta

from django.contrib.auth.decorators import login_required, permission_required
from django.db import connection, transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_POST

from listener.client import ClientError, Notification, Push, enqueue
from orders.models import Order


class NoCourier(Exception):
    pass


@login_required
def kitchen(request: HttpRequest) -> HttpResponse:
    return render(request, "kitchen.html", {"orders": Order.objects.filter(status="cooking")})


# A caller causes pushes, so only users with this permission may call it; others get 403. Django's check of the CSRF
# token is on, so no other site can make their browsers call it.
@require_POST
@permission_required("orders.change_order", raise_exception=True)
def ready(request: HttpRequest, order_id: int) -> JsonResponse:
    try:
        with transaction.atomic():
            order = Order.objects.select_for_update().filter(pk=order_id, status="cooking").first()
            if order is None:
                raise Http404
            order.status = "ready"
            order.save()
            # Inside atomic() this is psycopg's connection, in the transaction that Django has begun.
            push_id = enqueue(connection.connection, order_is_ready(order))
            invite_friends(order)
            call_courier(order)  # if this raises, the order is still cooking and there is no push
    except NoCourier:
        return JsonResponse({"error": "no courier is free"}, status=503)
    return JsonResponse({"push": str(push_id)})


def order_is_ready(order: Order) -> Push:
    return Push(
        user_id=order.customer_id,
        notification=Notification(title="Your order is ready", body="A courier is on the way to us"),
        data={"order": str(order.pk)},
        priority="high",
        expires_at=timezone.now() + timedelta(hours=1),
        idempotency_key=f"order-{order.pk}-ready",
    )


def invite_friends(order: Order) -> None:
    """A push that may be refused without harm to the order: an atomic() of its own is a savepoint."""
    try:
        with transaction.atomic():
            enqueue(
                connection.connection,
                Push(topic=f"friends-of-{order.customer_id}", data={"order": str(order.pk)}),
            )
    except ClientError:
        pass  # without the inner atomic() the whole transaction would have failed


def call_courier(order: Order) -> None:
    if not order.courier:
        raise NoCourier
