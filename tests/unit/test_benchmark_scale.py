"""What listeners have executed, as the log of Postgres tells it."""

from __future__ import annotations

from listener.postgres import claiming, settlements
from tests.benchmarks.scale import Statement, statements


def entry(who: str, what: str, ms: float = 1.5) -> str:
    """As log_min_duration_statement writes it, with log_line_prefix '%a|'."""
    return f"{who}|LOG:  duration: {ms:.3f} ms  {what}\n".replace("\n", "\n\t").removesuffix("\t")


def test_the_statements_of_listeners_are_found_with_their_kind_and_duration() -> None:
    said = "".join(
        [
            entry("push-listener", f"execute <unnamed>: {claiming.CLAIM}", 11.25),
            entry("push-listener", f"execute _pg3_1: {settlements._SETTLE}", 20.0),
            entry("push-listener doorbell", "statement: select 1\nfrom t"),
        ]
    )
    assert [*statements(said)] == [
        Statement("claim", 11.25),
        Statement("settle", 20.0),
        Statement("other", 1.5),
    ]


def test_what_others_execute_and_what_only_prepares_a_statement_is_left_out() -> None:
    said = "".join(
        [
            entry("", "statement: select 1"),
            entry("pgbench", "statement: select 1"),
            entry("push-listener", f"parse _pg3_0: {claiming.CLAIM}"),
            entry("push-listener", f"bind _pg3_0: {claiming.CLAIM}"),
            "push-listener|ERROR:  duration: 1.0 ms  statement: select 1\n",
        ]
    )
    assert [*statements(said)] == []
