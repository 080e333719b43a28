"""SQL that runs with the rights of the listener, of the owner or of a definer never runs what others have created.

In a session's pg_temp, or in public, an attacker has functions, operators, types and relations with the names of
Postgres' own. They tell who runs about.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from listener import client
from listener.client import direct
from listener.emulator import Emulator
from listener.postgres import overview, queue, settlements, stats, workers
from listener.postgres.frontier import WHOLE
from listener.postgres.locks import LIVENESS_CLASS, PURGE_LOCK, ROLLBACK_LOCK
from listener.postgres.queue import Queue
from listener.postgres.settlements import Fate
from listener.postgres.unwritable import Pause
from listener.push import Decision, LogLine, Settlement, Status
from listener.schema import export, migrate, retention
from listener.schema.migrate import Migration
from tests.support import attacks
from tests.support.access import (
    APPLICATION,
    CALLS,
    OTHER,
    OTHERS_PUSH,
    OWNER,
    PUSH,
    WORKER,
    Regime,
    make_worker,
    project,
)
from tests.support.adopted import SHAPES
from tests.support.attacks import INTERNAL_CALLS, Session
from tests.support.postgres import Database, Server, Template
from tests.support.service import PATIENCE, rows_of, serving, settings_for, workers_of

OURS = "('public'::regnamespace, 'push_listener'::regnamespace)"


# --- the catalogue -----------------------------------------------------------------------------------------------


def test_every_function_looks_names_up_in_pg_catalog_first(postgres: Server) -> None:
    with project(postgres, Regime.NEW, APPLICATION) as database:
        assert _loose(database) == []
        with psycopg.connect(database.dsn, autocommit=True) as owner:
            owner.execute("alter function public.cancel_push(uuid) set search_path = ''")
            owner.execute("alter function push_listener.columns(text) reset search_path")
            owner.execute(
                "alter function push_listener.guarded() set search_path = pg_catalog, public, pg_temp"
            )
        assert len(_loose(database)) == 3


def _loose(database: Database) -> list[str]:
    with psycopg.connect(database.dsn) as owner:
        rows = owner.execute(
            "select oid::regprocedure::text from pg_proc "  # a constant
            f"where pronamespace in {OURS} and proname <> 'touch' "
            "and array(select s from unnest(proconfig) s where s like 'search_path=%') "
            "<> array['search_path=pg_catalog, pg_temp']"
        ).fetchall()
    return [name for (name,) in rows]


# --- pg_temp: a session's own ------------------------------------------------------------------------------------

LOGINS = {
    "listener": "push_listener",
    "operator": "push_listener_operator",
    "user": "authenticated",
    "service": "service_role",
    "owner": None,
}
"""Who attacks: a login with the rights of a role; and the owner, into whose session somebody has got things."""

ALLOWED = {
    "listener": {"push_disable_token", "push_listener.ended_by_code"},
    "operator": {
        "push_listener.operator_requeue", "push_listener.operator_cancel", "push_listener.operator_reveal",
        "push_listener.operator_send", "push_listener.ended_by_code",
    },
    "user": {
        "record_delivery_receipt", "record_delivery_receipts", "register_device", "unregister_device",
        "flush_telemetry", "get_push",
    },
    "service": {
        "enqueue_push", "enqueue_pushes", "cancel_push", "requeue_pushes", "get_push", "record_delivery_receipts",
        "fetch_pending_pushes", "mark_push_sent", "mark_push_failed",
        "record_delivery_receipt", "register_device", "unregister_device", "flush_telemetry", "get_push_delivery_stats",
    },
}  # fmt: skip
"""What must have been called indeed, and not refused."""

ALL_CALLS = {**CALLS, **INTERNAL_CALLS}

# (trigger, who sets it off, how)
TRIGGERS = [
    ("push_listener_begin_as_new", "user",
     f"insert into public.push_notifications (driver_id, title, body) values ('{OWNER}', 't', 'b')"),
    ("push_listener_ring_insert", "owner",
     "insert into public.push_notifications (title, body) values ('t', 'b')"),
    ("push_listener_ring_update", "listener",
     f"update public.push_notifications set status = 'pending', next_attempt_at = now() where id = '{PUSH}'"),
    ("push_listener_set_due", "listener",
     f"update public.push_notifications set status = 'pending' where id = '{PUSH}'"),
    ("push_listener_never_early", "owner",
     "insert into public.push_notifications (title, body, next_attempt_at) values ('t', 'b', '-infinity')"),
    ("push_listener_never_early_again", "listener",
     f"update public.push_notifications set status = 'pending', next_attempt_at = '-infinity' where id = '{PUSH}'"),
    ("push_listener_fill_nulls", "owner",
     "insert into public.push_notifications (title, body, status, next_attempt_at) values ('t', 'b', null, null)"),
    ("push_listener_count_changed", "listener",
     f"update public.push_notifications set status = 'cancelled' where id = '{PUSH}'"),
    ("push_listener_inserted", "owner",
     "insert into public.push_notifications (title, body, status) values ('t', 'b', 'sent')"),
    ("push_listener_count_receipts", "listener",
     f"insert into public.push_delivery_logs (push_id, status) values ('{PUSH}', 'opened')"),
]  # fmt: skip

_FILL = f"""
insert into public.push_notifications (id, user_id, driver_id, device_token, title, body, status, next_attempt_at)
  values ('{PUSH}', '{OWNER}', '{OWNER}', 'token of {OWNER}', 't', 'b', 'sent', null),
         ('{OTHERS_PUSH}', '{OTHER}', '{OTHER}', 'token of {OTHER}', 't', 'b', 'processing', now() + interval '1 day');
