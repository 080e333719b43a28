"""examples/django_shop: ``enqueue`` on Django's own connection, inside ``atomic()``."""

from __future__ import annotations

import re
import runpy
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.support.examples import ANN, DIRECTORY
from tests.support.postgres import Database

each_binding = pytest.mark.parametrize(
    "django_shop",
    [{}, {"server_side_binding": True}],
    ids=["client-side binding", "server-side binding"],
    indirect=True,
)
one_binding = pytest.mark.parametrize("django_shop", [{}], ids=[""], indirect=True)


@pytest.fixture
def database(django_database: Database) -> Database:
    return django_database


def order(**values: Any) -> int:
    from orders.models import Order

    return int(Order.objects.create(customer_id=ANN, **values).pk)


def statuses() -> list[str]:
    from orders.models import Order

    return [each.status for each in Order.objects.all()]


def pushes(database: Database) -> list[dict[str, Any]]:
    with psycopg.connect(database.dsn, row_factory=dict_row) as conn:
        return conn.execute("select * from push_notifications order by created_at, ctid").fetchall()


@each_binding
def test_the_order_and_its_push_are_committed_together(django_shop: Any, database: Database) -> None:
    number = order(courier="Bob")
    answer = django_shop.post(f"/orders/{number}/ready")
    assert answer.status_code == 200
    first, second = pushes(database)
    assert first["id"] == UUID(answer.json()["push"])
    assert (first["user_id"], first["title"], first["priority"]) == (ANN, "Your order is ready", "high")
    assert first["data"] == {"order": str(number)}
    assert first["expires_at"] > first["created_at"]
    assert second["topic"] == f"friends-of-{ANN}"
    assert statuses() == ["ready"]
    assert django_shop.post(f"/orders/{number}/ready").status_code == 404
    assert len(pushes(database)) == 2


@each_binding
def test_a_view_that_fails_leaves_no_push(django_shop: Any, database: Database) -> None:
    assert django_shop.post(f"/orders/{order()}/ready").status_code == 503
    assert pushes(database) == []
    assert statuses() == ["cooking"]


@each_binding
def test_a_refused_push_costs_its_savepoint_alone(
    django_shop: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The view's inner atomic() is rolled back; what was enqueued before and the order stay."""
    from orders import views

    def too_much(**values: Any) -> Any:
        return real(**{**values, "data": {"text": "x" * 40_000}}) if "topic" in values else real(**values)

    real = views.Push
    monkeypatch.setattr(views, "Push", too_much)
    assert django_shop.post(f"/orders/{order(courier='Bob')}/ready").status_code == 200
    assert [row["user_id"] for row in pushes(database)] == [ANN]
    assert statuses() == ["ready"]


@each_binding
def test_every_kind_of_value_crosses_djangos_connection(django_shop: Any, database: Database) -> None:
    """Django has loaders, and a cursor class, of its own: nothing of them may change what is stored."""
    from django.db import connection, transaction

    from listener.client import APNSConfig, APNSPayload, Aps, Notification, Push, enqueue, progress, wait_for

    send_at = datetime.now(UTC) + timedelta(days=1)
    nasty = "it's 100%, %s {} \\ \" é 🎉"
    push = Push(
        user_id=ANN,
        token="a-phone",
        notification=Notification(nasty, image="https://example.com/i.png"),
        data={"text": nasty, "list": [1, None, {"a": True}]},
        apns=APNSConfig(payload=APNSPayload(Aps(badge=3))),
        collapse_key="c",
        idempotency_key="k",
        send_at=send_at,
        expires_at=send_at + timedelta(days=1),
    )
    with transaction.atomic():
        push_id = enqueue(connection.connection, push)
        assert enqueue(connection.connection, push) == push_id
        enqueue(connection.connection, device_token="other", title=nasty, data={"n": 1}, send_at=send_at)
        found = progress(connection.connection, push_id)
        assert (found.status, found.next_attempt_at) == ("pending", send_at)
    assert connection.get_autocommit()
    binds_here = isinstance(connection.connection.cursor(), psycopg.ClientCursor)
    assert binds_here is not connection.settings_dict["OPTIONS"].get("server_side_binding", False)
    assert wait_for(connection.connection, push_id, 0).push_id == push_id
    first, second = pushes(database)
    assert (first["title"], first["data"]["text"], second["title"]) == (nasty, nasty, nasty)
    assert first["options"] == {"apns": {"payload": {"aps": {"badge": 3}}}}
    assert first["next_attempt_at"] == second["next_attempt_at"] == send_at


@one_binding
def test_who_may_not_change_orders_causes_no_push(django_shop: Any, database: Database) -> None:
    from django.contrib.auth.models import User
    from django.test import Client

    path = f"/orders/{order(courier='Bob')}/ready"
    stranger = Client(SERVER_NAME="localhost")
    assert stranger.post(path).status_code == 403
    assert (stranger.get("/").status_code, stranger.get("/").url) == (302, "/login?next=/")
    stranger.force_login(User.objects.create_user("waiter"))
    assert stranger.post(path).status_code == 403
    assert pushes(database) == []
    assert statuses() == ["cooking"]


@one_binding
def test_a_cook_signs_in_and_no_other_site_can_post(django_shop: Any, database: Database) -> None:
    """As a browser does it, with Django's check of the CSRF token, which its test client leaves out otherwise."""
    from django.contrib.auth.models import User
    from django.test import Client

    cook = User.objects.get(username="cook")
    cook.set_password("of the tests")
    cook.save()
    number = order(courier="Bob")
    browser = Client(enforce_csrf_checks=True, SERVER_NAME="localhost")
    fields = {"username": "cook", "password": "of the tests"}
    entered = browser.post("/login", {**fields, "csrfmiddlewaretoken": csrf_token(browser.get("/login"))})
    assert (entered.status_code, entered.url) == (302, "/")
    page = browser.get("/")
    assert f"/orders/{number}/ready" in page.content.decode()

    assert browser.post(f"/orders/{number}/ready").status_code == 403
    assert pushes(database) == []
    answer = browser.post(f"/orders/{number}/ready", {"csrfmiddlewaretoken": csrf_token(page)})
    assert answer.status_code == 200
    assert pushes(database)[0]["id"] == UUID(answer.json()["push"])


def csrf_token(page: Any) -> str:
    (token,) = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page.content.decode())
    return str(token)


def test_the_settings_keep_what_the_address_says_of_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "postgresql://u:p@db.example:6543/shop?sslmode=verify-full&sslrootcert=/ca.pem"
    monkeypatch.setenv("DATABASE_URL", address)
    monkeypatch.setenv("DJANGO_SECRET_KEY", "k")
    found = runpy.run_path(str(DIRECTORY / "django_shop/settings.py"))["DATABASES"]["default"]
    assert found == {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "shop",
        "USER": "u",
        "PASSWORD": "p",
        "HOST": "db.example",
        "PORT": "6543",
        "OPTIONS": {"sslmode": "verify-full", "sslrootcert": "/ca.pem"},
    }
