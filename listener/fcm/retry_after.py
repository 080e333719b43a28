"""When an answer asks us to try again. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST_DELAY: Final = 28 * 86400.0
"""Seconds; a longer Retry-After is cut to this. FCM keeps no message longer, so no push can need more."""

_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)

# Google's front end, on its HTML pages: "Please try again in 30 seconds."
_TRY_AGAIN_IN = re.compile(rb"try again in (\d{1,4}) seconds")
_PAGE_LIMIT = 16_384


def asked_delay(headers: Mapping[str, str], body: bytes, now: float | None) -> float | None:
    """Seconds to wait: what Retry-After says, else what an HTML page of Google's front end says; else None.

    Args:
        headers: the answer's headers, looked up without regard to case.
        body: the answer's body.
        now: Unix time, from which a date counts if the answer has no usable Date header.
    """
    asked = _retry_after(headers, now)
    if asked is None and (page := _TRY_AGAIN_IN.search(body, 0, _PAGE_LIMIT)):
        asked = float(page.group(1))
    return None if asked is None else min(LONGEST_DELAY, max(0.0, asked))


def _retry_after(headers: Mapping[str, str], now: float | None) -> float | None:
    """Seconds; None if absent or unreadable. Source: RFC 9110, section 10.2.3."""
    value = _header(headers, "retry-after").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    if (until := _http_date(value)) is None:
        return None
    # Counted from the server's own clock if the answer shows it, so that a wrong clock here does no harm.
    since = _http_date(_header(headers, "date"))
    if since is None:
        since = now
    return None if since is None else until - since


def _header(headers: Mapping[str, str], wanted: str) -> str:
    return next((value for name, value in headers.items() if name.lower() == wanted), "")


def _http_date(value: str) -> float | None:
    """Unix time; None if ``value`` is no date. Source: RFC 9110, 5.6.7: a date without a zone is in UTC."""
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