insert into public.push_delivery_logs (push_id, device_token, status) values ('{PUSH}', 'token of {OWNER}', 'sent');
insert into public.push_devices (token, user_id, platform) values ('token of {OWNER}', '{OWNER}', 'web');
"""  # constants


@pytest.fixture(scope="module")
def sessions(postgres: Server) -> Iterator[dict[str, Session]]:
    """Of each attacker a session with a full pg_temp, on one adopted database."""
    with project(postgres, Regime.NEW, APPLICATION) as database, ExitStack() as stack:
        with psycopg.connect(database.dsn, autocommit=True) as owner:
            owner.execute(_FILL.encode())
        opened = {}
        with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
            for name, role in LOGINS.items():
                if role:
                    attacks.make_login(superuser, f"test_attacker_{name}", role)
        for name, role in LOGINS.items():
            dsn = database.dsn_as(f"test_attacker_{name}") if role else database.dsn
            connection = stack.enter_context(psycopg.connect(dsn, autocommit=True))
            opened[name] = Session(connection)
            # What the test itself says means what it says; a definer has a path of its own.
            connection.execute("set search_path = pg_catalog, pg_temp, public")
            connection.execute(
                "select set_config('request.jwt.claims', %s, false)", (f'{{"sub": "{OWNER}"}}',)
            )
        yield opened


def attack(session: Session, statement: str, *before: str) -> bool:
    """Whether it was allowed. Nothing of it stays."""
    session.ran_as()
    try:
        with session.connection.transaction(force_rollback=True):
            for step in before:
                session.connection.execute(step.encode())
            session.connection.execute(statement.encode())
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


@pytest.mark.parametrize("login", LOGINS)
def test_no_function_runs_what_is_in_pg_temp(sessions: dict[str, Session], login: str) -> None:
    faults = []
    for function, call in ALL_CALLS.items():
        is_allowed = attack(sessions[login], call)
        if ran := sessions[login].ran_as():
            faults.append(f"{function} ran it as {', '.join(ran)}")
        if not is_allowed and (login == "owner" or function in ALLOWED[login]):
            faults.append(f"{function} was refused, so nothing is known of it")
    assert not faults, "\n".join(faults)


def test_no_trigger_runs_what_is_in_pg_temp(sessions: dict[str, Session]) -> None:
    faults = []
    for trigger, login, statement in TRIGGERS:
        if not attack(sessions[login], statement):
            faults.append(f"{trigger}: {login} was refused")
        if ran := sessions[login].ran_as():
            faults.append(f"{trigger} ran it as {', '.join(ran)}")
    assert not faults, "\n".join(faults)


def test_every_function_and_trigger_is_attacked(sessions: dict[str, Session]) -> None:
    """A new one needs a call in tests/support (CALLS, INTERNAL_CALLS), or a statement above."""
    owner = sessions["owner"].connection
    functions = owner.execute(
        "select case p.pronamespace when 'public'::regnamespace then '' else 'push_listener.' end || p.proname, "
        "p.prorettype = 'trigger'::regtype from pg_proc p "
        f"where p.pronamespace in {OURS} and p.proname <> 'touch'"
    ).fetchall()
    triggers = owner.execute(
        "select tgname::text from pg_trigger where not tgisinternal and tgname like 'push\\_listener\\_%'"
    ).fetchall()
    assert {name for name, is_trigger in functions if not is_trigger} == ALL_CALLS.keys()
    assert {name for (name,) in triggers} == {name for name, *_ in TRIGGERS}


MUTANTS = [
    (
        "listener",
        "push_listener.count_changed()",
        next(statement for name, _, statement in TRIGGERS if name == "push_listener_count_changed"),
    ),
    ("user", "public.register_device(text, text, uuid)", CALLS["register_device"]),
    ("user", "public.unregister_device(text)", CALLS["unregister_device"]),
    ("user", "public.flush_telemetry(jsonb[], uuid)", CALLS["flush_telemetry"]),
]
"""Reported as they were once: with a search_path that is empty."""


@pytest.mark.parametrize(("login", "function", "statement"), MUTANTS, ids=[name for _, name, _ in MUTANTS])
def test_with_an_empty_path_a_type_of_the_callers_runs_as_the_owner(
    sessions: dict[str, Session], login: str, function: str, statement: str
) -> None:
    owner = sessions["owner"].connection
    owner.execute(f"alter function {function} set search_path = ''".encode())
    try:
        attack(sessions[login], statement)
        assert "postgres" in sessions[login].ran_as()
    finally:
        owner.execute(f"alter function {function} set search_path = pg_catalog, pg_temp".encode())


def test_a_catalog_without_its_schema_is_the_callers(sessions: dict[str, Session]) -> None:
    """As above, for relations."""
    attack(
        sessions["owner"],
        "select public.evil_count()",
        "create function public.evil_count() returns bigint language sql set search_path = '' "
        "as 'select pg_catalog.count(*) from pg_roles'",
    )
    assert sessions["owner"].ran_as() == {"postgres"}


# --- public: in everybody's path ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(postgres: Server) -> Iterator[Database]:
    """Nothing is there yet but what the attacker has created in public. To be copied."""
    with postgres.database(Template.SUPABASE) as database:
        attacks.fill_public(database)
        yield database


ADOPTED = {
    "other types": attacks.other_types(0),
    "other types, wider": attacks.other_types(1),
    "own words": (SHAPES / "own_words.sql").read_text(),
    "narrow": (SHAPES / "narrow.sql").read_text() + "grant select, delete on public.phones to public;",
    "fresh": "",
}


@pytest.fixture(params=ADOPTED)
def adopted(request: pytest.FixtureRequest, postgres: Server, hostile: Database) -> Iterator[Database]:
    """A copy, with a queue of an application's. What its own statements mean is not the question here."""
    with attacks.copy_of(postgres, hostile) as database:
        prepare(database, ADOPTED[request.param])
        yield database


