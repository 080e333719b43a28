"""Programs that some tests need and a machine may lack. The end of the run names each one that is missing."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

missing: set[str] = set()
"""The programs that tests asked for and this machine lacks."""


def tool(*names: str) -> str:
    """The path of a program such as promtool: the first of these that is here. Without one the test is skipped; where
    CI=true, it fails.
    """
    # Debian has servers where only root's path leads.
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    found = (shutil.which(name, path=places) for name in names)
    return next(filter(None, found), None) or lacking(names[-1])


def lacking(name: str) -> NoReturn:
    """Skips the test that needs the program; where CI=true, fails it."""
    missing.add(name)
    reason = f"{name} is not on this machine (`make test` installs what it can)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
