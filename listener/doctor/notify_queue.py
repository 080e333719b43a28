"""Whether clients empty Postgres's queue of notifications."""

from __future__ import annotations

from typing import LiteralString

from listener.doctor.findings import Finding, Group
from listener.doctor.looking import Connection, value

_GROUP = Group("NOTIFY queue")

USAGE: LiteralString = "select pg_catalog.pg_notification_queue_usage()"

_WARNING = 0.1
_FAULT = 0.5
"""Postgres itself warns from this fill level on. When the queue is full, a transaction that notifies cannot commit."""


def examine(conn: Connection) -> Finding:
    """Raises psycopg.Error."""
    return judge(float(value(conn, USAGE)))


def judge(usage: float) -> Finding:
    """``usage``: the fraction of the queue that is full, 0 to 1. Pure."""
    text = f"{100 * usage:.0f}% full"
    if usage < _WARNING:
        return _GROUP.ok(text)
    return (_GROUP.fault if usage >= _FAULT else _GROUP.warning)(
        f"{text}: some session listens and has been in one transaction for long; at 100% every insert fails",
        "select pid, usename, state, xact_start from pg_stat_activity where xact_start is not null order by xact_start "
        "limit 5; end the oldest one that listens (select pg_terminate_backend(pid))",
    )
