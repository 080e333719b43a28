"""The benchmarks still run: a small part of them, against the real thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import click
import orjson
import psycopg
import pytest
from click.testing import CliRunner

from listener.demo.embedded import EmbeddedPostgres
from tests.benchmarks import __main__ as command
from tests.benchmarks import (
    broadcast,
    calibration,
    clients,
    drain,
    history,
    latency,
    lookups,
    queues,
    rig,
    scale,
    stages,
)
from tests.benchmarks.options import Options
from tests.benchmarks.report import Line, at_least
from tests.support.postgres import Server, Template
from tests.support.service import PATIENCE

Figures = TypeVar("Figures")


@pytest.fixture
def server(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """What a benchmark gets that starts a Postgres, whatever its settings: that of the tests.

    Each database is a copy of a migrated one.
    """
    with ExitStack() as stack:

        def copy(name: str) -> str:
            return stack.enter_context(postgres.database(Template.MIGRATED)).superuser_dsn

        monkeypatch.setattr(postgres, "create_database", copy)
        for module in (rig, queues):
            monkeypatch.setattr(module, "migrate", SimpleNamespace(apply=lambda dsn: None))
        monkeypatch.setattr(rig, "postgres", lambda **_: nullcontext(postgres))
        monkeypatch.setattr(clients, "Server", lambda *_, **__: nullcontext(postgres))
        yield postgres


def in_time(measure: Callable[[], Figures], costs: Callable[[Figures], Iterable[float]]) -> Figures:
    """Repeats a measurement that began only after the last push had been sent: the tests send very few."""
    for _ in range(5):
        try:
            found = measure()
        except rig.OverTooSoon:
            continue
        if all(cost > 0 for cost in costs(found)):
            return found
    raise AssertionError("each time the last push had been sent before, or the cost is not counted")


@pytest.mark.usefixtures("server")
def test_a_backlog_is_drained_over_tls() -> None:
    found = in_time(
        lambda: drain.measure(queues.LISTENER, 800, 20.0, tls=True, settings={"MAX_IN_FLIGHT": "100"}),
        lambda found: (found["worker_cpu_ms"], found["sink_cpu_ms"], found["postgres_cpu_ms"]),
    )
    assert set(found) == set(drain.FIGURES)
    assert all(value > 0 for value in found.values()), found
    assert found["dead_versions"] >= 2  # claimed and settled


def test_sending_alone_is_measured_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "_IN_FLIGHT", 50)
    found = in_time(lambda: drain.measure_alone(500, 20.0, tls=True), lambda found: (found["worker_cpu_ms"],))
    assert set(found) == {"worker_cpu_ms", "pushes_per_s"}
    assert all(value > 0 for value in found.values()), found


@pytest.fixture
def without_autovacuum(server: Server) -> Iterator[None]:
    """It would write to the log of the server as well, whose bytes are compared."""
    with psycopg.connect(server.uri, autocommit=True) as conn:
        conn.execute("alter system set autovacuum = off")
        conn.execute("select pg_reload_conf()")
        yield
        conn.execute("alter system reset autovacuum")
        conn.execute("select pg_reload_conf()")


@pytest.mark.usefixtures("without_autovacuum")
def test_the_indexes_for_lookups_are_in_one_database_and_not_in_the_other() -> None:
    found = lookups.measure(4 * lookups.CLIENTS, 1, 1000, 100, ["of a user, dead"])
    for arms in found.values():
        assert all(value > 0 for samples in arms.values() for (value,) in samples.values()), found
        for figure in ("insert_wal", "push_wal"):
            assert arms["with"][figure] > arms["without"][figure]


def test_pushes_at_a_rate_arrive_and_the_time_of_each_is_cut_into_stages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a server and with databases as a benchmark makes them."""
    monkeypatch.setattr(latency, "_WARM_UP", 2)
    monkeypatch.setattr(latency, "_BEHIND_S", PATIENCE)
    with rig.postgres(**rig.slow_disk(1)) as server:
        found = latency.at_rate(server, queues.LISTENER, 100, 2)
        pushes = stages.measure(server, 100, 2)
    assert found is not None
    assert found.inserted_per_s > 0
    assert found.ms  # some 200, unless the machine stands still for these seconds
    assert all(0 < value < 60_000 for value in found.ms)
    assert pushes
    assert all(0 <= value < 60_000 for push in pushes for value in push.values()), pushes


@pytest.mark.usefixtures("server")
def test_every_way_in_is_measured() -> None:
    found = clients.measure(50, 1)
    assert len(found) == 6
    assert all(rate > 0 for rates in found.values() for rate in rates), found


