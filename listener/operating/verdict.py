"""Says in one sentence whether pushes go out, by the rules of /readyz and of the alerts (docs/alerts.md). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from listener.operating.durations import duration

Level = Literal["ok", "attention", "trouble"]
"""ok: pushes go out in time. attention: like an alert that opens a ticket. trouble: pushes do not go out, or nobody can
tell; like an alert that calls a person."""

LATE_S = 5.0
"""The objective: a push is accepted within this time of being due (docs/alerts.md, Objectives)."""
STALLED_S = 60.0
"""QueueStalled: a push was first due longer ago than this, and none was accepted for ``ACCEPTED_WITHIN_S``."""
ACCEPTED_WITHIN_S = 120.0
RETRYING = 10
"""QueueStalled: if no push is due, at least this many must wait for their next try. The alert counts failed requests
instead."""
OLD_S = 300.0
"""QueueOld: a push has been due for longer than this."""
DEAD = 5
"""DeadLetters: at least this many pushes were given up with one code within ``DEAD_WITHIN_S``."""
DEAD_WITHIN_S = 3600.0
FAILED = 20
FAILED_SHARE = 0.2
"""FailureRatio: within ``FAILED_WITHIN_S``, more than this share of the pushes failed, and at least ``FAILED``. The
alert counts requests, the page counts pushes."""
FAILED_WITHIN_S = 900.0
USUAL_CODES = frozenset({"UNREGISTERED", "SENDER_ID_MISMATCH", "NO_RECIPIENTS", "EXPIRED"})
"""Codes that are no sign of trouble: the device is gone, or the push has expired."""

_STOPPING = "stopping"

_PAUSES = {
    "refused": (
        "FCM refuses our credentials, permissions or project",
        "Check FCM_PROJECT_ID, that the Firebase Cloud Messaging API is enabled, and the role of the service account. "
        "The log has FCM's words. A replaced key file is read at the next probe.",
    ),
    "away": (
        "FCM does not answer",
        "Nothing, if https://status.firebase.google.com reports a problem: sending goes on by itself. Otherwise check "
        "DNS, the proxy and the firewall.",
    ),
    "token_loss": (
        "FCM calls nearly every token dead",
        "Check that the key and FCM_PROJECT_ID belong to the project that the app is built with. If the devices really "
        "are dead, set TOKEN_LOSS_BREAKER=false.",
    ),
    "no_access_token": (
        "no access token for FCM can be obtained",
        "Create a new key if the old one was deleted, and check the clock of this machine. The log has the reason.",
    ),
}

_DOCTOR = "Run push-listener doctor, and read the log of the process: both name the reason."


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that decide the verdict."""

    obstacles: Sequence[str] = ()
    """What keeps this process from its work, as in the answer of /readyz."""
    pause: str | None = None
    """The kind of pause that this process is in: refused, away, token_loss, no_access_token."""
    paused_since: datetime | None = None
    """In UTC."""
    database: str | None = None
    """Why the page could not read the database; None: it could. If it could not, the facts below are old or unknown."""
    oldest_due: float | None = None
    """For how many seconds the push that has waited longest has been due, also while it waits for its next try; 0: no
    push is due; None: not known."""
    is_due: bool = True
    """Whether a push could be claimed now."""
    retrying: int = 0
    """Pushes that were due and wait for their next try."""
    accepted: int | None = None
    """Pushes of all processes that FCM accepted in the last ``ACCEPTED_WITHIN_S``, and since this process has paused;
    None: not known."""
    workers: int | None = None
    """How many workers live; None: Postgres does not see them, with WAKEUP=sweep."""
    platforms: Sequence[str] = ()
    """Platforms to which this process sends nothing but probes."""
    unwritable: int = 0
    """Pushes that push-listener passes over, because a rule of the application refuses what push-listener writes."""
    dead: Mapping[str, int] = field(default_factory=dict)
    """Pushes that ended dead or expired within ``DEAD_WITHIN_S``, by code, as far as this process has seen them."""
    ended: tuple[int, int] = (0, 0)
    """Within ``FAILED_WITHIN_S``: pushes that FCM accepted; pushes that ended with a code not in ``USUAL_CODES``."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The sentence of the first screen, and what to do."""

    level: Level
    sentence: str
    remedy: str
    """What to do; '' if nothing."""
    since: datetime | None = None
    """The time that the sentence names, in UTC; None: it names none."""

    @property
    def around_since(self) -> tuple[str, str]:
        """The sentence before and after its time, for a page that shows the time in the reader's zone. Without a time:
        the whole sentence, and ''."""
        before, _, after = (
            (self.sentence, "", "") if self.since is None else self.sentence.partition(_utc(self.since))
        )
        return before, after


