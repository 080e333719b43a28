"""What a person reads: lists, searches, counts, previews, the story of a push; on rows that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from listener.operating import order, reading
from listener.operating.acting import Acting, Run
from listener.operating.changing import Action
from listener.operating.filters import KINDS, STATUSES, Filter, FilterFault
from listener.operating.reading import COUNTS, SCANS, Reading
from listener.operating.tail import Shown
from listener.postgres.connect import Address
from listener.postgres.on_demand import OnDemand
from listener.postgres.overview import Depth, read
from listener.schema import migrate
from listener.service import Service
from tests.support.access import APPLICATION, Regime, project
from tests.support.postgres import Database, Server
from tests.support.reading import connector, one_connection

TOKEN = "cJug2GoHzEfcshCE_OLL24:APA91bHa8-Viell9xjbeV96V4Njhufk9V7KcOA940Gp7FY1Dxsxmo8AJ7"
ROWS = 600
NOW = datetime.now(UTC)

# Many rows have the same times, as after a statement that writes many.
_ROWS = """
insert into push_notifications (id, user_id, topic, condition, device_token, fid, title, status, priority, error_code,
                                next_attempt_at, created_at, updated_at, expires_at)
select md5('push' || n)::uuid,
       case when n %% 5 < 3 then ('00000000-0000-0000-0000-00000000000' || n %% 3)::uuid end,
       case when n %% 5 = 3 then 'news' end, case when n %% 5 = 4 then '''news'' in topics' end,
       case when n %% 15 in (2, 7) then 'token-' || n end, case when n %% 15 = 12 then 'fid-' || n end, 'Ride',
       status, case when n %% 7 = 0 then 'high' else 'normal' end,
       case when status in ('dead', 'expired', 'failed', 'cancelled')
            then (array['UNREGISTERED', 'INTERNAL'])[1 + n / 8 %% 2] end,
       case when status in ('pending', 'processing', 'failed') then now() + (n %% 7 - 3) * interval '1 min' end,
       now() - n / 50 * interval '1 min', now() - n / 50 * interval '1 min',
       case when n %% 11 = 0 then now() - interval '1 s' end
  from generate_series(%(first)s::integer, %(last)s::integer) n,
       lateral (select (array['pending', 'processing', 'sent', 'delivered', 'failed', 'dead', 'expired', 'cancelled'])
                       [1 + n %% 8] as status) s
"""


def _fill(conn: psycopg.Connection[Any], rows: int) -> None:
    """Half of them as an application writes them: what it calls processing or failed does not wait."""
    conn.execute(_ROWS, {"first": 1, "last": rows // 2})
    conn.execute("alter table push_notifications disable trigger user")
    conn.execute(_ROWS, {"first": rows // 2 + 1, "last": rows})
    conn.execute("alter table push_notifications enable trigger user")


@contextmanager
def _filled(server: Server) -> Iterator[Database]:
    def build(database: Database) -> None:
        migrate.apply(database.dsn)
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            _fill(conn, ROWS)

    with server.prepared("rows for operators", build) as made:
        yield made


_BEGIN = reading._BEGIN


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement has 2 s in the service. A busy machine may need longer than that."""
    assert "'2s'" in _BEGIN
    monkeypatch.setattr(reading, "_BEGIN", _BEGIN.replace("'2s'", "'60s'"))


@pytest.fixture
def database(shared_database: Database) -> Database:
    return shared_database


@pytest.fixture(scope="module")
def filled(postgres: Server) -> Iterator[Database]:
    """Shared by tests that only read."""
    with _filled(postgres) as made:
        yield made


def _rows(database: Database) -> list[dict[str, Any]]:
    with psycopg.connect(database.dsn, row_factory=dict_row) as conn:
        return conn.execute(
            "select id, user_id, status, error_code, updated_at, case when device_token is not null then 'token' "
            "when fid is not null then 'fid' when topic is not null then 'topic' "
            "when condition is not null then 'condition' else 'user' end as kind, "
            "expires_at, expires_at <= now() as is_past, "
            "status = 'processing' and next_attempt_at is null as is_nowhere, "
            "id in (select push_id from push_listener.unwritable_rows) as is_unwritable, "
            "status = 'failed' and next_attempt_at is null as is_no_try from push_notifications"
        ).fetchall()


def _changes(what: Action, row: dict[str, Any]) -> bool:
    """Whether an action changes a push that is named."""
    if what == "cancel":
        return row["status"] in ("pending", "failed")
    return (row["status"] in ("dead", "expired", "failed", "cancelled") or row["is_unwritable"]) and not row[
        "is_past"
    ]


def _applies(wanted: Filter, row: dict[str, Any]) -> bool:
    return (
        wanted.status in (None, row["status"])
        and (wanted.user is not None or not row["is_nowhere"])
        and (
            wanted.user is not None
            or wanted.status is not None
            or wanted.code is None
            or not row["is_no_try"]
        )
        and wanted.user in (None, row["user_id"])
        and wanted.code in (None, row["error_code"])
        and wanted.kind in (None, row["kind"])
        and (wanted.since is None or row["updated_at"] >= wanted.since)
        and (wanted.until is None or row["updated_at"] <= wanted.until)
    )


USER = UUID(int=1)
FILTERS = [
    Filter(),
    *(Filter(status=status) for status in STATUSES),
    *(Filter(kind=kind) for kind in KINDS),  # type: ignore[arg-type]
    Filter(user=USER),
    Filter(user=USER, status="dead"),
    Filter(code="INTERNAL", status="dead"),
    Filter(code="INTERNAL", status="failed"),
    Filter(code="NONE"),
    Filter(since=NOW - timedelta(minutes=40), until=NOW - timedelta(minutes=20)),
    Filter(status="sent", since=NOW - timedelta(minutes=40)),
    Filter(user=uuid4()),
]


@pytest.mark.parametrize("window", [200, 10_000])
async def test_a_list_has_every_push_once(filled: Database, window: int) -> None:
    rows = _rows(filled)
    faults = []
    async with one_connection(filled.dsn) as connect:
        shown = Reading(connect, window=window)
        for wanted in FILTERS:
            listed: list[UUID] = []
            after: str | None = None
            while True:
                page = await shown.pushes(wanted, after=after, limit=100)
                listed += [line.id for line in page.lines]
                if len(page.lines) < 100 and not page.is_partial and page.after is not None:
                    faults.append(f"{wanted}: a page of {len(page.lines)} lines has another behind it")
                after = page.after
                if after is None:
                    break
            expected = [row["id"] for row in rows if _applies(wanted, row)]
            if sorted(listed) != sorted(expected):
                faults.append(
                    f"{wanted}: {len(listed)} listed, {len(set(listed))} of them once, {len(expected)} there"
                )
            count = await Reading(connect).count(wanted, most=500)
            if (count.number, count.is_exact) != (min(len(expected), 500), len(expected) <= 500):
                faults.append(f"{wanted}: {count} instead of {len(expected)}")
    assert not faults, "\n".join(faults)


async def test_the_order_is_the_newest_change_first(filled: Database) -> None:
    page = await Reading(connector(filled.dsn)).pushes(Filter(), limit=200)
    times = [line.updated_at for line in page.lines]
    assert times == sorted(times, reverse=True)


async def test_waiting_pushes_come_in_the_order_in_which_they_are_due(filled: Database) -> None:
    page = await Reading(connector(filled.dsn)).pushes(Filter(status="pending"), limit=500)
    keys = [(line.priority != "high", line.due_at or NOW) for line in page.lines]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("requeue", Filter(code="INTERNAL", user=USER)),
        ("cancel", Filter(code="INTERNAL")),
        ("requeue", Filter(user=USER)),
        ("cancel", Filter(status="failed")),
    ],
    ids=str,
)
async def test_an_action_on_all_that_match_changes_these_and_no_others(
    postgres: Server, wanted: Filter, what: Action
) -> None:
    with _filled(postgres) as database:
        await _act_on_all(database, wanted, what)


async def _act_on_all(database: Database, wanted: Filter, what: Action) -> None:
    before = {row["id"]: row for row in _rows(database)}
    async with one_connection(database.dsn) as connect:
        shown = Reading(connect, window=200)
        preview = await Reading(connect).preview(wanted, what)
        run = Run(
            Acting(connect),
            lambda after: shown.ids(wanted, what, preview.until, after, 30),
            what=what, who="test", reason="", filter=wanted, until=preview.until,
        )  # fmt: skip
        await run.perform()
        recorded, actions = await shown.run_progress(run.id), await shown.actions()
    statuses = ("dead", "expired", "failed") if what == "requeue" else ("pending", "failed")
    expected = {
        push for push, row in before.items()
        if _applies(wanted, row) and row["status"] in statuses and not (what == "requeue" and row["is_past"])
    }  # fmt: skip
    changed = {row["id"] for row in _rows(database) if row["updated_at"] != before[row["id"]]["updated_at"]}
    assert changed == expected
    assert preview.pushes.number == min(len(expected), 1000)
    assert run.progress.done == len(expected)
    assert recorded[0] == len(expected)
    assert {action.run for action in actions} <= {run.id}


@pytest.mark.parametrize("what", ["requeue", "cancel"])
async def test_the_preview_of_named_pushes_counts_what_the_action_changes(
    database: Database, what: Action
) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        _fill(conn, 400)
        # What a person has seen; what could not be written; what is past its time is among the rows already.
        conn.execute(
            "update push_notifications set sent_at = now() where status = 'dead' and priority = 'high'"
        )
        conn.execute(
            "insert into push_listener.unwritable_rows (push_id, statement, code, until) "
            "select id, 'settle', '23514', now() + interval '1 h' from push_notifications "
            "where status = 'processing' limit 3"
        )
    before = {row["id"]: row for row in _rows(database)}
    shown, acting = Reading(connector(database.dsn)), Acting(connector(database.dsn))
    named = [*before, uuid4()]
    preview = await shown.preview(Filter(status="sent"), what, named)
    seen = preview.maybe_seen
    assert [line.id for line in preview.examples] == [
        push for push in named if push in before and _changes(what, before[push])
    ][:5]
    changed = await acting.change(what, named, who="test", reason="", until=preview.until)
    assert (preview.pushes.number, preview.pushes.is_exact) == (len(changed), True)
    assert seen.is_exact
    assert (seen.number > 0) == (what == "requeue")
    assert (await shown.preview(Filter(), what, [uuid4()])).pushes.number == 0


async def test_the_pulse_and_the_searches_of_people_do_not_wait_for_each_other(database: Database) -> None:
    pulses, searches = OnDemand(Address(database.dsn), "pulse"), OnDemand(Address(database.dsn), "search")
    shown = Reading(searches.connection, connect_pulse=pulses.connection)
    async with searches.connection():
        await shown.pulse()
    async with pulses.connection():
        await shown.pushes(Filter())
    await pulses.close()
    await searches.close()


async def test_the_service_reads_the_pulse_over_a_connection_of_its_own(service: Service) -> None:
    async with service._reading.connection():
        await service._page._reading.pulse()
    async with service._pulse.connection():
        await service._page._reading.pushes(Filter())


async def test_an_action_leaves_nothing_behind_that_was_written_at_once_while_others_are_sent(
    database: Database,
) -> None:
    """One statement inserts a campaign, so all are due at once. What does not match leaves the index meanwhile."""
    wanted = Filter(status="pending", kind="token")
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(
            "insert into push_notifications (device_token, topic, title) "
            "select case when n %% 2 = 0 then 'phone-' || n end, "
            "case when n %% 2 = 1 then 'news' end, 't' from generate_series(1, %(rows)s) n",
            {"rows": 700},
        )

        def meanwhile() -> None:
            conn.execute(
                "update push_notifications set status = 'sent', next_attempt_at = null where topic is not null"
            )

        done = await _performed(database, wanted, "cancel", meanwhile)
        left = conn.execute(
            "select count(*) from push_notifications where status = 'pending' and device_token is not null"
        ).fetchone()
    assert (left, done) == ((0,), 350)


async def test_an_action_leaves_nothing_behind_that_ended_at_once_while_others_are_purged(
    database: Database,
) -> None:
    wanted = Filter(status="dead", kind="token")
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(
            "insert into push_notifications (device_token, topic, title, status, next_attempt_at, error_code) "
            "select case when n %% 2 = 0 then 'phone-' || n end, case when n %% 2 = 1 then 'news' end, 't', 'dead', "
            "null, 'INTERNAL' from generate_series(1, %(rows)s) n",
            {"rows": 700},
        )
        done = await _performed(
            database,
            wanted,
            "requeue",
            lambda: conn.execute("delete from push_notifications where topic is not null"),
        )
        left = conn.execute("select count(*) from push_notifications where status = 'dead'").fetchone()
    assert (left, done) == ((0,), 350)


async def _performed(
    database: Database, wanted: Filter, what: Action, meanwhile: Callable[[], object]
) -> int:
    """How many pushes an action on all that match changes, when something happens after its first look."""
    async with one_connection(database.dsn) as connect:
        shown = Reading(connect, window=300)
        until = (await shown.preview(wanted, what)).until

        async def ids(after: str | None) -> tuple[list[UUID], str | None]:
            found = await shown.ids(wanted, what, until, after, 20)
            if after is None:
                meanwhile()
            return found

        run = Run(Acting(connect), ids, what=what, who="anna", reason="", filter=wanted, until=until)
        await run.perform()
    return run.progress.done


@pytest.mark.parametrize(
    "wanted", [Filter(status="sent"), Filter(code="INTERNAL"), Filter(user=USER)], ids=str
)
async def test_pages_of_what_was_written_at_once_miss_and_repeat_nothing_while_others_go(
    database: Database, wanted: Filter
) -> None:
    async with one_connection(database.dsn) as connect:
        await _page_through(database, wanted, Reading(connect, window=300))


async def _page_through(database: Database, wanted: Filter, shown: Reading) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(
            "insert into push_notifications (user_id, title, status, next_attempt_at, error_code) "
            "select %s, 't' || n %% 3, %s, null, %s from generate_series(1, 900) n",
            (USER, "sent" if wanted.status else "dead", wanted.code),
        )
        listed: list[UUID] = []
        after: str | None = None
        while True:
            page = await shown.pushes(wanted, after=after, limit=40)
            listed += [line.id for line in page.lines]
            after = page.after
            if after is None:
                break
            # Of those that were listed and of those that come, some go; what stays must be seen.
            conn.execute(
                "delete from push_notifications where id in (select id from push_notifications where title = 't1' "
                "order by id limit 20)"
            )
        left = {row[0] for row in conn.execute("select id from push_notifications").fetchall()}
    assert len(listed) == len(set(listed))
    assert left <= set(listed)


async def test_what_is_newer_than_a_page_is_counted(database: Database) -> None:
    shown = Reading(connector(database.dsn))
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        _fill(conn, 100)
        pages = {
            wanted: (await shown.pushes(wanted)).first
            for wanted in (Filter(), Filter(user=USER), Filter(status="pending"))
        }
        for first, wanted in ((pages[wanted], wanted) for wanted in pages):
            assert (await shown.newer(wanted, first)).number == 0
        conn.execute(
            "insert into push_notifications (user_id, title) select %s, 'new' from generate_series(1, 3)",
            (USER,),
        )
    for wanted, first in pages.items():
        assert (await shown.newer(wanted, first)).number == 3


async def test_a_list_shows_the_hash_of_an_installation_id(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute("insert into push_notifications (fid, title) values ('secret-installation', 't')")
    (line,) = (await Reading(connector(database.dsn)).pushes(Filter())).lines
    assert (line.kind, line.target) == ("fid", "fid " + sha256(b"secret-installation").hexdigest()[:8])


async def test_the_story_of_a_push_without_its_token(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        row = conn.execute(
            "insert into push_notifications (device_token, title, status, next_attempt_at, last_error) "
            "values (%s, 'T', 'dead', null, %s) returning id",
            (TOKEN, f"FCM says {TOKEN}"),
        ).fetchone()
        assert row is not None
        for status, details in (
            ("failed", f'{{"attempt": 1, "code": "INTERNAL", "reason": "no: {TOKEN}"}}'),
            ("sent", '{"attempt": 2, "message_id": "projects/p/messages/1"}'),
            ("delivered", '{"receipt": {}}'),
            ("unknown", '{"attempt": "x"}'),
        ):
            conn.execute(
                "insert into push_delivery_logs (push_id, device_token, status, details) values (%s, %s, %s, %s)",
                (row[0], TOKEN, status, details),
            )
    shown = Reading(connector(database.dsn))
    story = await shown.story(row[0])
    assert story is not None
    assert [(one.attempt, one.code) for one in story.attempts] == [(1, "INTERNAL"), (2, None), (None, None)]
    assert [one.status for one in story.receipts] == ["delivered"]
    assert story.attempts[0].device == story.line.target.removeprefix("token ")
    assert TOKEN not in repr(story)
    assert TOKEN[:30] not in repr(story)
    assert await shown.story(uuid4()) is None


HUGE = 5_000_000


async def test_texts_of_any_length_are_cut_and_say_so(database: Database) -> None:
    huge = "repeat('ü-', %s)"
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        row = conn.execute(
            "insert into push_notifications (topic, title, status, error_code, last_error, collapse_key, "
            f"fcm_message_id, user_id) select t, t, 'dead', t, t, t, t, %s from (select {huge} as t) x returning id",
            (USER, HUGE // 2),
        ).fetchone()
        assert row is not None
        conn.execute(
            "insert into push_delivery_logs (push_id, status, details) select %s, 'failed', jsonb_build_object("
            "'code', t, 'reason', t, 'message_id', t, 'attempt', '1e400'::numeric, 'more', t) "
            f"from (select {huge} as t) x",
            (row[0], 50_000),
        )
        conn.execute(
            "insert into push_delivery_logs (push_id, status, details) select %s, 'failed', jsonb_build_object("
            "'code', 'INTERNAL', 'more', (select string_agg(md5(n::text), '') from generate_series(1, 10000) n)) "
            "from generate_series(1, 3)",
            (row[0],),
        )
    shown = Reading(connector(database.dsn))
    story = await shown.story(row[0])
    assert story is not None
    (line,), (attempt, *others) = await shown.lines([row[0]]), story.attempts
    (group,) = await shown.codes()
    assert attempt.attempt is None
    assert [(other.code, other.answer) for other in others] == [
        (None, "the details are larger than 16 kB and are not shown")
    ] * 3
    assert line == story.line == (await shown.pulse()).latest[0] == (await shown.pushes(Filter())).lines[0]
    for text, most in (
        (line.target, 200), (line.title, 200), (line.error_code, 64), (group.code, 64), (line.last_error, 2000),
        (story.collapse_key, 200), (story.fcm_message_id, 512), (attempt.code, 64), (attempt.answer, 2000),
        (attempt.message_id, 512),
    ):  # fmt: skip
        assert text is not None
        assert text == ("ü-" * most)[:most] + reading.CUT


async def test_texts_that_are_not_too_long_are_whole(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        row = conn.execute(
            "insert into push_notifications (topic, title, status, error_code) values (%s, %s, 'dead', %s) "
            "returning id",
            ("ü" * 200, "ü" * 200, "C" * 64),
        ).fetchone()
    assert row is not None
    shown = Reading(connector(database.dsn))
    (line,), (group,) = await shown.lines([row[0]]), await shown.codes()
    assert (line.target, line.title, line.error_code, group.code) == (
        "ü" * 200,
        "ü" * 200,
        "C" * 64,
        "C" * 64,
    )
    assert [found.id for found in (await shown.pushes(Filter(code="C" * 64))).lines] == [row[0]]


async def test_a_longer_code_is_not_found_by_its_beginning(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(
            "insert into push_notifications (title, status, error_code) select 't', 'dead', repeat('C', n) "
            "from generate_series(64, 66) n"
        )
    shown = Reading(connector(database.dsn))
    assert (await shown.count(Filter(code="C" * 64))).number == 1
    groups = await shown.codes()
    assert [(group.code, group.pushes.number) for group in groups] == [
        ("C" * 64 + reading.CUT, 2),
        ("C" * 64, 1),
    ]


async def test_of_each_action_no_more_than_20_ids_are_read(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(
            "insert into push_listener.actions (who, what, filter, affected, ids) select 'anna', 'requeue', '{}', n, "
            "array(select gen_random_uuid() from generate_series(1, n)) from unnest(array[20, 21, 500]) n"
        )
    actions = await Reading(connector(database.dsn)).actions()
    assert [(action.affected, len(action.ids)) for action in actions] == [(500, 20), (21, 20), (20, 20)]


@pytest.mark.usefixtures("alone")
async def test_times_that_are_no_dates(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute("alter table push_notifications disable trigger user")
        for time in ("infinity", "-infinity", "20000-01-01", "0044-03-15 BC"):
            for status in STATUSES:
                conn.execute(
                    "insert into push_notifications (title, status, next_attempt_at, updated_at, created_at, user_id) "
                    "values ('t', %s, case when %s in ('pending', 'processing', 'failed') then %s::timestamptz end, "
                    "%s, %s, %s)",
                    (status, status, time, time, time, USER),
                )
    async with one_connection(database.dsn) as connect:
        shown = Reading(connect)
        for wanted in (Filter(), Filter(user=USER), *(Filter(status=status) for status in STATUSES)):
            after, found = None, 0
            while True:
                page = await shown.pushes(wanted, after=after, limit=3)
                found += len(page.lines)
                after = page.after
                if after is None:
                    break
            assert found == (4 if wanted.status else 32)
        await shown.pulse()
        assert await shown.story((await shown.pushes(Filter())).lines[0].id) is not None


async def test_the_pulse(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(
            "insert into push_notifications (title, status, next_attempt_at, error_code, sent_at) values "
            "('a', 'sent', null, null, now()), ('b', 'dead', null, 'INTERNAL', null), "
            "('c', 'pending', now(), null, null)"
        )
    found = await Reading(connector(database.dsn)).pulse()
    assert (found.sent, found.failed) == (1, {"INTERNAL": 1})
    assert sorted(str(line.title) for line in found.latest) == ["a", "b", "c"]
    assert found.oldest_due >= 0
    groups = await Reading(connector(database.dsn)).codes()
    assert [(group.status, group.code, str(group.pushes)) for group in groups] == [("dead", "INTERNAL", "1")]


@pytest.mark.usefixtures("alone")
async def test_the_pulse_and_the_metrics_know_the_same_oldest_push(database: Database) -> None:
    """While FCM answers each with an error, all wait for a next try. QueueStalled counts from the first due time."""
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        _retrying(conn, 30)
    pulse = await Reading(connector(database.dsn)).pulse()
    figures = await _depth(database)
    assert pulse.oldest_due == pytest.approx(max(figures.oldest_due.values()), abs=60)
    assert pulse.oldest_due >= 3600
    assert (pulse.is_due, pulse.retrying, pulse.is_whole) == (False, 30, True)


async def test_the_pulse_says_when_it_does_not_look_at_all_that_wait(database: Database) -> None:
    """2,000 are scheduled before the next try of the one that is late: the last reading for the metrics knows it."""
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        _retrying(conn, 1)
        conn.execute("alter table push_notifications enable trigger user")
        conn.execute(
            "insert into push_notifications (title, next_attempt_at) select 't', now() + interval '30 s' "
            "from generate_series(1, 2000)"
        )
    pulse = await Reading(connector(database.dsn)).pulse()
    assert (pulse.oldest_due, pulse.is_whole) == (0.0, False)
    assert max((await _depth(database)).oldest_due.values()) >= 3600


def _retrying(conn: psycopg.Connection[Any], pushes: int) -> None:
    conn.execute("alter table push_notifications disable trigger user")
    conn.execute(
        "insert into push_notifications (title, status, retry_count, delivery_attempts, created_at, push_first_due_at, "
        "next_attempt_at) select 't', 'failed', 3, 3, now() - interval '1 hour', now() - interval '1 hour', "
        "now() + interval '1 min' from generate_series(1, %s)",
        (pushes,),
    )


async def _depth(database: Database) -> Depth:
    async with AsyncConnectionPool(database.dsn, open=False, kwargs={"autocommit": True}) as pool:
        return (await read(pool)).depth


async def test_codes_stop_counting(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(
            "insert into push_notifications (title, status, next_attempt_at, error_code) "
            "select 't', 'dead', null, case when n > 1500 then 'B' when n = 1500 then null else 'A' end "
            "from generate_series(1, 1503) n"
        )
    groups = await Reading(connector(database.dsn)).codes()
    assert [(group.code, str(group.pushes)) for group in groups] == [("A", "1,000+"), ("B", "3"), ("", "1")]


@pytest.mark.oldest_postgres
async def test_the_role_of_the_service_may_read_it_all(filled: Database) -> None:
    with psycopg.connect(filled.superuser_dsn, autocommit=True) as conn:
        conn.execute("create role reader login in role push_listener")
    shown = Reading(connector(filled.dsn_as("reader")))
    page = await shown.pushes(Filter())
    await shown.pulse()
    await shown.codes()
    await shown.workers()
    await shown.actions()
    await shown.run_progress(uuid4())
    await shown.preview(Filter(), "requeue")
    await shown.lines([line.id for line in page.lines])
    await shown.story(page.lines[0].id)
    await shown.ended(Filter(), NOW)


async def test_a_statement_can_neither_write_nor_last(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Statements keep the limit of 2 s that they have in the service.
    monkeypatch.setattr(reading, "_BEGIN", _BEGIN)
    shown = Reading(connector(filled.dsn))
    async with shown._transaction() as cursor:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await cursor.execute("update push_notifications set title = title")
    async with shown._transaction() as cursor:
        with pytest.raises(psycopg.errors.QueryCanceled):
            await cursor.execute("select pg_sleep(60)")


async def test_a_connection_is_left_as_it_was(filled: Database) -> None:
    async with await psycopg.AsyncConnection.connect(filled.dsn, autocommit=True) as conn:

        @asynccontextmanager
        async def connect() -> Any:
            yield conn

        shown = Reading(connect)
        with pytest.raises(FilterFault):
            await shown.pushes(Filter(), after="nonsense")
        await shown.pulse()
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        row = await (await conn.execute("show statement_timeout")).fetchone()
        assert row == ("0",)


async def test_late_commits_are_each_shown_once(database: Database) -> None:
    """Two writers commit in another order than that of their times, between the looks."""
    shown_reading = Reading(connector(database.dsn))
    shown = Shown(await shown_reading.now())
    seen: list[UUID] = []

    async def look() -> None:
        seen.extend(line.id for line in shown.news(await shown_reading.ended(Filter(), shown.since)).lines)

    insert = "insert into push_notifications (title, status, next_attempt_at) values ('t', 'sent', null) returning id"
    async with (
        await psycopg.AsyncConnection.connect(database.dsn) as early,
        await psycopg.AsyncConnection.connect(database.dsn) as late,
    ):
        first = await (await early.execute(insert)).fetchone()
        second = await (await late.execute(insert)).fetchone()
        await late.commit()
        await look()
        await early.commit()
        await look()
        await look()
    assert first is not None
    assert second is not None
    assert seen == [second[0], first[0]]


# --- Plans ---------------------------------------------------------------------------------------------------------

_INDEXES = {
    "by_user": "push_notifications_user",
    "by_code": "push_notifications_code",
    "given_up": "push_notifications_given_up",
    "over": "push_notifications_over",
    "waiting": "push_notifications_due",
    "near": "push_notifications_due",
}


@contextmanager
def _history(server: Server) -> Iterator[Database]:
    """Never analyzed."""

    def build(database: Database) -> None:
        migrate.apply(database.dsn)
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            conn.execute("alter table push_notifications set (autovacuum_enabled = off)")
            conn.execute("alter table push_notifications disable trigger user")  # they take most of the time
            conn.execute(_ROWS, {"first": 1, "last": 10_000})
            conn.execute("alter table push_notifications enable trigger user")

    with server.prepared("a history for operators", build) as made:
        yield made


def _analyze(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute("vacuum analyze push_notifications")


@pytest.mark.oldest_postgres
async def test_a_search_reads_its_index_and_a_bounded_part_of_it(postgres: Server) -> None:
    """And the codes are found without reading what they have in common."""
    with _history(postgres) as history:
        faults = [f"never analyzed: {fault}" for fault in await _searches_in_excess(history)]
        _analyze(history)
        faults += [f"analyzed: {fault}" for fault in await _searches_in_excess(history)]
    assert not faults, "\n".join(faults)


async def _searches_in_excess(history: Database) -> list[str]:
    window = 300
    faults = []
    async with one_connection(history.dsn) as connect:
        shown = Reading(connect)

        async def look(name: str, statement: str, values: dict[str, Any], index: str, most: int) -> None:
            nodes = await _nodes(shown, statement, values)
            scans = [node for node in nodes if node.get("Relation Name") == "push_notifications"]
            if {node.get("Index Name") for node in scans} != {index}:
                faults.append(f"{name}: {[(node['Node Type'], node.get('Index Name')) for node in scans]}")
            read = max(
                (node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in scans), default=0
            )
            if read > most:
                faults.append(f"{name}: {read} rows are read")

        for wanted in FILTERS:
            for source in order.plan(wanted).sources:
                values = {**reading._values(source, wanted, window), "near": 50, "limit": 51, "most": 1000}
                for statement in (SCANS[source.statement], COUNTS[source.statement]):
                    await look(str(wanted), statement, values, _INDEXES[source.statement], window)
        await look("codes", reading.CODES, {"codes": 100, "window": 50}, "push_notifications_code", 50)
    return faults


async def test_codes_of_an_adopted_column_of_another_type_are_read_by_their_index(postgres: Server) -> None:
    before = f"{APPLICATION}; alter table public.push_notifications add column error_code varchar"
    with project(postgres, Regime.NEW, before) as database:
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            conn.execute(
                "insert into push_notifications (title, body, status, error_code) "
                "select 't', 'b', 'dead', 'CODE_' || n % 5 from generate_series(1, 1000) n"
            )
        wanted = Filter(code="CODE_1", status="dead")
        (source,) = order.plan(wanted).sources
        values = {**reading._values(source, wanted, 300), "near": 50, "skip": 0, "limit": 51}
        codes = {"codes": 100, "window": 300}
        for statement, given in ((SCANS["by_code"], values), (reading.CODES, codes)):
            nodes = await _nodes(Reading(connector(database.dsn)), statement, given)
            scans = [node for node in nodes if node.get("Relation Name") == "push_notifications"]
            assert {node.get("Index Name") for node in scans} == {"push_notifications_code"}
        assert len(await Reading(connector(database.dsn)).codes()) == 5


async def test_a_search_without_its_index_is_caught(postgres: Server) -> None:
    missed = []
    for statement in sorted(SCANS):
        with _history(postgres) as history:
            _analyze(history)
            with psycopg.connect(history.dsn, autocommit=True) as conn:
                conn.execute(f"drop index {_INDEXES[statement]}".encode())
            wanted = Filter(user=USER, code="INTERNAL")
            source = order.Source("x", statement, "updated_at", STATUSES, STATUSES)  # type: ignore[arg-type]
            values = {**reading._values(source, wanted, 300), "near": 50, "limit": 51}
            nodes = await _nodes(Reading(connector(history.dsn)), SCANS[statement], values)
            scans = [node for node in nodes if node.get("Relation Name") == "push_notifications"]
            if {node.get("Index Name") for node in scans} == {_INDEXES[statement]}:
                missed.append(statement)
    assert not missed


async def _nodes(shown: Reading, statement: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    async with shown._transaction() as cursor:
        await cursor.execute(f"explain (analyze, format json) {statement}".encode(), values)
        row = await cursor.fetchone()
    assert row is not None

    def walk(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield plan
        for below in plan.get("Plans", []):
            yield from walk(below)

    return list(walk(row["QUERY PLAN"][0]["Plan"]))
