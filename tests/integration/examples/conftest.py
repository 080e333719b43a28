"""The Django project of examples/, as its manage.py makes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from listener.schema import migrate
from tests.support.examples import DIRECTORY
from tests.support.postgres import Database, Server


@pytest.fixture(scope="session")
def django_project() -> Iterator[None]:
    """Django with the example's settings. It can be set up once in a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DIRECTORY / "django_shop")
        patch.setenv("DJANGO_SETTINGS_MODULE", "settings")
        patch.setenv("DATABASE_URL", "dbname=none")
        patch.setenv("DJANGO_SECRET_KEY", "of-the-tests")
        import django

        django.setup()
        yield


@pytest.fixture
def django_database(django_project: None, postgres: Server) -> Iterator[Database]:
    """That of the shop, migrated by Django too, with a cook in it."""
    with postgres.prepared("django shop", _migrate_by_django) as made:
        yield made


def _migrate_by_django(database: Database) -> None:
    from django.contrib.auth.models import Permission, User
    from django.core.management import call_command
    from django.db import connections

    migrate.apply(database.dsn)
    _connect(database, {})
    call_command("migrate", verbosity=0)
    cook = User.objects.create_user("cook")
    cook.user_permissions.add(Permission.objects.get(codename="change_order"))
    connections["default"].close()


def _connect(database: Database, options: dict[str, Any]) -> None:
    """From here on Django's connection leads to this database."""
    from django.db import connections
    from psycopg.conninfo import conninfo_to_dict

    where = conninfo_to_dict(database.dsn)
    alias = connections["default"]
    alias.close()
    alias.settings_dict.update(
        NAME=where["dbname"],
        USER=where["user"],
        HOST=where["host"],
        PORT=where["port"],
        OPTIONS=options,
    )
    del connections["default"]  # a new one reads the options anew


@pytest.fixture
def django_shop(django_database: Database, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Django's test client, in which a cook is signed in.

    Parametrized with the OPTIONS of the database.
    """
    from django.contrib.auth.models import User
    from django.db import connections
    from django.test import Client

    _connect(django_database, request.param)
    client = Client()
    client.force_login(User.objects.get(username="cook"))
    yield client
    connections["default"].close()