def prepare(database: Database, application: str) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        owner.execute("set search_path = pg_catalog, pg_temp")
        owner.execute(application.encode())


@pytest.mark.parametrize("adopted", ["other types", "narrow", "fresh"], indirect=True)
async def test_neither_the_service_nor_a_migration_runs_what_is_in_public(
    adopted: Database, request: pytest.FixtureRequest
) -> None:
    """All that the service and its commands do, in one life, and every step there and back."""
    migrate.foresee(adopted.dsn)
    migrate.apply(adopted.dsn)
    if request.node.callspec.params["adopted"] in ("other types", "fresh"):
        make_worker(adopted)
        await live(adopted, adopted.dsn_as(WORKER))
        await clean_up(adopted.dsn)
    else:  # what the service says means the same there: test_every_statement_means_pg_catalogs_own
        with psycopg.connect(adopted.dsn, autocommit=True) as owner:
            client.enqueue(owner, user_id=uuid4(), title="t", body="b", data={"a": "b"})
    migrate.status(adopted.dsn)
    adopted.wait_left()
    migrate.rollback(adopted.dsn, 0, discard_data=True)
    assert attacks.victims(adopted) == ""


# They are the statements of the migrations; only the search_path is another. The way back is that of migrate.
@pytest.mark.parametrize("adopted", ["own words"], indirect=True)
def test_nor_do_the_files_for_the_supabase_cli(adopted: Database, tmp_path: Path) -> None:
    export.emit(tmp_path)
    with psycopg.connect(adopted.dsn, autocommit=True) as owner:
        before = owner.execute("show search_path").fetchone()
        for path in sorted((tmp_path / "migrations").iterdir()):
            with owner.transaction():
                owner.execute(path.read_bytes())
                assert owner.execute("show search_path").fetchone() == before
    migrate.rollback(adopted.dsn, 0, discard_data=True)
    assert attacks.victims(adopted) == ""


