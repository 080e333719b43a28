"""The vocabulary of error codes is known to the metrics."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from listener.fcm import error_body
from listener.fcm.outcome import Disposition
from listener.limits.health import Pause
from listener.metrics import labels
from listener.push import Status
from listener.sending import pause_report

LISTENER = Path(labels.__file__).parents[1]

# Where a code stands among the arguments, if no keyword names it.
_MAKERS = {"Outcome": 1, "SendFault": 0, "AuthFault": 0, "Refused": None, "BadPush": None, "Decision": None}
_CODES = {
    *labels.FCM, *labels.GOOGLE, *labels.FAULTS, *labels.OAUTH, *labels.INVALID, *labels.OURS,
    "OK", "EXPIRED", "ABANDONED", "NOT_TRIED", "PLATFORM_PAUSED",
}  # fmt: skip


def _written() -> Iterator[tuple[str, str]]:
    """Each code that a call of one of the makers writes down, with its place."""
    for path in sorted(LISTENER.rglob("*.py")):
        text = path.read_text()
        if not any(f"{maker}(" in text for maker in _MAKERS):
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call) or ast.unparse(node.func).rpartition(".")[2] not in _MAKERS:
                continue
            position = _MAKERS[ast.unparse(node.func).rpartition(".")[2]]
            given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            if position is not None and len(node.args) > position:
                given.append(node.args[position])
            for one in given:
                if isinstance(one, ast.Constant) and isinstance(one.value, str):
                    yield f"{path.name}:{one.lineno}", one.value


def test_every_code_is_known() -> None:
    written = list(_written())
    assert len({code for _, code in written}) > 20
    assert {place: code for place, code in written if code not in _CODES} == {}


def test_the_codes_of_answers_are_known() -> None:
    assert {*error_body._FCM_CODES} == {*labels.FCM}
    assert {*error_body._STANDS_FOR} <= {*labels.FCM, *labels.GOOGLE}


def test_the_words_are_those_of_the_code() -> None:
    # Sender.send never returns the one that is missing.
    assert {*labels.SENDS} == {str(each) for each in Disposition} - {"refresh_auth"}
    assert {*labels.STATUSES} == {str(each) for each in Status}
    assert {*pause_report._REASONS} == {*labels.PAUSES}
    assert {*pause_report._REASONS.values()} == {*Pause}


@pytest.mark.parametrize(
    ("platform", "label"),
    [
        ("android", "android"),
        ("ios", "ios"),
        ("web", "web"),
        ("Ios", "other"),
        ("", "other"),
        (None, "unknown"),
    ],
)
def test_a_platform_of_the_applications_own_is_no_label(platform: str | None, label: str) -> None:
    assert labels.platform_of(platform) == label
