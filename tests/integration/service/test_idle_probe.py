"""What is found out while nothing is sent."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from listener.sending.fcm_question import FcmQuestion
from tests.support.service import Place, get, sample, serving, until, with_arguments


@pytest.mark.asyncio(loop_scope="module")
async def test_a_permission_that_was_taken_away_is_known_before_a_push_needs_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, emulator = place.rows, place.emulator
    with_arguments(monkeypatch, FcmQuestion, ask_again=0.01)
    with capture_logs() as said:
        async with serving(place.settings(idle_probe_interval=0.05)) as service:
            assert service.port is not None
            accepted = "push_probes_total", {"outcome": "accepted"}
            await until(lambda: sample(service.metrics, *accepted))
            assert await get(service.port, "/readyz") == (200, "ok\n")
            assert all(record.validate_only for record in emulator.received)  # no device gets it

            fault = emulator.add_fault("permission_denied")
            refused = "push_probes_total", {"outcome": "refused"}
            await until(lambda: sample(service.metrics, *refused))
            text = "FCM refuses a test message; the log has its words\n"
            assert await get(service.port, "/readyz") == (503, text)
            assert service.pause is None

            emulator.remove_fault(fault)
            push = await rows.add(device_token="t", title="t")
            assert (await rows.one_over(push))["status"] == "sent"
            assert await get(service.port, "/readyz") == (200, "ok\n")
    told = [each["event"] for each in said if "test message" in each["event"]]
    assert told[0] == "FCM refuses a test message"
    assert told.count("FCM refuses a test message") == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_an_fcm_that_is_away_is_no_refusal(place: Place) -> None:
    emulator = place.emulator
    emulator.add_fault("unavailable")
    async with serving(place.settings(idle_probe_interval=0.05)) as service:
        assert service.port is not None
        await until(lambda: sample(service.metrics, "push_probes_total", {"outcome": "failed"}))
        assert await get(service.port, "/readyz") == (200, "ok\n")


@pytest.mark.asyncio(loop_scope="module")
async def test_while_pushes_are_answered_nothing_is_asked(place: Place) -> None:
    rows = place.rows
    async with serving(place.settings(idle_probe_interval=20)) as service:
        for n in range(5):
            await rows.one_over(await rows.add(device_token=f"phone-{n}", title="t"))
        asked = sample(service.metrics, "push_probes_total", {"outcome": "accepted"})
    assert asked == 0.0


@pytest.mark.asyncio(loop_scope="module")
async def test_without_an_access_token_fcm_is_not_said_to_have_answered(place: Place) -> None:
    """Google's token endpoint refuses the key, so FCM was asked nothing: push_probes_total counts FCM's answers."""
    emulator = place.emulator
    emulator.add_fault("oauth_invalid_grant")
    with capture_logs() as said:
        async with serving(place.settings(idle_probe_interval=0.05)) as service:
            assert service.port is not None
            await until(lambda: any("access token" in each["event"] for each in said))
            await until(
                lambda: sum(
                    sample(service.metrics, "push_probes_total", {"outcome": outcome}) or 0
                    for outcome in ("refused", "failed")
                )
            )
            refused = sample(service.metrics, "push_probes_total", {"outcome": "refused"})
            _, text = await get(service.port, "/readyz")
    assert emulator.received == []
    assert refused == 0.0
    assert "FCM refuses" not in text
