"""Applies db/migrations and db/functions to a database, rolls them back, and says beforehand what it would do.

A migration is a numbered SQL file with a second file that rolls it back. It is applied once. A function is a file with
``create or replace``, which is applied again whenever it has changed. The schema ``push_listener`` records both: see
``disk`` and ``ledger``.
"""

from __future__ import annotations

from listener.schema.migrate.applying import (
    apply,
    damages,
    drift,
    exposures,
    foresee,
    function_status,
    status,
)
from listener.schema.migrate.disk import (
    Function,
    Migration,
    MigrationError,
    WrongDatabase,
    functions_of,
    load,
    sql_directory,
    statements,
)
from listener.schema.migrate.ledger import LEDGER, FunctionState, Standing, State
from listener.schema.migrate.privileges import DRIFT
from listener.schema.migrate.rolling_back import refuse_while_in_use, rollback
from listener.schema.migrate.session import APPLICATION_NAME, LOCK_KEY, Patience

__all__ = [
    "APPLICATION_NAME",
    "DRIFT",
    "LEDGER",
    "LOCK_KEY",
    "Function",
    "FunctionState",
    "Migration",
    "MigrationError",
    "Patience",
    "Standing",
    "State",
    "WrongDatabase",
    "apply",
    "damages",
    "drift",
    "exposures",
    "foresee",
    "function_status",
    "functions_of",
    "load",
    "refuse_while_in_use",
    "rollback",
    "sql_directory",
    "statements",
    "status",
]
