"""A service whose credentials cannot be used says so although nothing is sent, and goes on when they are replaced."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import orjson
import pytest
from structlog.testing import capture_logs

from listener.fcm.auth import AccessTokens
from listener.limits.health import Pause
from listener.service import Service, credentials_for
from tests.support.servers import closed_port
from tests.support.service import PATIENCE, Place, get, serving, until, with_arguments

NO_TOKEN = "no access token for FCM: {}; the log says more\n"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for an access token, and asks for one again, ten times a second."""
    with_arguments(monkeypatch, Service, token_check=0.1)
    with_arguments(monkeypatch, AccessTokens, backoff=0.1)


async def shows(port: int, answer: tuple[int, str]) -> None:
    """Returns once /readyz gives this answer."""
    found: object = None
    try:
        async with asyncio.timeout(PATIENCE):
            while (found := await get(port, "/readyz")) != answer:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.05)
    except (TimeoutError, aiohttp.ClientError):
        pytest.fail(f"/readyz shows {found}")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("token_uri", "http://127.0.0.1:1/token", "the token endpoint cannot be reached"),
        ("client_email", "other@x.iam.gserviceaccount.com", "the credentials are refused"),
    ],
)
async def test_without_an_access_token_it_is_not_ready_although_nothing_is_sent(
    place: Place, field: str, value: str, kind: str
) -> None:
    emulator = place.emulator
    key = {**emulator.service_account, field: value.format(endpoint=emulator.endpoint)}
    async with serving(place.settings(fcm_service_account_json=key)) as service:
        assert service.port is not None
        await shows(service.port, (503, NO_TOKEN.format(kind)))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_token_endpoint_that_comes_back_is_found(place: Place) -> None:
    """Nothing is sent meanwhile, so no push asks for a token."""
    emulator = place.emulator
    async with serving(place.settings()) as service:
        assert service.port is not None
        assert service._tokens is not None
        tokens = service._tokens
        good = tokens._credentials
        other = {**emulator.service_account, "token_uri": f"http://127.0.0.1:{closed_port()}/token"}
        wrong = place.settings(fcm_service_account_json=other)
        tokens._credentials, _ = credentials_for(wrong)
        tokens.reject(await tokens.get())
        await until(lambda: tokens.fault is not None)
        tokens._credentials = good
        await until(lambda: tokens.fault is None)
        await shows(service.port, (200, "ok\n"))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_token_that_comes_back_ends_the_pause_before_its_time(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    async with serving(place.settings()) as service:
        assert service._tokens is not None
        tokens = service._tokens
        good = tokens._credentials
        other = {**emulator.service_account, "client_email": "other@x.iam.gserviceaccount.com"}
        wrong = place.settings(fcm_service_account_json=other)
        tokens._credentials, _ = credentials_for(wrong)
        tokens.reject(await tokens.get())
        await rows.add(device_token="phone", title="t")
        await until(lambda: service.pause is Pause.NO_ACCESS_TOKEN)
        assert service._health is not None
        service._health._refused._until += 3600.0  # as after many probes that failed, and longer
        push = await rows.add(device_token="phone", title="t")
        tokens._credentials = good
        assert (await rows.one_over(push))["status"] == "sent"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_key_file_that_is_replaced_ends_the_pause(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, emulator = place.rows, place.emulator
    path = tmp_path / "key.json"
    path.write_bytes(
        orjson.dumps({**emulator.service_account, "client_email": "old@x.iam.gserviceaccount.com"})
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))  # google-auth reads it
    settings = place.settings(fcm_service_account_json=None)
    with capture_logs() as told:
        async with serving(settings) as service:
            assert service.port is not None
            await shows(service.port, (503, NO_TOKEN.format("the credentials are refused")))
            (tmp_path / "new").write_bytes(orjson.dumps(emulator.service_account))
            (tmp_path / "new").rename(path)
            await until(lambda: "key file read again" in [each["event"] for each in told])
            await shows(service.port, (200, "ok\n"))
            push = await rows.add(device_token="phone", title="t")
            assert (await rows.one_over(push))["status"] == "sent"
