"""A user's first stumbles on the page."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from aiohttp import ClientSession

from listener.operating.records import CodeGroup, Count
from tests.support.page import FakePage, push_id


async def _get(page: FakePage, path: str) -> tuple[int, str, str]:
    async with (
        page.serve() as url,
        ClientSession() as browser,
        browser.get(url + path, allow_redirects=False) as answer,
    ):
        return answer.status, answer.headers.get("Location", ""), await answer.text()


@pytest.mark.parametrize("status", ["sent", "delivered", "processing"])
async def test_a_list_without_actions_has_no_boxes_to_tick(status: str) -> None:
    _, _, text = await _get(FakePage(), f"/pushes?status={status}")
    assert "All that match" not in text
    assert "checkbox" not in text


async def test_the_short_id_that_each_list_shows_is_no_error_code() -> None:
    """Lists show the first eight digits of an id, and the field asks for a push."""
    digits = next(str(push_id(n))[:8] for n in range(200) if str(push_id(n))[0] in "abcdef")
    status, where, _ = await _get(FakePage(), f"/find?q={digits}")
    assert (status, where) != (303, f"/pushes?code={digits.upper()}")


async def test_what_needs_a_person_without_a_code_leads_to_these_pushes() -> None:
    page = FakePage()

    async def codes() -> list[CodeGroup]:
        return [CodeGroup("dead", "", Count(3, True), datetime.now(UTC))]

    page.reading.codes = codes  # type: ignore[method-assign]
    _, _, text = await _get(page, "/needs")
    (link,) = re.findall(r'<a href="(/pushes[^"]*)">3', text)
    assert link != "/pushes?status=dead"  # that is every dead push


async def test_the_times_of_a_condition_are_in_the_zone_of_the_browser_like_all_others() -> None:
    _, _, text = await _get(FakePage(), "/actions")
    filters = re.findall(r'<span class="pair">since (.*?)</span>', text)
    assert filters
    assert all("<time" in shown for shown in filters)