async def live(database: Database, dsn: str) -> None:
    """Pushes of every fate, sent by the service; and each statement of a worker, called by itself."""
    user = uuid4()
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        owner.execute("select public.register_device(%s, 'web', %s)", (f"phone-of-{user.hex}", user))
        given: list[dict[str, Any]] = [
            {},
            {"device_token": "phone", "priority": "normal", "idempotency_key": user.hex},
            {"device_token": "dead-phone"},
            {"device_token": "slow", "channel": "general"},
        ]
        ids = [
            client.enqueue(owner, user_id=user, title="t", body="b", data={"a": "b"}, **each)
            for each in given
        ]
        client.enqueue(
            owner, user_id=user, device_token="phone", title="t", body="b", data={}, idempotency_key=user.hex
        )
    async with (
        Emulator(faults=["unavailable,token=slow,times=1"]) as emulator,
        serving(settings_for(dsn, emulator)),
    ):
        for push_id in ids:
            await asyncio.to_thread(wait_for, database.dsn, push_id)
        async with rows_of(database.dsn) as rows:
            # Those too that the application had.
            await rows.until(lambda found: not [row for row in found.values() if waits(row)])
    async with AsyncConnectionPool(
        dsn, min_size=1, max_size=2, open=False, kwargs={"autocommit": True}
    ) as pool:
        hands = Queue(pool, worker_id=await workers.register(pool, "test"), lease=60.0)
        await workers.schema_version(pool)
        with psycopg.connect(database.dsn, autocommit=True) as owner:
            for _ in range(4):
                client.enqueue(owner, user_id=user, device_token="phone", title="t", body="b", data={})
            client.enqueue(owner, user_id=user, title="t", body="b", data={})
        first, *others = await hands.claim(3, 3, [uuid4()])
        assert len(others) == 2
        log = [LogLine("phone", "sent", {"attempt": 1}), LogLine(None, "failed", {"attempt": 1})]
        done = [
            Settlement(
                first.id,
                first.attempt,
                Decision(Status.SENT, message_id="m"),
                log,
                [("phone", "UNREGISTERED")],
            )
        ]
        assert await hands.settlements.settle(done) == [Fate.WRITTEN]
        assert await hands.settlements.settle(done, is_retry=True) == [Fate.WRITTEN]
        failed = Decision(Status.FAILED, 0.0, True, "UNAVAILABLE", "away")
        assert await hands.settlements.settle([Settlement(others[0].id, others[0].attempt, failed)]) == [
            Fate.WRITTEN
        ]
        assert await hands.settlements.locked([first.id]) == set()
        await hands.settlements.log([(first.id, line) for line in log])
        assert await hands._claim_in_parts(0, 0, [uuid4()], WHOLE) == ([], 0)
        await hands.unwritable.note({others[1].id: "P0001"}, Pause.LONG)
        await hands.unwritable.retry()
        await hands.unwritable.forget([others[1].id])
        await hands.unwritable.tidy()
        assert await hands.release([]) == 1
        assert await hands.earliest([uuid4()]) is not None
        assert await hands.expire(10, [uuid4()]) == 0
        # Another worker has claimed, and dies.
        peer = Queue(pool, worker_id=await workers.register(pool, "peer"), lease=30.0)
        assert len(await peer.claim(10)) == 4
        with psycopg.connect(database.dsn, autocommit=True) as owner:
            owner.execute("update push_listener.workers set guarded = true where id = %s", (peer.worker_id,))
        about = workers_of(hands)
        assert (await about.peers())[peer.worker_id] is False
        assert await about.peers_hold_rows()
        assert (await about.rescue([peer.worker_id]))[:2] == ([peer.worker_id], 4)
        assert await about.lost_lately() >= 1
        await about.is_polling_locked()
        await about.open_writers()
        await overview.read(pool)
        await about.reduce_quota(0.5, 60.0)
        await about.quota_state()
        left = await hands.claim(100)  # the push to a user, for the second time, reads its log
        assert await hands.settlements.settle(
            [Settlement(push.id, push.attempt, Decision(Status.DEAD, None, False, "X", "x")) for push in left]
        ) == [Fate.WRITTEN] * len(left)
        await about.sign_off()
    stats.read(database.dsn, 7)


