"""Puts pushes in the queue, and tells what became of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from listener.client.errors import ClientError, InvalidArgument, NotAllowed, NotFound, Unavailable
from listener.client.push import Push
from listener.client.push_progress import Progress, read_progress
from listener.client.transport import Transport, time_text, uuid_text

if TYPE_CHECKING:
    import psycopg

CHUNK = 1000
"""Pushes in one call of ``enqueue_pushes``. The function takes 10,000, but Supabase cancels a call after 8 s."""

_NOT_YOURS = "this is no push of yours"
"""What ``get_push`` tells a user about another user's push, and about a push that does not exist."""

_FIRST_LOOK = 0.05
_LAST_LOOK = 1.0
"""Seconds between two looks of ``wait``: at first, and at most."""
_ONE_LOOK = 1.0
"""Seconds that the last look may take, even if less of the timeout is left."""


@dataclass(frozen=True, slots=True)
class SendResponse:
    """What became of one push of ``enqueue_each``."""

    push: Push = field(repr=False)
    push_id: UUID | None = None
    is_new: bool = False
    """False if the ``idempotency_key`` existed already; ``push_id`` is then the id of the push that has it."""
    exception: ClientError | None = None

    @property
    def success(self) -> bool:
        """Whether the push is in the queue. ``PushClient.get`` tells later what FCM has answered."""
        return self.exception is None

    @property
    def target(self) -> tuple[str, str]:
        """The name and the value of the push's target, such as ``("token", "...")``."""
        return self.push.target


@dataclass(frozen=True, slots=True)
class BatchResponse:
    """What became of the pushes of ``enqueue_each``, in their order."""

    responses: Sequence[SendResponse]

    @property
    def success_count(self) -> int:
        return sum(each.success for each in self.responses)

    @property
    def failure_count(self) -> int:
        return len(self.responses) - self.success_count

    def raise_for_failures(self) -> None:
        """Raises an ExceptionGroup with the errors of the pushes that are not in the queue, if there are any."""
        if errors := [each.exception for each in self.responses if each.exception is not None]:
            raise ExceptionGroup(
                f"{len(errors)} of {len(self.responses)} pushes are not in the queue", errors
            )


