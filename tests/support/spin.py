"""The model of the doorbell, and Spin, which explores every interleaving of it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.support.tools import tool

MODEL = Path(__file__).resolve().parents[1] / "model" / "busy_polling.pml"

# A large search is worth an optimized verifier, for which gcc takes 2 s. For a small one tcc takes 0.03 s, and gcc,
# where there is no tcc, 0.7 s.
LARGE = "-O1"
SMALL = "-O0"


def proves(directory: Path, optimized: str, **bounds: int) -> None:
    """Fails if a row is left behind, or if not everything was explored."""
    said = search(directory, optimized, **bounds)
    assert errors(said) == 0, said
    assert "max search depth too small" not in said
    assert "Search not completed" not in said


def search(directory: Path, *options: str, **defined: int) -> str:
    """The output of the verifier that Spin generates from the model, compiled with these options."""
    compiler = tool("gcc") if LARGE in options else tool("tcc", "gcc")
    definitions = [f"-D{name}={value}" for name, value in defined.items()]
    for command in (
        [tool("spin"), "-a", *definitions, str(MODEL)],
        # NOREDUCE: partial-order reduction does not allow processes that stop at any moment. COLLAPSE would save a
        # quarter of 600 MB, and take half as much time again.
        [compiler, *options, "-w", "-DSAFETY", "-DNOREDUCE", "-o", "pan", "pan.c"],
        ["./pan", "-E", "-m10000", "-w24" if LARGE in options else "-w20"],
    ):
        # Each state is looked up at a random place of the table: large pages save a sixth of the time.
        done = subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            env={**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def errors(said: str) -> int:
    """How many the verifier has found: it stops at the first."""
    found = re.search(r"errors: (\d+)", said)
    assert found, said
    return int(found[1])
