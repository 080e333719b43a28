"""Keeps exceptions from holding memory after their use.

A fault refers to the frame that raised it, and the variables of the frame lead back to the fault and to a connection of
50 KB. The garbage collector runs rarely in this process (``process.tune_garbage_collector``), so such a cycle would
stay in memory.
"""

from __future__ import annotations

import traceback


def clear_frames(error: BaseException) -> None:
    """Clears the variables of all frames that an exception, its causes and its contexts went through."""
    left, seen = [error], set()
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        traceback.clear_frames(each.__traceback__)
        left += [other for other in (each.__cause__, each.__context__) if other is not None]
