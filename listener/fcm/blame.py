"""What an answer means in view of the message: the cause may be the message and not the device. Pure."""

from __future__ import annotations

from dataclasses import replace

from listener.fcm.apns import TOPIC_REASONS
from listener.fcm.message import Prepared
from listener.fcm.outcome import Disposition, Outcome
from listener.push import Target


def in_view_of(outcome: Outcome, prepared: Prepared, target: Target) -> Outcome:
    """The outcome. If the sender's options may be the cause, it blames the message:

    - FCM calls the valid token of an iPhone invalid for a message that shows nothing, see ``Prepared.doubts_token``.
    - An answer to a message with ``live_activity_token`` is about that token, which dies when the activity ends.
      Sources: kylebrowning/APNSwift, pull request 231; firebase-ios-sdk, issue 15956.
    - Apple refuses the ``apns-topic`` that the sender has set.
    """
    reason = _fault_of_message(outcome, prepared, target)
    return (
        outcome if reason is None else replace(outcome, disposition=Disposition.DROP_MESSAGE, reason=reason)
    )


def _fault_of_message(outcome: Outcome, prepared: Prepared, target: Target) -> str | None:
    if target.platform not in (None, "ios"):
        return None
    is_dropped = outcome.disposition is Disposition.DROP_TARGET
    if is_dropped and prepared.is_for_activity:
        return "the live activity has ended, or its token is wrong; the registration token is kept"
    if is_dropped and prepared.doubts_token and outcome.code == "INVALID_ARGUMENT":
        return (
            "FCM calls the token invalid, which may be due to the message: to iOS it has nothing to show, and no "
            "content-available in options.apns.payload.aps; set that to 1, or an alert"
        )
    if prepared.names_apns_topic and outcome.apple_reason in TOPIC_REASONS:
        return f"Apple does not accept options.apns.headers.apns-topic ({outcome.apple_reason}): leave it out"
    return None
