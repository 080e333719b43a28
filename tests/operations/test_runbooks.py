"""docs/runbooks.md: a section for each alert, and SQL that runs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest

from tests.support.postgres import Database
from tests.support.prometheus_rules import PROJECT, alerts

RUNBOOKS = PROJECT / "docs" / "runbooks.md"


def sections() -> dict[str, str]:
    """The text of each section, by its heading."""
    parts = re.split(r"^## (.+)$", RUNBOOKS.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def statements() -> Iterator[tuple[str, str]]:
    """Every block of SQL, by the section and its number there."""
    for name, text in sections().items():
        for number, block in enumerate(re.findall(r"```sql\n(.*?)```", text, re.DOTALL), 1):
            yield f"{name}-{number}", block


def test_each_section_belongs_to_an_alert_and_each_alert_has_one() -> None:
    assert list(sections()) == list(dict.fromkeys(sections()))
    assert set(sections()) == {rule["alert"] for rule in alerts()}
    anchors = {f"docs/runbooks.md#{name.lower()}" for name in sections()}
    assert {rule["annotations"]["runbook_url"] for rule in alerts()} == anchors


def test_each_section_says_what_it_means_what_suffers_and_what_to_look_at() -> None:
    for name, text in sections().items():
        assert "**Meaning.**" in text, name
        assert "**Impact.**" in text, name
        assert "```sql" in text, name
        assert "**What to do.**" in text or "| what to do |" in text, name


@pytest.mark.every_postgres
def test_the_sql_runs(database: Database) -> None:
    """As the owner of the tables, with a row in each table that matters. Nothing of it stays."""
    with psycopg.connect(database.dsn) as connection:
        connection.execute("insert into push_notifications (device_token, title) values ('phone-1', 'x')")
        connection.execute(
            "insert into push_devices (token, user_id, platform) values ('phone-1', gen_random_uuid(), 'ios')"
        )
        connection.commit()
        assert connection.execute("select current_user").fetchone() == ("postgres",)
        ran = 0
        for name, statement in statements():
            try:
                cursor = connection.execute(statement.encode())
            except psycopg.Error as error:
                pytest.fail(f"{name}: {error}\n{statement}")
            if cursor.description:
                cursor.fetchall()
            connection.rollback()
            ran += 1
        assert ran >= len(sections())


def test_the_table_of_alerts_is_complete() -> None:
    """docs/alerts.md names every alert with its severity and its times."""
    rows = re.findall(
        r"^\| \[(\w+)\]\(runbooks\.md#(\w+)\) \| (\w+) \| .* \| (\S+) \| (\S+) \|$",
        (PROJECT / "docs" / "alerts.md").read_text(),
        re.MULTILINE,
    )
    wanted = [
        (
            rule["alert"],
            rule["alert"].lower(),
            rule["labels"]["severity"],
            rule.get("for", "-"),
            rule.get("keep_firing_for", "-"),
        )
        for rule in alerts()
    ]
    assert sorted(rows) == sorted(wanted)
