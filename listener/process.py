"""How many files this process may have open: each request to FCM under way is a connection, and so a file."""

from __future__ import annotations

import resource

OTHERS = 100
"""What is open beside the requests, at the most: connections to Postgres, the web server's, whatever is looked up."""


def allow(wanted: int) -> int:
    """Raises the soft limit to ``wanted``, or as far as the hard limit lets it; returns how many may be open then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (ValueError, OSError):  # macOS has a lower limit of its own
        return soft
    return allowed
