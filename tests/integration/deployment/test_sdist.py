"""The source distribution has every file of the checkout: what the Makefile and the tests read is in it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.service import PROJECT


def test_nothing_is_left_out(tmp_path: Path) -> None:
    if not (PROJECT / ".git").exists():
        pytest.skip("not in a checkout")
    kept = subprocess.run(
        ["git", "ls-files"], cwd=PROJECT, check=True, capture_output=True, text=True
    ).stdout.split("\n")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)],
        cwd=PROJECT,
        check=True,
        capture_output=True,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    assert sorted(set(filter(None, kept)) - packed) == []
