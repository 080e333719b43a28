"""Calls ``push-listener doctor`` and reads what it finds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import orjson
import pytest

from listener import config, log
from listener.doctor import examination
from listener.doctor.findings import Finding, Level
from listener.doctor.limits import Limits
from listener.doctor.reaching import Resolve, resolve
from listener.emulator import Emulator
from tests.support.cli import invoke
from tests.support.service import environment


@dataclass(frozen=True)
class Diagnosis:
    """What doctor has found."""

    exit_code: int
    findings: list[Finding]

    def at(self, *levels: Level, group: str | None = None) -> list[Finding]:
        """The findings of these levels, in one group or in all."""
        return [
            each for each in self.findings if each.level in levels and (group is None or each.group == group)
        ]

    def only(self, level: Level, group: str | None = None) -> Finding:
        """The one finding of that level."""
        (found,) = self.at(level, group=group)
        return found


PATIENT = Limits(resolve=60.0, connect=60.0, mode=60.0, check=60.0, still_there=60.0, fcm=60.0, whole=600.0)
"""For checks that come to their end, however slow the machine is."""


@contextmanager
def patience() -> Iterator[None]:
    """The command has these limits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examination, "Limits", lambda: PATIENT)
        yield


async def examine(dsn: str | None, emulator: Emulator, *arguments: str, **variables: str | None) -> Diagnosis:
    """Calls the command with the environment of a service; a variable that is None is not set."""
    given = environment(dsn or "", emulator) | {name.upper(): value for name, value in variables.items()}
    if dsn is None:
        del given["DATABASE_URL"]
    env = {name: value for name, value in given.items() if value is not None}
    with patience():
        done = await invoke(None, "doctor", "--json", *arguments, **env)
    assert done.stdout, done.output
    rows = orjson.loads(done.stdout)
    return Diagnosis(done.exit_code, [Finding(**{**row, "level": Level(row["level"])}) for row in rows])


@contextmanager
def only_these_variables(**variables: str) -> Iterator[None]:
    """The environment of this process, with no other variable of push-listener."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in config.describe():
            patch.delenv(variable.name, raising=False)
        for name, value in variables.items():
            patch.setenv(name.upper(), value)
        yield


def examine_within(limits: Limits, resolver: Resolve = resolve) -> list[Finding]:
    """Makes all checks in this thread, within these limits."""
    with log.silence():
        return list(examination.examine(limits=limits, resolver=resolver))
