"""Databases with an encoding other than UTF8: pushes go out, and results keep their true status."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import psycopg
import pytest

from listener.emulator import Emulator
from listener.fcm import sender
from listener.fcm.outcome import Disposition, Outcome
from tests.support.postgres import Server, Template
from tests.support.service import PATIENCE, Row, rows_of, serving, settings_for

FOREIGN = "\u20ac \u4e16 \x00 \ud800"
"""No LATIN1, no text of Postgres', no Unicode."""


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "UTF8"])
async def test_pushes_go_out_and_words_that_cannot_be_stored_do_not_change_the_status(
    postgres: Server, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    answers = {
        "retry": Outcome(Disposition.RETRY, "UNAVAILABLE", f"in trouble: {FOREIGN}", 503),
        "bad": Outcome(Disposition.DROP_MESSAGE, "INVALID_ARGUMENT", FOREIGN, 400),
        "good": Outcome(Disposition.ACCEPTED, "OK", "accepted", 200, message_id=f"projects/{FOREIGN}"),
    }

    def classify(status: int, headers: Mapping[str, str], body: bytes, **_: object) -> Outcome:
        return answers[emulator.received[-1].target or ""]

    monkeypatch.setattr(sender, "classify", classify)
    with (
        postgres.database(Template.MIGRATED) if encoding == "UTF8" else postgres.encoded(encoding) as database
    ):
        settings = settings_for(
            database.dsn,
            emulator,
            retry_min_delay=600,
            retry_max_delay=3600,
            worker_name="Z\u00fcrich \u4e16",
        )
        async with rows_of(database.dsn) as rows, serving(settings):
            found = {}
            for token in answers:
                push_id = await rows.add(device_token=token, title="gr\u00fc\u00df dich")
                found[token] = (await rows.until(lambda rows: all(one["error_code"] or one["sent_at"]
                    for one in rows.values()), [push_id]))[push_id]  # fmt: skip
            logs = {token: await rows.logs(row["id"]) for token, row in found.items()}
    assert {each.message["notification"]["title"] for each in emulator.received if each.message} == {
        "gr\u00fc\u00df dich"
    }
    assert {token: (row["status"], row["error_code"]) for token, row in found.items()} == {
        "retry": ("failed", "UNAVAILABLE"),
        "bad": ("dead", "INVALID_ARGUMENT"),
        "good": ("sent", None),
    }
    assert found["retry"]["last_error"] == "in trouble: ? ? ? ?"
    assert [line["details"]["reason"] for line in logs["bad"]] == ["? ? ? ?"]
    assert found["good"]["fcm_message_id"] == "projects/? ? ? ?"


async def test_a_text_that_is_no_utf8_kills_its_push_and_no_other(
    postgres: Server, emulator: Emulator
) -> None:
    """A database with SQL_ASCII holds whatever bytes an application has written."""
    columns = ("title", "priority", "options")
    with postgres.encoded("SQL_ASCII") as database:
        with psycopg.connect(database.dsn, autocommit=True, client_encoding="sql_ascii") as app:
            for column in columns:
                bad = "E'\\xff\\xfe'" if column != "options" else '(E\'{"a": "\\xff"}\')::jsonb'
                app.execute(
                    "insert into push_notifications (device_token, title) values (%s, 't')",
                    (f"bad-{column}",),
                )
                app.execute(
                    f"update push_notifications set {column} = {bad} where device_token = 'bad-{column}'".encode()
                )
        async with rows_of(database.dsn) as rows:
            good = [await rows.add(device_token=f"good-{n}", title="t") for n in range(5)]
            async with serving(settings_for(database.dsn, emulator)):
                found = await rows.over(*good)
                assert {row["status"] for row in found.values()} == {"sent"}
                # Its other columns still cannot be read.
                dead: list[Row] = []
                async with asyncio.timeout(PATIENCE):
                    while {row["status"] for row in dead} != {"dead"}:
                        dead = await rows.query(
                            "select device_token, status, error_code, last_error from push_notifications "
                            "where device_token like 'bad-%%'"
                        )
    assert {(row["device_token"], row["error_code"]) for row in dead} == {
        (f"bad-{column}", "INVALID_TEXT") for column in columns
    }
    assert all("UTF-8" in row["last_error"] for row in dead)


async def test_many_texts_that_are_no_utf8_keep_no_neighbour(postgres: Server, emulator: Emulator) -> None:
    with postgres.encoded("SQL_ASCII") as database:
        async with rows_of(database.dsn) as rows:
            await rows.query(
                r"insert into push_notifications (device_token, title) "
                r"select 'bad-' || n, convert_from('\xfc'::bytea, 'SQL_ASCII') from generate_series(1, 60) n"
            )
            await rows.add_many(30)
            neighbour = await rows.add(device_token="neighbour", title="t")
            async with serving(settings_for(database.dsn, emulator)):
                await rows.one_over(neighbour)
