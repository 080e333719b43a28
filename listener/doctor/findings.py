"""The findings of checks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

NOT_CHECKED = "not checked: "
"""The beginning of the text if a whole group could not be checked. The reason follows it."""


class Level(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    WARNING = "warning"
    """It may be intended, or does no harm yet; a person should look."""
    FAULT = "fault"
    SKIPPED = "skipped"
    """The check could not be made, or has nothing to look at; the text says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    group: str
    level: Level
    text: str
    remedy: str | None = None
    """What to do: an SQL statement that can be run as it is, or a text."""
    is_setting: bool = False
    """``push-listener run`` does not start with this setting, and ends with exit code 2."""

    @property
    def is_of_whole_group(self) -> bool:
        """Whether nothing of its group could be checked."""
        return self.level is Level.SKIPPED and self.text.startswith(NOT_CHECKED)


@dataclass(frozen=True, slots=True)
class Group:
    """Makes the findings of one group."""

    name: str

    def ok(self, text: str) -> Finding:
        """Nothing is to be done."""
        return Finding(self.name, Level.OK, text)

    def warning(self, text: str, remedy: str | None = None) -> Finding:
        """A person should look."""
        return Finding(self.name, Level.WARNING, text, remedy)

    def fault(self, text: str, remedy: str | None = None) -> Finding:
        """Something does not work, or will not."""
        return Finding(self.name, Level.FAULT, text, remedy)

    def wrong_setting(self, text: str, remedy: str | None = None) -> Finding:
        """``push-listener run`` does not start."""
        return Finding(self.name, Level.FAULT, text, remedy, is_setting=True)

    def skipped(self, why: str) -> Finding:
        """One thing could not be checked; ``why`` gives the reason."""
        return Finding(self.name, Level.SKIPPED, why)

    def not_checked(self, why: str) -> Finding:
        """Nothing of this group could be checked; ``why`` gives the reason."""
        return self.skipped(f"{NOT_CHECKED}{why}")
