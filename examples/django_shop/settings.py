"""The least that a Django project with users needs. Environment: DATABASE_URL, DJANGO_SECRET_KEY."""

import os

from psycopg.conninfo import conninfo_to_dict

_where = conninfo_to_dict(os.environ["DATABASE_URL"])

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",  # with psycopg 3, and not psycopg2
        "NAME": _where.pop("dbname", ""),
        "USER": _where.pop("user", ""),
        "PASSWORD": _where.pop("password", ""),
        "HOST": _where.pop("host", ""),
        "PORT": _where.pop("port", ""),
        "OPTIONS": _where,  # what is left, such as sslmode and sslrootcert
    }
}
SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "orders"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    }
]
ROOT_URLCONF = "urls"
LOGIN_URL = "/login"
LOGIN_REDIRECT_URL = "/"
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]  # with https also SESSION_COOKIE_SECURE and CSRF_COOKIE_SECURE
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
