"""Receipts: what phones say became of a push."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from listener.client.errors import ClientError, InvalidArgument
from listener.client.transport import Transport, object_of, text_of, time_text, to_json, uuid_text

CHUNK = 500
"""The most receipts that one call of ``record_delivery_receipts`` takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One event of one push on one device."""

    push_id: UUID | str
    device_token: str = field(repr=False)
    status: str
    """``delivered``, ``opened``, ``clicked``, ``failed`` or ``unknown``."""
    details: Mapping[str, Any] | None = None
    at: datetime | None = None
    """When it happened on the phone; None: now."""

    def columns(self) -> dict[str, Any]:
        """The receipt as ``record_delivery_receipts`` takes it. Raises InvalidArgument."""
        columns = {
            "push_id": uuid_text("push_id", self.push_id),
            "device_token": text_of("device_token", self.device_token),
            "status": text_of("status", self.status),
            "details": object_of("details", self.details),
            "at": self.at and time_text("at", self.at),
        }
        given = {name: value for name, value in columns.items() if value is not None}
        to_json(given)
        return given


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of one receipt of ``record_each``."""

    recorded: bool
    """False if the receipt had been recorded before, or was refused."""
    exception: ClientError | None = None


class DeliveryReceipts:
    """Records receipts: with a user's access token those of that user, with the service key any.

    Repeating a receipt is harmless. Every method raises ClientError, as ``listener.client.errors`` describes.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def record(
        self,
        push_id: UUID | str,
        device_token: str,
        status: str,
        *,
        details: Mapping[str, Any] | None = None,
        at: datetime | None = None,
    ) -> bool:
        """Records one receipt. Returns True if it is new, False if it had been recorded before.

        Args:
            status: ``delivered``, ``opened``, ``clicked``, ``failed`` or ``unknown``.
            details: up to 2048 bytes as JSON.
            at: when it happened on the phone; None: now.
        """
        receipt = Receipt(push_id=push_id, device_token=device_token, status=status, details=details, at=at)
        arguments = {f"p_{name}": value for name, value in receipt.columns().items()}
        return bool(await self._transport.call("record_delivery_receipt", arguments))

    async def record_each(self, receipts: Iterable[Receipt]) -> list[Recorded]:
        """Records many receipts, each by itself, in calls of 500; the results are in the order of the receipts.

        Raises ClientError if a call fails as a whole: then repeat all receipts.
        """
        found: list[Recorded] = []
        waiting = list(receipts)
        for start in range(0, len(waiting), CHUNK):
            found += await self._record_chunk(waiting[start : start + CHUNK])
        return found

    async def _record_chunk(self, receipts: Sequence[Receipt]) -> list[Recorded]:
        found: dict[int, Recorded] = {}
        places, elements = [], []
        for place, receipt in enumerate(receipts):
            try:
                if not isinstance(receipt, Receipt):
                    raise InvalidArgument(f"a Receipt is needed, not {type(receipt).__name__}")
                elements.append(receipt.columns())
                places.append(place)
            except InvalidArgument as error:
                found[place] = Recorded(False, error)
        if elements:
            for row in await self._transport.call("record_delivery_receipts", {"p_receipts": elements}):
                problem = row["error"]
                found[places[row["place"]]] = Recorded(
                    bool(row["recorded"]), None if problem is None else InvalidArgument(problem)
                )
        return [found[place] for place in range(len(receipts))]
