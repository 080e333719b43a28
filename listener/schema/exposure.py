"""Who can cause, change or read a push in this database: every role, every way, and how to close each way.

The service is only as safe as its database. A function of the application that runs with its owner's rights, a policy,
or a grant copied from a tutorial may let anybody send a push to anybody. This module only looks; it changes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from listener.postgres.workers import STRANGERS_SCHEMA

_FIND = Path(__file__).with_name("exposure.sql").read_text()

# This is asked before _OURS, because the session may lack the right to call the function, or the schema may not exist.
_MAY_ASK = """
select pg_catalog.has_schema_privilege(n.oid, 'usage')
       and pg_catalog.has_function_privilege(pg_catalog.to_regprocedure('push_listener.api()')::oid, 'execute')
  from pg_catalog.pg_namespace n
  where n.nspname = 'push_listener'
"""
_OURS = "select function from push_listener.api() where as_owner"

_MAY = {"cause": "may cause a push", "change": "may change {}", "read": "may read {}"}
_MOST_NAMES = 6


@dataclass(frozen=True, slots=True)
class Way:
    """One way in which some roles reach pushes."""

    effect: str
    """``cause``, ``change`` or ``read``."""
    about: str
    """What is changed or read: pushes, log rows or registration tokens."""
    roles: list[str]
    everybody: bool
    """Whether these are all roles except superusers, the owner and the service's own roles."""
    privilege: str
    """The privilege on the object: ``select``, ``execute`` ...; ``set role`` for a member of the owner."""
    object: str
    """A table, a view, a function, or the owner."""
    by: str
    """What makes the privilege count: a policy, row-level security that is off, a function's rights ..."""
    expected: bool
    """Whether push-listener intends it, as with its own policies and functions, and the roles of services."""
    condition: str | None
    """The condition of the policy: the rows that it lets through."""
    policy: str | None

    @property
    def grantees(self) -> str:
        """The roles, in words."""
        if self.everybody:
            return "everybody"
        names = ", ".join(self.roles[:_MOST_NAMES])
        more = len(self.roles) - _MOST_NAMES
        return f"{names} and {more} more" if more > 0 else names

    @property
    def names_any_user(self) -> bool:
        """Whether the policy lets through pushes to any user, because it does not check ``user_id``."""
        return self.effect == "cause" and self.policy is not None and "user_id" not in (self.condition or "")

    def __str__(self) -> str:
        may = _MAY[self.effect].format(self.about)
        how = {
            "function": f"by calling {self.object}, which runs with its owner's rights",
            "view": f"through {self.privilege} on the view {self.object}, which works with its owner's rights",
            "materialized view": f"through {self.privilege} on {self.object}, a copy of them",
            "membership": f"as a member of the owner, {self.object}",
            "membership of a service": f"as a member of {self.object}, or with set role {self.object}",
        }.get(self.by, f"through {self.privilege} on {self.object}: {self.by}")
        if self.by.startswith("trigger") and self.privilege == "execute":
            how = f"by calling {self.object}, which fires the {self.by} with its owner's rights"
        if self.privilege == "trigger":
            may = "may run code as every role that writes pushes"
        text = f"{self.grantees} {may} {how}"
        if self.names_any_user:
            text += (
                f", which lets rows for any user through: its condition {self._shown_condition} does not look at "
                "user_id"
            )
        elif self.condition is not None:
            text += f" {self._shown_condition}"
        return text

    @property
    def _shown_condition(self) -> str:
        """The condition in one line, and in parentheses, as Postgres writes most conditions."""
        text = " ".join((self.condition or "true").split())
        return text if text.startswith("(") else f"({text})"

    @property
    def remedy(self) -> str:
        """How to close the way, as SQL where that is possible."""
        roles = "public, " if self.everybody else ""
        roles += ", ".join(_name(role) for role in self.roles)
        if self.by == "function":
            kind = "procedure" if self.privilege == "execute procedure" else "function"
            return (
                f"revoke execute on {kind} {self.object} from {_with_public(self)}; "
                "grant it to the roles that need it, or drop the function"
            )
        if self.by == "membership":
            return f"revoke {self.object} from {roles}, unless they are meant to be administrators"
        if self.by == "membership of a service":
            return f"revoke {self.object} from {roles}, unless they are the application's server"
        if self.by == "materialized view":
            return f"revoke {self.privilege} on {self.object} from {_with_public(self)}"
        if self.by == "view":
            return (
                f"alter view {self.object} set (security_invoker = true), or revoke {self.privilege} on "
                f"{self.object} from {_with_public(self)}"
            )
        if self.by.startswith("trigger"):
            return f"make the function of {self.by} check which user it writes for, or drop the trigger"
        revoke = f"revoke {self.privilege} on {self.object} from {_with_public(self)}"
        if self.names_any_user:
            name = _name(self.policy or "")
            return (
                f"alter policy {name} on {self.object} with check ({self._shown_condition} and "
                f"user_id = (select auth.uid())), or {revoke}"
            )
        if self.by == "row-level security is off":
            return (
                f"{revoke}, or alter table {self.object} enable row level security, with policies for users"
            )
        if self.policy is not None:
            return f"if that is more than it should be: alter the policy, or {revoke}"
        return revoke


def _with_public(way: Way) -> str:
    """The roles to revoke from. PUBLIC may execute every new function; old Supabase projects also grant it by name."""
    if way.everybody:
        return ", ".join(["public", *(role for role in ("anon", "authenticated") if role in way.roles)])
    names = [_name(role) for role in way.roles]
    return ", ".join(["public", *names] if way.by == "function" else names)


def find(conn: psycopg.Connection[tuple[object, ...]]) -> list[Way]:
    """Every way, first those that push-listener does not intend. Empty if the queue does not exist yet.

    Raises psycopg.Error.
    """
    with conn.transaction():
        # With this search_path Postgres shows every name with its schema.
        conn.execute("set local search_path = pg_catalog, pg_temp")
        with conn.cursor(row_factory=class_row(Way)) as cursor:
            return cursor.execute(_FIND.encode(), {"ours": _ours(conn)}).fetchall()


def _ours(conn: psycopg.Connection[tuple[object, ...]]) -> list[str]:
    """Our functions that run with their owner's rights; none if this session may not ask, or the schema is not ours."""
    if conn.execute(STRANGERS_SCHEMA).fetchone() is not None or conn.execute(_MAY_ASK).fetchone() != (True,):
        return []
    return [str(name) for (name,) in conn.execute(_OURS).fetchall()]


def _name(identifier: str) -> str:
    """An SQL identifier, quoted if necessary."""
    return (
        identifier
        if re.fullmatch("[a-z_][a-z0-9_]*", identifier)
        else sql.Identifier(identifier).as_string(None)
    )