def waits(row: Mapping[str, object]) -> bool:
    return row["next_attempt_at"] is not None and row["status"] in ("pending", "processing", "failed")


def wait_for(dsn: str, push_id: UUID) -> None:
    with psycopg.connect(dsn, autocommit=True) as owner:
        assert client.wait_for(owner, push_id, PATIENCE).status in ("sent", "dead")


async def clean_up(dsn: str) -> None:
    async with await retention.connect(dsn) as connection:
        before = await retention.moment(connection, timedelta(seconds=-60))
        assert (await retention.count(connection, before, dead=True, telemetry=True)).pushes > 0
        await retention.count_pushes(connection, before, dead=True)
        for steps in (
            retention.pushes(connection, before, dead=True, batch=2),
            retention.orphans(connection, before, batch=2, slices=[0, 5]),
            retention.telemetry(connection, before),
        ):
            async for _ in steps:
                pass


@pytest.fixture(scope="module")
def other_types(postgres: Server, hostile: Database) -> Iterator[Database]:
    """Adopted. To be copied."""
    with attacks.copy_of(postgres, hostile) as database:
        prepare(database, ADOPTED["other types"])
        migrate.apply(database.dsn)
        yield database


# What the attack does to a statement that is not immune.
NAIVE = {
    "a function": (queue, "CLAIM", "pg_catalog.octet_length(p.title::text)", "octet_length(p.title)"),
    "an operator, in a list": (queue, "CLAIM", "status::text in (", "status in ("),
    "an operator of a row's": (settlements, "_SETTLE", "p.status::text = r.held", "p.status = 'processing'"),
}


