"""Every event that the code of the service may log, as its source says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
_LOGGERS = ("log", "structlog.get_logger(__name__)", "logging.getLogger('listener.loop')")


@dataclass(frozen=True, slots=True)
class Event:
    """One call that logs."""

    name: str
    level: str
    """Several are joined by `` or ``."""
    fields: frozenset[str]
    """``...`` stands for fields whose names are known only when the program runs."""


def collect() -> Iterator[Event]:
    """The events of every module of the service; of the emulator and the demo there are none.

    What ``listener.client`` logs goes to the log of the application.
    """
    package = ROOT / "listener"
    for path in sorted(package.rglob("*.py")):
        if path.is_relative_to(package / "client"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield from _event(node, node.func)


def _event(call: ast.Call, function: ast.Attribute) -> Iterator[Event]:
    if function.attr not in _LEVELS | {"log"} or ast.unparse(function.value) not in _LOGGERS:
        return
    level, arguments = function.attr, call.args
    if level == "log":
        words = [each.attr for each in ast.walk(arguments[0]) if isinstance(each, ast.Attribute)]
        level = " or ".join(sorted(word.lower() for word in words if word.isupper()))
        arguments = arguments[1:]
    name = arguments[0]
    assert isinstance(name, ast.Constant), ast.unparse(call)
    assert isinstance(name.value, str), ast.unparse(call)
    fields = frozenset(each.arg or "..." for each in call.keywords)
    yield Event(name.value.partition("\n")[0], level, fields)
