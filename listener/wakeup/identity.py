"""The id of a worker, and how it is lost."""

from __future__ import annotations


class IdentityLost(Exception):
    """This worker cannot go on under its id. ``facts`` say more, for the log.

    Args:
        reason: why.
        is_own: whether the row in ``push_listener.workers`` is still this worker's.
    """

    def __init__(self, reason: str, *, is_own: bool, **facts: object) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_own = is_own
        self.facts = facts


ROW_IS_GONE = "its row in push_listener.workers is gone"