@pytest.mark.parametrize("change", NAIVE)
async def test_a_naive_statement_is_caught(
    postgres: Server, other_types: Database, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    module, name, immune, naive = NAIVE[change]
    statement = getattr(module, name)
    assert immune in statement
    monkeypatch.setattr(module, name, statement.replace(immune, naive))
    with attacks.copy_of(postgres, other_types) as database:
        with psycopg.connect(database.dsn, autocommit=True) as owner:
            client.enqueue(owner, device_token="phone", title="t", body="b")
        async with AsyncConnectionPool(database.dsn, open=False, kwargs={"autocommit": True}) as pool:
            hands = Queue(pool, worker_id=await workers.register(pool, "test"), lease=60.0)
            for push in await hands.claim(1):
                sent = Decision(Status.SENT, message_id="m")
                await hands.settlements.settle([Settlement(push.id, push.attempt, sent)])
        assert attacks.victims(database) != ""


@pytest.mark.parametrize("step", ["0003_queue", "0011_backlog"])
def test_a_step_with_the_sessions_own_path_is_caught(postgres: Server, hostile: Database, step: str) -> None:
    def naive(migration: Migration) -> Migration:
        up, down = (
            re.sub(r"(?m)^begin$", "begin\n  set local search_path to default;", text)
            for text in (migration.up, migration.down)
        )
        changed = f"{migration.version:04d}_{migration.name}" == step
        return Migration(migration.version, migration.name, up, down) if changed else migration

    with attacks.copy_of(postgres, hostile) as database:
        prepare(database, ADOPTED["own words"])
        steps = [naive(migration) for migration in migrate.load()]
        with suppress(migrate.MigrationError):  # the attacker's code returns nothing of use
            migrate.apply(database.dsn, steps[: int(step[:4])])
            migrate.rollback(database.dsn, 0, steps, discard_data=True)
        assert attacks.victims(database) != ""


# --- every statement, as Postgres takes it ----------------------------------------------------------------------

VALUES: dict[str, object] = {
    "normal_limit": 10, "lease": 60.0, "worker": 1, "excluded": [OWNER], "held": [OWNER], "ids": [OWNER],
    "attempts": [1], "statuses": ["sent"], "delays": [1.0], "tries": [True], "codes": ["c"], "reasons": ["r"],
    "message_ids": ["m"], "log_ids": [OWNER], "log_tokens": ["t"], "log_statuses": ["sent"], "log_details": ["{}"],
    "is_retry": True, "only_end_leases": False, "are_lost": True, "rows": 10, "seconds": 0.1, "statement": "claim",
    "is_strict": True, "with_probe": True, "role": "0",
    "pause": 1.0, "longest": 2.0, "tokens": ["t"], "class": LIVENESS_CLASS, "suspects": [1], "fraction": 0.5,
    "recovery": 60, "before": 1.8e9, "start": -math.inf, "beyond": False,
    "from_high": -math.inf, "from_normal": 0.0, "ahead": 1.0,
    "from": -math.inf, "to_high": 0.0, "to_normal": 0.0, "most": 1000, "early": [OWNER],
    "limit": 10, "after": OWNER, "until": OWNER, "block": 0, "end": 500, "days": 7,
    "age": 86400.0, "key": PURGE_LOCK,
    "incarnation": OWNER, "pids": [1], "started": ["1.5"], "high": 1, "low": 2,
    "name": "n", "rollback": ROLLBACK_LOCK, "id": 5, "push_id": OWNER,
    "known_too": False, "system": "1", "database": 5, "address": "localhost", "batch": 10, "code": "C", "reason": "r",
    "unchanged_since": datetime(2026, 1, 31, tzinfo=UTC), "who": "anna", "why": "r", "filter": Jsonb({}), "run": OWNER,
    "token": "t", "user": OWNER, "title": "t", "body": "b",
}  # fmt: skip
"""What statements are given by name, as psycopg gets it."""

_READING: dict[str, object] = {
    "statuses": ["dead"], "user": OWNER, "code": "C", "since": "-infinity", "until": datetime(2026, 1, 31, tzinfo=UTC),
    "kind": "token", "is_in_time": True, "is_given_up": True, "lane": 0, "span": "any", "near": 10, "window": 100,
    "at": math.inf, "at_least": -math.inf, "beyond": "(0,0)", "within": "(0,0)", "behind": OWNER, "limit": 10,
    "most": 10, "latest": 10, "codes": 10, "workers": 10, "ended": 10, "before": 10, "rows": 10, "id": OWNER,
    "ids": [OWNER], "without": [OWNER], "run": OWNER, "is_whole": True, "what": "requeue",
}  # fmt: skip
_OTHERS: dict[str, dict[str, object]] = {"reading": _READING, "direct": {"age": timedelta(days=1)}}
"""Where a name stands for something else in a module."""

IN_ORDER: dict[str, tuple[object, ...]] = {
    "select extract(epoch from pg_catalog.clock_timestamp())": (5.0,),
    "select pg_catalog.jsonb_build_object(": (OWNER,),
    "select id from public.push_notifications where idempotency_key": ("key",),
    "select pg_catalog.count(*)\n  from (\n    select from": (10,),
    "select p.proretset": ("enqueue_push",),
    "insert into push_listener.served": ("1", 5, "localhost", "postgres"),
    "select pg_catalog.pg_notify": ("channel",),
    "select pg_catalog.pg_advisory_unlock(%s, %s), ": (1, 0, "channel"),
    "select pg_catalog.pg_advisory_unlock": (1, 0),
    "select pg_catalog.pg_try_advisory_lock(%s": (LIVENESS_CLASS, 1),
    "select pg_catalog.pg_terminate_backend": (1,),
    "with asked": (LIVENESS_CLASS, 0, 3, 3, "channel", "1"),
}
"""And in order, by how the statement begins."""


@cache
def statements() -> Mapping[str, Any]:
    """All, with what they leave open filled in."""
    found: dict[str, Any] = {}
    for place, text in attacks.statements().items():
        if "{old}" in text:
            for group in (retention._OVER, retention._DEAD):
                found[f"{place} {group[:24]}"] = text.replace("{old}", group)
        elif "{ended}" in text:
            for number, group in enumerate(direct._ENDED):
                found[f"{place} {number}"] = text.replace("{ended}", group)
        elif "({}) values" in text:
            found[place] = text.replace("({}) values ({})", "(title, data) values (%(codes)s, null)")
        elif "public.{}({})" in text:
            call, _ = direct.statement_for("enqueue_push", {"p_title": "t"})
            found[place] = call.as_string().replace("%(p_title)s", "%(title)s")
        elif not text.startswith("status"):
            found[place] = text
    return found


def values_of(place: str, statement: str) -> Any:
    if "%(" in statement:
        return VALUES | _OTHERS.get(place.partition(":")[0], {})
    begins = (values for start, values in IN_ORDER.items() if statement.strip().startswith(start))
    return next(begins) if "%s" in statement else None


@pytest.fixture(scope="module", params=["other types", "other types, wider", "fresh"])
def resolving(
    request: pytest.FixtureRequest, postgres: Server, hostile: Database, other_types: Database
) -> Iterator[psycopg.Connection[Any]]:
    is_there = request.param == "other types"
    with attacks.copy_of(postgres, other_types if is_there else hostile) as database:
        if not is_there:
            prepare(database, ADOPTED[request.param])
            migrate.apply(database.dsn)
        with psycopg.connect(database.dsn, autocommit=True) as owner:
            yield owner


def test_every_statement_means_pg_catalogs_own(resolving: psycopg.Connection[Any]) -> None:
    faults = [
        f"{place}: {found}"
        for place, statement in statements().items()
        if (found := attacks.resolved_to(resolving, statement, values_of(place, statement)))
    ]
    assert not faults, "\n".join(faults)


def test_every_statement_names_schemas() -> None:
    faults = [
        f"{place}: {found}"
        for place, statement in attacks.statements().items()
        if (found := attacks.looked_up(statement))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("select octet_length(title) from public.push_notifications", ["octet_length()"]),
        ("select 1 from public.a join pg_locks l on true", ["pg_locks"]),
        ("select a is distinct from b from public.t where now() > c", ["now()"]),
        ("select * from unnest(a) u", ["unnest()"]),
        ("select * from unnest(a, pg_catalog.f(b, c)) u(x, y)", []),
        ("with recursive x(a, b) as (select 1, f(2)) select a from x", ["f()"]),
        ("with x as materialized (select 1) select coalesce(a, 1) from x, (values (1)) as v(a)", []),
    ],
)
def test_a_name_without_a_schema_is_found(statement: str, found: list[str]) -> None:
    assert attacks.looked_up(statement) == found


