"""Whether the role of the connection may do everything that ``push-listener run`` does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from listener.doctor.findings import Finding, Group
from listener.doctor.looking import Connection, record, records
from listener.postgres.statements import load

_GROUP = Group("rights of the role")
_LACKING = load(__file__, "rights")
_ROLE = load(__file__, "role")


@dataclass(frozen=True, slots=True)
class Role:
    """The role of the session."""

    name: str
    quoted: str
    has_group: bool
    """Whether the role push_listener exists."""
    is_member: bool
    """Whether this role has the privileges of push_listener without SET ROLE."""
    is_in_group: bool
    """Whether this role is a member of push_listener, even if it has the privileges only after SET ROLE."""
    inherits_by_grant: bool
    """Whether each grant of a role says if the member inherits (from PostgreSQL 16 on), and not the member itself."""
    sees_policies: bool
    """Whether row-level security decides which rows this role sees."""
    may_delete: bool
    """Whether this role may delete finished pushes."""


@dataclass(frozen=True, slots=True)
class Lacking:
    """A privilege that the role does not have."""

    kind: str
    """``schema``, ``table`` or ``function``."""
    name: str
    privilege: str
    columns: list[str]
    """Empty: the whole object."""

    def grant(self, to: str) -> str:
        """The statement that grants the privilege."""
        on = self.name if self.kind == "table" else f"{self.kind} {self.name}"
        columns = f" ({', '.join(self.columns)})" if self.columns else ""
        return f"grant {self.privilege}{columns} on {on} to {to}"

    def __str__(self) -> str:
        columns = f" of {', '.join(self.columns[:4])}" if self.columns else ""
        more = f" and {len(self.columns) - 4} more columns" if len(self.columns) > 4 else ""
        return f"{self.privilege} on {self.kind} {self.name}{columns}{more}"


def examine(conn: Connection, *, purges: bool) -> Iterator[Finding]:
    """Raises psycopg.Error. ``purges``: whether RETENTION is set."""
    return judge(record(conn, Role, _ROLE), records(conn, Lacking, _LACKING), purges=purges)


def _join(role: Role) -> str:
    """The statement that gives the role the privileges of push_listener, and so its row-level security policies."""
    grant = f"grant push_listener to {role.quoted}"
    if not role.is_in_group:
        return grant
    return (
        f"{grant} with inherit true"
        if role.inherits_by_grant
        else f"alter role {role.quoted} inherit; {grant}"
    )


def judge(role: Role, lacking: list[Lacking], *, purges: bool) -> Iterator[Finding]:
    """Pure."""
    if role.has_group and not role.is_member and (lacking or role.sees_policies):
        what = (
            "lacks " + "; ".join(map(str, lacking[:3]))
            if lacking
            else "sees no row: row-level security hides all"
        )
        more = f"; and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        yield _GROUP.fault(f"the role {role.name} {what}{more}", _join(role))
        return
    grantee = "push_listener" if role.is_member else role.quoted
    for each in lacking:
        yield _GROUP.fault(f"the role {role.name} lacks {each}", each.grant(grantee))
    if purges and not role.may_delete:
        yield _GROUP.warning(
            f"RETENTION has no effect: the role {role.name} lacks delete on public.push_notifications",
            "let the owner of the tables purge: push-listener purge --older-than 30d, with the owner in DATABASE_URL",
        )
    if not lacking:
        yield _GROUP.ok(f"the role {role.name} has every right that push-listener run needs")
