"""Requests in files, in the format that editors can send (``.http``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HttpFile:
    """One request. ``{{NAME}}`` stands for what the sender fills in."""

    method: str
    url: str
    headers: dict[str, str]
    body: str


def read(path: Path, values: Mapping[str, str]) -> HttpFile:
    """The request of a file, filled in. Raises ``KeyError`` for a name without a value."""
    text = re.sub(r"\{\{(\w+)\}\}", lambda name: values[name[1]], path.read_text())
    head, _, body = text.partition("\n\n")
    lines = [line for line in head.splitlines() if not line.startswith("#")]
    method, url = lines[0].split(" ")
    return HttpFile(method, url, dict(line.split(": ", 1) for line in lines[1:]), body)