NAIVE_STATEMENTS: dict[LiteralString, tuple[object, ...]] = {
    "select octet_length(title) from public.push_notifications": (),
    "select 1 from public.push_notifications where status = 'sent'": (),
    "select 1 from public.push_notifications where status in ('sent', 'dead')": (),
    "select case priority when 'high' then 0 else 1 end from public.push_notifications": (),
    "select details ->> '1' from public.push_delivery_logs": (),
    "select 1 from public.push_notifications where device_token is not distinct from %s": ("t",),
    "select 1 from pg_catalog.pg_locks where classid = %s": (LIVENESS_CLASS,),
    "select 1 from pg_catalog.pg_locks where relation = 'public.push_notifications'::regclass": (),
    "select fraction / %s from push_listener.shared_quota": (60,),
    "select day - %s from push_listener.daily_counts": (7,),
}


def test_a_naive_statement_means_the_attackers(
    resolving: psycopg.Connection[Any], request: pytest.FixtureRequest
) -> None:
    missed = []
    for statement, values in NAIVE_STATEMENTS.items():
        if "fresh" in request.node.callspec.id and re.search("title|status|priority|device_token", statement):
            continue  # there these are of type text, and an exact fit
        if attacks.resolved_to(resolving, statement, values or None) == []:
            missed.append(statement)
    assert not missed, "\n".join(missed)


