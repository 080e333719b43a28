"""Every error code that can be written has a meaning and a remedy."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from listener.metrics import labels
from listener.operating.meanings import MEANINGS, meaning_of

_PROJECT = Path(__file__).resolve().parents[2]
_WRITTEN = re.compile(r"\bcode=\"([A-Z][A-Z_]+)\"|Fault\(\s*\"([A-Z][A-Z_]+)\"|\bcode, reason = \"([A-Z]+)\"")
_IN_SQL = re.compile(r"error_code = '([A-Z_]+)'")
_NO_CODES = {"OK", "ABANDONED"}
"""Of metrics only: no push ends with them."""


@cache
def _codes_of_the_source() -> frozenset[str]:
    found: set[str] = set()
    for path in (_PROJECT / "listener").rglob("*.py"):
        if "emulator" not in path.parts:
            found |= {code for match in _WRITTEN.findall(path.read_text()) for code in match if code}
    for folder in ("listener", "db"):
        for path in (_PROJECT / folder).rglob("*.sql"):
            found |= set(_IN_SQL.findall(path.read_text()))
    return frozenset(found)


def _codes_of_the_metrics() -> set[str]:
    codes = {*labels.DEAD, *labels.RETRIED, *labels.OAUTH, *labels.DISABLED}
    return codes.union(*labels.SENDS.values()) - _NO_CODES


def test_the_source_names_codes() -> None:
    assert {"EXPIRED", "NO_RECIPIENTS", "TITLE_MISSING", "OAUTH_REFUSED", "DNS"} <= _codes_of_the_source()


def test_each_code_has_a_meaning() -> None:
    for code in sorted(_codes_of_the_source() | _codes_of_the_metrics()):
        found = meaning_of(code)
        assert "is not one of push-listener" not in found.meaning, code
        assert found.code == code
        assert found.meaning.endswith("."), code
        assert found.remedy.endswith("."), code


def test_each_code_that_the_document_names_has_a_meaning() -> None:
    text = (_PROJECT / "docs/outcomes.md").read_text()
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", text)) & (
        _codes_of_the_source() | _codes_of_the_metrics()
    )
    assert {"UNREGISTERED", "SENDER_ID_MISMATCH", "TOKEN_LOSS"} <= named <= set(MEANINGS)


def test_no_meaning_is_of_a_code_that_nobody_writes() -> None:
    known = _codes_of_the_source() | _codes_of_the_metrics() | {"NOT_TRIED", "OAUTH_INVALID_GRANT"}
    assert set(MEANINGS) <= known


@pytest.mark.parametrize("code", ["HTTP_502", "HTTP_429", "HTTP_413", "HTTP_403", "HTTP_302", "HTTP_OTHER"])
def test_http_statuses_have_a_meaning(code: str) -> None:
    assert "is not one of push-listener" not in meaning_of(code).meaning


@pytest.mark.parametrize("code", ["MINE", "", None])
def test_an_unknown_code_says_so(code: str | None) -> None:
    assert "push-listener" in meaning_of(code).meaning
