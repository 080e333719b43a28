"""The triggers of the application, as far as they may change a row after this service has written it."""

from __future__ import annotations

from listener.postgres.statements import load

FOREIGN_TRIGGERS = load(__file__, "foreign_triggers")
"""Whether the application has such triggers."""

NOT_DEFERRED = "set constraints all immediate"
"""Makes deferred triggers run with each statement, so that what they change can be read before the commit."""


class ForeignTriggers:
    """Whether the rows of a statement have to be read once more in its transaction.

    Until the catalog has been looked at, the application may have any trigger.
    """

    def __init__(self) -> None:
        self.may_change_rows = True
        """Whether a row may differ after a statement from what the statement has written."""
        self._have_changed_rows = False

    def found(self, *, any_triggers: bool) -> None:
        """A look at the catalog has found such triggers, or none."""
        self.may_change_rows = any_triggers or self._have_changed_rows

    def note_changed_row(self) -> None:
        """A trigger has changed a row although the catalog showed none. From now on every row is read once more."""
        self.may_change_rows = self._have_changed_rows = True
