"""The line for connections: who comes first, and that nobody is lost."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from listener.fcm.transports.lanes import Lanes

# True and False: a request of that priority comes; "next", "fail": one is taken out; "leave": one gives up.
_steps = st.lists(st.booleans() | st.sampled_from(["next", "fail", "leave"]), max_size=60)


@given(_steps, st.randoms())
def test_high_comes_before_normal_and_otherwise_first_comes_first(
    steps: list[bool | str], rng: random.Random
) -> None:
    loop = asyncio.new_event_loop()
    lanes: Lanes[int] = Lanes()
    waiting: dict[asyncio.Future[int], bool] = {}
    for step in steps:
        high = [one for one, is_high in waiting.items() if is_high]
        normal = [one for one, is_high in waiting.items() if not is_high]
        match step:
            case bool(is_high):
                waiter = loop.create_future()
                lanes.add(waiter, is_high=is_high)
                waiting[waiter] = is_high
            case "next":
                expected = next(iter([*high, *normal]), None)
                assert lanes.next() is expected
                waiting.pop(expected, None)  # type: ignore[arg-type]
            case "fail":
                expected = next(iter([*normal, *high]), None)
                assert lanes.next_to_fail() is expected
                waiting.pop(expected, None)  # type: ignore[arg-type]
            case _ if waiting:
                leaves = rng.choice(list(waiting))
                if rng.random() < 0.5:
                    assert lanes.remove(leaves)
                    assert not lanes.remove(leaves)
                else:
                    leaves.cancel()  # it is passed over
                del waiting[leaves]
        assert len(lanes) >= len(waiting)
        assert lanes.high >= sum(waiting.values())
    loop.close()