# --- the application's own triggers -----------------------------------------------------------------------------

_UNQUALIFIED = """
create table public.journal (what text, path text);
create function public.note() returns trigger language plpgsql as $$
begin
  insert into journal values (tg_when || ' ' || tg_op, current_setting('search_path'));
  return coalesce(new, old);
end
$$;
grant insert on public.journal to push_listener, public;
create trigger note_before before update or delete on public.push_notifications
  for each row execute function public.note();
create trigger note_after after update on public.push_notifications for each row execute function public.note();
create constraint trigger note_deferred after update on public.push_notifications deferrable initially deferred
  for each row execute function public.note();
"""


async def test_triggers_of_the_application_find_their_tables(postgres: Server) -> None:
    """They name them without a schema, as triggers do; in the service, in a purge and in every step there and back."""
    with postgres.database(Template.SUPABASE) as database:
        with psycopg.connect(database.dsn, autocommit=True) as owner:
            owner.execute((SHAPES / "reference.sql").read_bytes())
            owner.execute(_UNQUALIFIED.replace("push_listener, ", "").encode())
        migrate.apply(database.dsn)
        make_worker(database)
        async with (
            Emulator() as emulator,
            rows_of(database.dsn) as rows,
            serving(settings_for(database.dsn_as(WORKER), emulator)),
        ):
            push = await rows.add(device_token="phone", title="t", body="b")
            assert (await rows.one_over(push))["status"] == "sent"
        await clean_up(database.dsn)
        with psycopg.connect(database.dsn, autocommit=True) as owner:
            owner.execute(
                "insert into push_notifications (title, body, status, next_attempt_at) "
                "select 't', 'b', s, null from unnest(array['dead', 'sent']) s"
            )
            owner.execute("insert into push_notifications (user_id, title, body) values (null, 't', 'b')")
            owner.execute("truncate journal")
        database.wait_left()
        migrate.rollback(database.dsn, 0, discard_data=True)
        with psycopg.connect(database.dsn) as owner:
            journal = owner.execute("select what, path from public.journal").fetchall()
        assert {what for what, _ in journal} >= {"BEFORE UPDATE", "AFTER UPDATE"}
        assert {path for _, path in journal} == {'"$user", public, extensions'}
