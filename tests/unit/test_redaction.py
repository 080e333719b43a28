"""Texts of others, as they are shown: without tokens and keys, and otherwise whole."""

from __future__ import annotations

import pytest

from listener.emulator.answers import APPLE_STATUS
from listener.fcm.redaction import without_tokens


@pytest.mark.parametrize("reason", APPLE_STATUS)
def test_what_apple_says_is_not_taken_for_a_token(reason: str) -> None:
    assert without_tokens(f"refused (Apple: {reason})") == f"refused (Apple: {reason})"


@pytest.mark.parametrize(
    "token", ["cLwDkXAPQ0aQqWZbZ3sPQZ", "APA91bHun4MxP5egoKMwt2KZFBaFUH", "0123456789abcdef" * 4]
)
def test_what_may_be_a_token_is_hidden(token: str) -> None:
    assert without_tokens(f"no answer\nfrom {token}.") == "no answer from [hidden]."
