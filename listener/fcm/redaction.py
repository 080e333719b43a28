"""Makes texts from outside safe to show and to store: one line, bounded, without tokens and keys. Pure."""

from __future__ import annotations

import re

from listener.fcm.apns import known_reason

_TEXT_LIMIT = 300
_LONG_WORD = re.compile(r"[A-Za-z0-9_-]{20,}")


def without_tokens(text: str) -> str:
    """A text as one line, in which every word that looks like a token or a key is replaced."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return _LONG_WORD.sub(_hide_token, line)


def quoted(text: str) -> str:
    """FCM's text, to be appended to a reason; empty if there is none."""
    line = without_tokens(text)
    if len(line) > _TEXT_LIMIT:
        line = line[: _TEXT_LIMIT - 3] + "..."
    return f'; FCM says: "{line}"' if line else ""


def _hide_token(match: re.Match[str]) -> str:
    """Hides a token: it mixes upper and lower case, or is long and hexadecimal. The name of a project is neither."""
    word = match.group()
    if known_reason(word):
        return word
    is_mixed = word != word.lower() and word != word.upper()
    if is_mixed or (len(word) >= 32 and any(c.isdigit() for c in word)):
        return "[hidden]"
    return word
