"""Faults of examples/edge_function."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.examples.test_edge_function import SECRET, deployed, server  # noqa: F401, TID251
from tests.support import rest
from tests.support.examples import ANN, BOB
from tests.support.rest import RestServer
from tests.support.service import Rows


async def test_two_orders_without_a_number_are_not_one_push(server: RestServer, rows: Rows) -> None:  # noqa: F811
    """Both get the key ``order-undefined-ready``: the second customer gets nothing, and the till a 200."""
    async with deployed(server, SUPABASE_SERVICE_ROLE_KEY=rest.SERVICE_KEY) as function:
        answers = [
            await function.post("/", json=[{"customer": str(each)}], headers=SECRET) for each in (ANN, BOB)
        ]
    assert [answer.status_code for answer in answers] == [400, 400]


@pytest.mark.parametrize("body", [{}, [None]], ids=["object", "list-of-null"])
async def test_what_is_no_list_of_orders_is_refused_for_good(server: RestServer, body: Any) -> None:  # noqa: F811
    """The till repeats what gets no 2xx and no 400."""
    async with deployed(server, SUPABASE_SERVICE_ROLE_KEY=rest.SERVICE_KEY) as function:
        answer = await function.post("/", json=body, headers={**SECRET, "Content-Type": "application/json"})
    assert answer.status_code == 400
