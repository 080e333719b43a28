"""Keeps exceptions from outliving their use.

The collector runs rarely in this process (``process.tune_garbage_collector``), so what refers to itself stays: the
frame that a fault was raised in, whose variables lead to the fault again, and a connection of 50 KB with it.
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