class PushClient:
    """Puts pushes in the queue, takes them out again, and tells what became of them.

    Every method raises ClientError, as ``listener.client.errors`` describes.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def enqueue(self, push: Push, *, conn: psycopg.AsyncConnection[Any] | None = None) -> UUID:
        """Puts a push in the queue, and returns its id.

        With ``conn`` the push is added in the transaction of that connection, and is sent after its commit. If the
        database refuses the push, the transaction fails, as after any failed statement.

        Raises:
            TypeError: ``conn`` is not an asynchronous connection of psycopg, or the transport is not ``Direct``.
        """
        if conn is None:
            return UUID(await self._transport.call("enqueue_push", push.arguments()))
        call_in = getattr(self._transport, "call_in", None)
        if call_in is None:
            raise TypeError(
                f"conn= needs a PushClient over Direct: {type(self._transport).__name__} cannot join a transaction"
            )
        return UUID(await call_in(conn, "enqueue_push", push.arguments()))

    async def enqueue_each(self, pushes: Iterable[Push]) -> BatchResponse:
        """Puts many pushes in the queue, each by itself: a refused push does not keep the others out.

        One call takes a thousand pushes, and commits them together. If a call fails as a whole, its error is the
        ``exception`` of each of its pushes. The rest is then tried only if the arguments were at fault. If all pushes
        have idempotency keys, everything may be repeated. This method never raises ClientError: look at
        ``failure_count``, or call ``raise_for_failures``.
        """
        responses: list[SendResponse] = []
        trouble: ClientError | None = None
        for chunk in _chunks(pushes):
            if trouble is None:
                done = await self._enqueue_chunk(chunk)
                responses += done
                trouble = next((each.exception for each in done if _ends_all(each.exception)), None)
            else:
                untried = Unavailable(f"not tried, because an earlier call failed: {trouble.message}")
                responses += [SendResponse(push, exception=untried) for push in chunk]
        return BatchResponse(responses)

    async def _enqueue_chunk(self, pushes: Sequence[Push]) -> list[SendResponse]:
        found: dict[int, SendResponse] = {}
        places, elements = [], []
        for place, push in enumerate(pushes):
            try:
                if not isinstance(push, Push):
                    raise InvalidArgument(f"a Push is needed, not {type(push).__name__}")
                elements.append(push.columns())
                places.append(place)
            except InvalidArgument as error:
                found[place] = SendResponse(push, exception=error)
        try:
            rows = await self._transport.call("enqueue_pushes", {"p_pushes": elements}) if elements else []
        except ClientError as error:
            found |= {place: SendResponse(pushes[place], exception=error) for place in places}
        else:
            for row in rows:
                place = places[row["place"]]
                found[place] = _response(pushes[place], row)
        return [found[place] for place in range(len(pushes))]

    async def cancel(self, push_id: UUID | str) -> bool:
        """Takes a push out of the queue. Returns False if it does not wait there: it is being sent, over or unknown."""
        return bool(await self._transport.call("cancel_push", {"p_push_id": uuid_text("push_id", push_id)}))

    async def requeue(
        self,
        ids: Iterable[UUID | str] | None = None,
        *,
        status: str | None = None,
        user_id: UUID | str | None = None,
        error_code: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
    ) -> int:
        """Puts pushes that are dead, expired, failed or cancelled back in the queue; returns how many.

        At least one condition must be given. A push is put back only if all given conditions hold.

        Args:
            since, until: the earliest and the latest time at which the push got its present state.
            limit: the most pushes to put back, 1000 by default, up to 10,000. Those that have had their state longest
                come first.
        """
        given = {
            "p_ids": None if ids is None else [uuid_text("ids", each) for each in ids],
            "p_status": status,
            "p_user_id": user_id and uuid_text("user_id", user_id),
            "p_error_code": error_code,
            "p_since": since and time_text("since", since),
            "p_until": until and time_text("until", until),
            "p_limit": limit,
        }
        return int(
            await self._transport.call(
                "requeue_pushes", {name: value for name, value in given.items() if value is not None}
            )
        )

    async def get(self, push_id: UUID | str) -> Progress:
        """How far a push has got. Raises NotFound if it does not exist, or belongs to another user."""
        found = None
        try:
            found = await self._transport.call("get_push", {"p_push_id": uuid_text("push_id", push_id)})
        except NotAllowed as error:
            if error.message != _NOT_YOURS:
                raise
        if found is None:
            raise NotFound(f"there is no push {push_id}")
        return read_progress(found)

    async def wait(self, push_id: UUID | str, timeout: float) -> Progress:  # noqa: ASYNC109  # no error: see below
        """Waits until a push is over, or for ``timeout`` seconds, and returns how far it has got: look at ``is_over``.

        While the database cannot be reached, it goes on waiting. It gives up a call without an answer when the time is
        over, but gives the last call at least a second.
        """
        until, pause = time.monotonic() + timeout, _FIRST_LOOK
        while True:
            left = until - time.monotonic()
            try:
                now = await _within(max(left, _ONE_LOOK), self.get(push_id))
            except Unavailable:
                if time.monotonic() >= until:
                    raise
            else:
                if now.is_over or left <= 0:
                    return now
            await asyncio.sleep(max(0.0, min(pause, left)))
            pause = min(1.5 * pause, _LAST_LOOK)

    async def close(self) -> None:
        """Closes the connections of the transport in this event loop."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _chunks(pushes: Iterable[Push]) -> Iterator[list[Push]]:
    remaining = iter(pushes)
    while chunk := list(islice(remaining, CHUNK)):
        yield chunk


async def _within(seconds: float, look: Coroutine[Any, Any, Progress]) -> Progress:
    """The result of a look. Raises Unavailable if it takes longer than ``seconds``.

    The look is then cancelled, but not awaited: psycopg takes up to 10 s to end a statement when the server is silent.
    """
    looking = asyncio.ensure_future(look)
    try:
        await asyncio.wait({looking}, timeout=seconds)
        if looking.done():
            return looking.result()
    finally:
        looking.cancel()
        looking.add_done_callback(_drop_error)
    raise Unavailable(f"no answer within {seconds:.1f} s")


def _drop_error(looking: asyncio.Future[Progress]) -> None:
    """Keeps asyncio from logging that nobody has read the error."""
    if not looking.cancelled():
        looking.exception()


def _ends_all(error: ClientError | None) -> bool:
    """Whether the next call would fail for the same reason."""
    return error is not None and not isinstance(error, InvalidArgument)


def _response(push: Push, row: dict[str, Any]) -> SendResponse:
    if row["error"] is not None:
        return SendResponse(push, exception=InvalidArgument(row["error"]))
    return SendResponse(push, UUID(row["id"]), row["is_new"])
