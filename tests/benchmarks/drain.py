"""How fast a backlog is sent, and what that costs: one listener process, and everything on this machine.

    python -m tests.benchmarks.drain --rows 50000 --latency-ms 50

The rows are there before the listener starts, each inserted by a transaction of its own, as applications do. A push
is 300 bytes of device_token, title, body and data. The sink answers each request after the latency.
"""

from __future__ import annotations

import click
import psycopg

from tests.benchmarks import rig

# 163 + 20 + 79 + 38 bytes, with a token of the form and length that FCM's have.
_LOAD = """
do $$
begin
  for n in 1 .. {rows} loop
    insert into public.push_notifications (device_token, title, body, data) values (
      left(translate(encode(sha256(n::text::bytea), 'base64'), '+/', '-_'), 22) || ':APA91b' || repeat(
        left(translate(encode(sha256((-n)::text::bytea), 'base64'), '+/', '-_'), 42), 3) || lpad(n::text, 8, '0'),
      'Your ride is waiting',
      'A blue estate car, number plate 4711, stands at the corner. It waits for 5 min.',
      jsonb_build_object('ride', lpad(n::text, 8, '0'), 'screen', 'ride'));
    commit;
  end loop;
end
$$
"""
_UNSETTLED = """
select count(*) from push_notifications
  where next_attempt_at is not null and status in ('pending', 'processing', 'failed')
"""


def measure(rows: int, latency_ms: float, in_flight: int) -> dict[str, float]:
    """One run, in a new Postgres."""
    with (
        rig.postgres() as server,
        rig.sink(latency_ms) as sink,
        psycopg.connect(rig.new_database(server, "drain"), autocommit=True) as conn,
    ):
        conn.execute("checkpoint")
        empty = _wal(conn)
        conn.execute("set synchronous_commit = off")
        conn.execute(_LOAD.format(rows=rows).encode())
        loaded = _wal(conn)
        conn.execute("analyze push_notifications")
        before = _wal(conn)

        environment = rig.listener_environment(
            server.dsn("drain"), sink.url, MAX_IN_FLIGHT=str(in_flight), WORKER_NAME="bench"
        )
        with rig.process("listener", "run", environment=environment) as listener:
            rig.until(lambda: sink.count() > 0, "no push has come to the sink")
            postgres_cpu = -rig.tree_cpu_seconds(server.pid)
            sink_cpu = -rig.cpu_seconds(sink.pid)
            cpu, sent_before = -rig.cpu_seconds(listener.pid), sink.count()
            rig.until(lambda: sink.count() >= rows, "not every push has come to the sink", every=0.05)
            rig.until(lambda: _count(conn) == 0, "not every push has been settled")
            cpu += rig.cpu_seconds(listener.pid)
            sink_cpu += rig.cpu_seconds(sink.pid)
            postgres_cpu += rig.tree_cpu_seconds(server.pid)
            drained, peak = _wal(conn), rig.peak_rss(listener.pid)

        arrivals = sink.report()
        logged = conn.execute("select count(*) from push_delivery_logs where status = 'sent'").fetchone()
        if len({one.push_id for one in arrivals}) != rows or logged != (rows,):
            raise rig.BenchmarkFailed(f"{rows} pushes became {len(arrivals)} requests, {logged} log rows")
    seconds = (arrivals[-1].at_ns - arrivals[0].at_ns) / 1e9
    counted = rows - sent_before
    return {
        "pushes_per_s": rows / seconds,
        "pushes_per_cpu_s": counted / cpu,
        "seconds": seconds,
        "listener_cpu_s": cpu,
        "postgres_cpu_s": postgres_cpu,
        "sink_cpu_s": sink_cpu,
        "wal_insert_bytes": (loaded - empty) / rows,
        "wal_drain_bytes": (drained - before) / rows,
        "wal_bytes": (loaded - empty + drained - before) / rows,
        "peak_rss_mb": peak / 1e6,
    }


def _wal(conn: psycopg.Connection) -> int:
    row = conn.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
    assert row is not None
    return int(row[0])


def _count(conn: psycopg.Connection) -> int:
    row = conn.execute(_UNSETTLED).fetchone()
    assert row is not None
    return int(row[0])


@click.command()
@click.option("--rows", default=50_000, show_default=True, type=click.IntRange(2))
@click.option(
    "--latency-ms", default=50.0, show_default=True, type=click.FloatRange(0), help="Of the sink's answers."
)
@click.option("--in-flight", default=1000, show_default=True, type=click.IntRange(1), help="MAX_IN_FLIGHT.")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def main(rows: int, latency_ms: float, in_flight: int, runs: int, as_json: bool) -> None:
    """Drain a backlog: pushes a second, and what a push costs in CPU, WAL and memory."""
    measured = rig.repeat(runs, lambda: measure(rows, latency_ms, in_flight))
    lines = [
        ("pushes_per_s", "pushes a second, first to last request", ",.0f"),
        ("pushes_per_cpu_s", "pushes per CPU-second of the listener", ",.0f"),
        ("seconds", "seconds", ".2f"),
        ("listener_cpu_s", "CPU-seconds: listener", ".2f"),
        ("postgres_cpu_s", "CPU-seconds: Postgres, all processes", ".2f"),
        ("sink_cpu_s", "CPU-seconds: sink", ".2f"),
        ("wal_insert_bytes", "WAL bytes a push: insert", ",.0f"),
        ("wal_drain_bytes", "WAL bytes a push: claim, settle, log", ",.0f"),
        ("wal_bytes", "WAL bytes a push: both", ",.0f"),
        ("peak_rss_mb", "peak memory of the listener, MB", ",.0f"),
    ]
    rig.show(
        f"{rows:,} pushes, FCM answering after {latency_ms:g} ms, {in_flight:,} in flight at most",
        measured,
        lines,
        as_json,
    )


if __name__ == "__main__":
    main()
