"""Time that passes also while the machine is suspended."""

from __future__ import annotations

import sys
import time

if sys.platform == "linux":

    def elapsed() -> float:
        """Seconds since an arbitrary point. Unlike ``time.monotonic``, it counts while the machine is suspended.

        A lease in the database and the life of a push go on during that time. Source: clock_gettime(2).
        """
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    elapsed = time.monotonic
