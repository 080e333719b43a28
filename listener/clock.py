"""Time that passes also while the machine is suspended."""

from __future__ import annotations

import sys
import time

if sys.platform == "linux":

    def elapsed() -> float:
        """Seconds since an arbitrary point, as ``time.monotonic``, which stands still while a machine is suspended.

        For what goes on elsewhere meanwhile: a lease in the database, and the life of a push. Source: clock_gettime(2).
        """
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    elapsed = time.monotonic