def verdict(facts: Facts) -> Verdict:
    """The first rule that applies. Rules about all pushes come before rules about some pushes."""
    goes_out = bool(facts.accepted)
    if facts.obstacles and facts.obstacles[0] == _STOPPING:
        return Verdict("attention", "This process is stopping; it claims no more pushes.", "")
    if facts.pause is not None:
        return _paused(facts, goes_out=goes_out)
    if facts.database is not None:
        return _unread(facts)
    if facts.obstacles:
        return _hindered(facts, goes_out=goes_out)
    if facts.platforms:
        return Verdict(
            "trouble",
            f"Nothing is sent to {' and '.join(sorted(facts.platforms))}: Apple or the web push service refuses FCM's "
            "credentials, or has a problem. The other pushes go out.",
            "In the Firebase console, Project settings, Cloud Messaging: is the APNs key there, is it valid, do its "
            "team and bundle id fit the app? For the web: the Web Push certificate (docs/runbooks.md, PlatformPaused).",
        )
    return _sending(facts)


def _paused(facts: Facts, *, goes_out: bool) -> Verdict:
    why, remedy = _PAUSES.get(facts.pause or "", ("the log has the reason", _DOCTOR))
    paused = "" if facts.paused_since is None else f" since {_utc(facts.paused_since)}"
    if goes_out:
        told = f"This process has paused{paused}: {why}. Others go on sending."
        return Verdict("attention", told, remedy, facts.paused_since)
    told = f"Paused{paused}: {why}. Pushes wait and lose no tries."
    return Verdict("trouble", told, remedy, facts.paused_since)


def _utc(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _unread(facts: Facts) -> Verdict:
    if facts.obstacles:
        return Verdict(
            "trouble", f"No push goes out from here: {'; '.join(facts.obstacles)}.", facts.database or _DOCTOR
        )
    return Verdict(
        "attention",
        "This page cannot read the database, so it does not know how the queue is; this process can work.",
        facts.database or "",
    )


def _hindered(facts: Facts, *, goes_out: bool) -> Verdict:
    what = "; ".join(facts.obstacles)
    if facts.workers == 0:
        return Verdict("trouble", f"No worker is alive, so no push goes out: {what}.", _DOCTOR)
    if goes_out:
        return Verdict("attention", f"Pushes go out, but this process has a problem: {what}.", _DOCTOR)
    return Verdict("trouble", f"This process cannot work: {what}.", _DOCTOR)


def _sending(facts: Facts) -> Verdict:
    oldest = facts.oldest_due
    if oldest is None:
        return Verdict("attention", "This process can work; how the queue is, is not known yet.", "")
    waited = f"the oldest due push has waited {duration(oldest)}"
    if oldest > STALLED_S and facts.accepted == 0 and (facts.is_due or facts.retrying >= RETRYING):
        return Verdict(
            "trouble",
            f"No push goes out: {waited}, and FCM has accepted none for 2 minutes.",
            "Look at the error codes below and at the workers. " + _DOCTOR,
        )
    if oldest > LATE_S and facts.accepted is None:
        return Verdict(
            "attention",
            f"Late: {waited}. Whether FCM accepts any push is not known yet.",
            "Look again in 2 minutes, and at the workers.",
        )
    if oldest > LATE_S and not facts.accepted:
        next_try = "" if facts.is_due else ", and waits for its next try"
        return Verdict("attention", f"Late: {waited}{next_try}.", "Look at the error codes below.")
    if oldest > OLD_S and facts.is_due:
        return Verdict(
            "attention",
            f"Sending, but some pushes are late: {waited}.",
            "Many due: the quota, or another process. A few that stay: a session has them locked, or a trigger refuses "
            "them (docs/runbooks.md, QueueOld).",
        )
    if oldest > LATE_S:
        return Verdict(
            "attention",
            f"Sending, but late: {waited}.",
            "If it grows: the quota is used up, FCM is slow, or one process is not enough (docs/scaling.md).",
        )
    if facts.unwritable:
        return Verdict(
            "attention",
            f"Sending; {waited}, but {facts.unwritable:,} cannot be written.",
            "A trigger, an index or a constraint of the application refuses what push-listener writes "
            "(docs/runbooks.md, UnwritableRows).",
        )
    if given_up := _given_up(facts):
        return Verdict(
            "attention",
            given_up,
            "Below, each code has its meaning and a remedy (docs/runbooks.md, DeadLetters and FailureRatio).",
        )
    return Verdict("ok", f"Sending; {waited}." if oldest else "Sending; no push is due.", "")


def _given_up(facts: Facts) -> str:
    """The sentence about pushes that fail; '' if only few fail."""
    dead = {code: n for code, n in facts.dead.items() if n >= DEAD and code not in USUAL_CODES}
    if dead:
        codes = sorted(dead, key=lambda code: (-dead[code], code))
        told = ", ".join(f"{dead[code]:,} with {code or 'no code'}" for code in codes)
        return f"Pushes were given up in the last hour: {told}."
    accepted, failed = facts.ended
    if failed >= FAILED and failed > FAILED_SHARE * (accepted + failed):
        return f"Of the pushes that ended in the last 15 minutes, {failed / (accepted + failed):.0%} failed."
    return ""
