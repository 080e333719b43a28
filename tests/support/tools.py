"""Programs that some tests need and a machine may lack. The end of the run names each one that is missing."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

missing: set[str] = set()
"""The programs that tests asked for and this machine lacks."""


def tool(name: str) -> str:
    """The path of a program such as promtool. Without it the test is skipped; where CI=true, it fails."""
    # Debian has servers where only root's path leads.
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
    return found or lacking(name)


def lacking(name: str) -> NoReturn:
    """Skips the test that needs the program; where CI=true, fails it."""
    missing.add(name)
    reason = f"{name} is not on this machine (`make test` installs what it can)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
