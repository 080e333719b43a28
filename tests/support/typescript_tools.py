"""TypeScript, esbuild and the SDKs that the code of docs/javascript.md uses, as scripts/test-tools installs them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.phone_pages import CODE
from tests.support.service import PROJECT
from tests.support.tools import lacking, tool

_LOCK = PROJECT / "tests/support/typescript"
_INSTALLED = PROJECT / ".cache/typescript"


def project(folder: Path) -> Path:
    """A copy of docs/phones/javascript in a folder, with the SDKs.

    Without them the test is skipped; where CI=true, it fails.
    """
    tool("node")
    installed, wanted = _INSTALLED / "package-lock.json", _LOCK / "package-lock.json"
    if not installed.exists() or installed.read_bytes() != wanted.read_bytes():
        lacking("what tests/support/typescript/package-lock.json names")
    for file in [*CODE.glob("javascript/*.ts"), *_LOCK.glob("tsconfig.*.json")]:
        shutil.copy(file, folder)
    (folder / "node_modules").symlink_to(_INSTALLED / "node_modules")
    return folder


def run(folder: Path, program: str, *arguments: str) -> str:
    """What a program of ``node_modules`` says; nothing if it is content."""
    done = subprocess.run(
        [f"node_modules/.bin/{program}", *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        check=False,
    )
    return done.stdout or ("" if done.returncode == 0 else f"{program} ended with {done.returncode}")