@pytest.mark.usefixtures("server")
def test_a_broadcast_is_measured_beside_pushes_to_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "_BEFORE_S", 0.5)
    found = in_time(lambda: broadcast.measure(300), lambda found: [arm.postgres_us for arm in found.values()])
    assert list(found) == [broadcast.DEVICES, broadcast.SAME, broadcast.BROADCAST]
    assert all(arm.insert_s > 0 and arm.sent_per_s > 0 for arm in found.values()), found
    assert all(arm.postgres_us > 0 and arm.peak_mb > 0 for arm in found.values()), found


def _calibrated(server: EmbeddedPostgres) -> dict[str, list[float]]:
    return {name: [1.0] for name in calibration.SCALES.values()}


@pytest.mark.usefixtures("server")
def test_a_run_is_compared_with_an_earlier_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(calibration, "_ROUNDS", 2)
    figures = iter([1.0, 1.0, 2.0, 2.0])

    def works(options: Options) -> list[Line]:
        return [Line("a figure", "{:.0f}", [next(figures) for _ in range(options.runs)])]

    monkeypatch.setattr(command, "PARTS", {"part": works})
    file = tmp_path / "figures.json"
    arguments = ["--no-peers", "--runs", "2", "--json", str(file)]
    assert CliRunner().invoke(command.main, arguments).exit_code == 0
    (part,) = orjson.loads(file.read_bytes())["parts"]
    assert set(part["calibration"]) >= set(calibration.SCALES.values())
    assert all(sample > 0 for samples in part["calibration"].values() for sample in samples)
    done = CliRunner().invoke(command.main, [*arguments, "--compare", str(file)])
    assert done.exit_code == 0, done.output
    assert "worse: a figure" in done.output
    refused = CliRunner().invoke(command.main, [*arguments, "--compare", str(file), "--quick"])
    assert refused.exit_code == 2
    assert "quick was False and is True" in refused.output


@pytest.mark.usefixtures("server")
def test_what_fails_is_told_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(options: Options) -> list[Line]:
        raise rig.BenchmarkFailed("the moon is full")

    def works(options: Options) -> list[Line]:
        return [Line("latency given", "{:.0f} ms", [options.latency_ms] * options.runs, at_least(5))]

    monkeypatch.setattr(command, "PARTS", {"bad": fails, "good": works})
    monkeypatch.setattr(command, "calibrate", _calibrated)
    file = tmp_path / "figures.json"
    arguments = ["--no-peers", "--runs", "2", "--latency", "7", "--set", "LEASE=60", "--json", str(file)]
    done = CliRunner().invoke(command.main, arguments)
    assert done.exit_code == 1, done.output
    assert "the moon is full" in done.output
    assert "latency given" in done.output
    found = orjson.loads(file.read_bytes())
    assert found["options"]["settings"] == {"LEASE": "60"}
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["postgres"].startswith(str(rig.POSTGRES))
    bad, good = found["parts"]
    assert (bad["name"], bad["lines"]) == ("bad", [])
    assert "the moon is full" in bad["failure"]
    assert good["lines"][0]["here"] == {"value": 7.0, "samples": [7.0, 7.0], "of": "median"}


@pytest.mark.parametrize("main", [command.main, drain.main, scale.main])
@pytest.mark.parametrize(
    ("given", "why"),
    [("LEESE=60", "push-listener has no setting LEESE"), ("LEASE", "LEASE has no value (NAME=VALUE)")],
)
def test_a_setting_that_is_none_is_told(main: click.Command, given: str, why: str) -> None:
    done = CliRunner().invoke(main, ["--set", given])
    assert done.exit_code == 2
    assert why in done.output


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    done = CliRunner().invoke(command.main, ["--json", str(tmp_path / "none" / "x.json")])
    assert done.exit_code == 2
    assert "cannot be written" in done.output


@pytest.mark.usefixtures("server")
def test_what_has_been_measured_is_kept_when_a_run_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def works(options: Options) -> list[Line]:
        return [Line("a figure", "{:.0f}", [1.0])]

    def interrupted(options: Options) -> list[Line]:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "PARTS", {"first": works, "second": interrupted})
    monkeypatch.setattr(command, "calibrate", _calibrated)
    as_json, as_markdown = tmp_path / "figures.json", tmp_path / "figures.md"
    arguments = ["--no-peers", "--json", str(as_json), "--markdown", str(as_markdown)]
    assert CliRunner().invoke(command.main, arguments).exit_code == 1
    assert [part["name"] for part in orjson.loads(as_json.read_bytes())["parts"]] == ["first"]
    assert "| a figure |" in as_markdown.read_text()


def test_a_history_that_has_no_room_is_told_before_it_is_loaded(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "EmbeddedPostgres", lambda **_: nullcontext(server))
    monkeypatch.setattr(history, "_ROW_BYTES", 1 << 50)
    with pytest.raises(rig.BenchmarkFailed, match="GB of disk"):
        history.measure(10_000, 100_000, 10, None)
