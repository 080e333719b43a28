"""Grafana's own types refuse a field of the dashboard that Grafana does not know."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.dashboard import DASHBOARD
from tests.support.prometheus_rules import PROJECT
from tests.support.tools import lacking, tool

PACKAGES = ("@grafana/schema@12.3.0", "typescript@5.9.3")

TYPOS = [
    ('"lineWidth"', '"lineWidht"'),
    ('"legendFormat"', '"legendformat"'),
    ('"colorMode": "background"', '"colorMode": "bakground"'),
    ('"gridPos"', '"gridpos"'),
    ('"includeAll"', '"includeall"'),
    ('"displayMode"', '"displaymode"'),
    ('"unit"', '"units"'),
    ('"maxItems"', '"maxItem"'),
    ('"mode": "absolute"', '"mode": "abolute"'),
    ('"refresh": "30s"', '"refersh": "30s"'),
]


@pytest.fixture(scope="module")
def packages() -> Path:
    """A directory with Grafana's types and a compiler; kept in .cache."""
    place = PROJECT / ".cache" / "grafana-schema"
    if not (place / "node_modules" / "typescript").is_dir():
        done = subprocess.run(
            [
                tool("npm"),
                "install",
                "--prefix",
                str(place),
                "--no-save",
                "--no-package-lock",
                "--no-audit",
                "--no-fund",
                "--ignore-scripts",
                "--loglevel",
                "error",
                *PACKAGES,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lacking("@grafana/schema")
    return place


def _compile(packages: Path, place: Path, dashboard: str) -> str:
    """What the compiler says of a dashboard; empty if it takes it."""
    (place / "node_modules").symlink_to(packages / "node_modules")
    (place / "dashboard.ts").write_text((Path(__file__).parent / "dashboard.ts").read_text())
    (place / "check.ts").write_text(
        'import type { Strict } from "./dashboard";\n'
        f"export const dashboard = {dashboard.rstrip()} satisfies Strict;\n"
    )
    done = subprocess.run(
        [
            tool("node"),
            str(packages / "node_modules" / "typescript" / "bin" / "tsc"),
            *[
                "--noEmit",
                "--skipLibCheck",
                "--strict",
                "--moduleResolution",
                "bundler",
                "--module",
                "esnext",
                "--target",
                "es2022",
            ],
            "check.ts",
        ],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_grafana_knows_every_field(packages: Path, tmp_path: Path) -> None:
    assert _compile(packages, tmp_path, DASHBOARD.read_text()) == ""


@pytest.mark.parametrize(("right", "wrong"), TYPOS, ids=[wrong for _, wrong in TYPOS])
def test_a_typo_is_refused(packages: Path, tmp_path: Path, right: str, wrong: str) -> None:
    text = DASHBOARD.read_text()
    assert right in text
    assert "error TS" in _compile(packages, tmp_path, text.replace(right, wrong, 1))
