"""The pgTAP tests of db/tests."""

from __future__ import annotations

import pytest

from listener.schema import migrate
from tests.support.pgtap import prove
from tests.support.postgres import Database

pytestmark = pytest.mark.oldest_postgres


def test_pgtap(database: Database) -> None:
    files = sorted(migrate.sql_directory("tests").glob("*.test.sql"))
    assert files
    prove(database, files)
