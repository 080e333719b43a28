"""What each answer and each fault means, over real HTTP: a fault goes in, an outcome comes out.

The rows follow FCM's and OAuth's answers by HTTP status. What a retry policy makes of an outcome (a
Retry-After that is later than the push's expiry, say) is not decided here.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Any

import orjson
import pytest

from listener.emulator import Emulator
from listener.fcm.auth import AccessTokens
from listener.fcm.credentials import load_credentials
from listener.fcm.outcome import Disposition, Limit, Outcome
from listener.fcm.sender import Sender, messages_url
from listener.fcm.transports.base import Outgoing
from listener.fcm.transports.choose import make_transport
from tests.support.servers import answer, closed_port, forget_proxies, make_tls, read_request, tcp_server
from tests.support.service import naming

TOKEN = "fGk3vQ2xTd6:APA91bHun4MxP5egoKMwt2KZFBaFUH-1RYqx"
PAYLOAD = "Your code is 814233"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)


def body(token: str = TOKEN) -> bytes:
    return orjson.dumps({"message": {"token": token, "notification": {"title": PAYLOAD}}})


@asynccontextmanager
async def sending(
    endpoint: str, key: dict[str, str], *, project_id: str = "demo-project", waits_for: str = ""
) -> AsyncIterator[Sender]:
    """A sender; ``waits_for``: the code of a timeout that is so short that a test can wait for it."""
    credentials, _ = load_credentials(key)
    tokens = AccessTokens(credentials, timeout=3.0 if waits_for == "OAUTH_TIMEOUT" else 60.0)
    transport = make_transport(
        "http1",
        messages_url(endpoint, project_id),
        connect_timeout=2.9 if waits_for == "TIMEOUT" else 30.0,
        timeout=3.0 if waits_for == "TIMEOUT" else 60.0,
    )
    try:
        yield Sender(transport, tokens)
    finally:
        await transport.close()
        await tokens.close()


@dataclass(frozen=True)
class Row:
    """A fault rule of the emulator, and the expected outcome."""

    fault: str | None
    disposition: Disposition
    code: str
    uses_try: bool = True
    ambiguous: bool = False
    delay: float = 0.0
    limit: Limit | None = None
    status: int | None = None
    requests: int = 1
    """How many requests FCM receives."""
    grants: int = 1
    """How many access tokens are requested."""
    token: str = TOKEN


def drop_message(fault: str) -> Row:
    return Row(fault, Disposition.DROP_MESSAGE, "INVALID_ARGUMENT", status=400)


def pause(fault: str, code: str, status: int, **more: Any) -> Row:
    return Row(fault, Disposition.PAUSE, code, uses_try=False, status=status, **more)


def retry(fault: str, code: str, status: int | None, delay: float = 0.0, **more: Any) -> Row:
    return Row(fault, Disposition.RETRY, code, status=status, delay=delay, **more)


def unavailable(fault: str, code: str, status: int | None, delay: float = 0.0) -> Row:
    return retry(fault, code, status, delay, ambiguous=True)


def alone(reason: str, code: str, status: int) -> Row:
    """Apple says that the device does not fit the key: its platform waits only if it happens to several."""
    return Row(f"apns_error,reason={reason}", Disposition.MISFIT, code, status=status)


def quota(fault: str, delay: float, limit: Limit = Limit.PROJECT, code: str = "QUOTA_EXCEEDED") -> Row:
    return retry(fault, code, 429, delay, limit=limit)


def no_token(fault: str, disposition: Disposition, code: str, delay: float = 0.0) -> Row:
    return Row(fault, disposition, code, uses_try=False, delay=delay, requests=0)


ROWS = {
    # 2xx
    "200 with a name": Row(None, Disposition.ACCEPTED, "OK", status=200),
    "200 without a body": Row("ok_without_body", Disposition.ACCEPTED, "OK", status=200),
    # 400: whose fault is it?
    "400 on the token": Row("invalid_token", Disposition.DROP_TARGET, "INVALID_ARGUMENT", status=400),
    "400 on a field, FcmError": drop_message("invalid_argument"),
    "400 on a field, no FcmError": drop_message("invalid_field"),
    "400 too big": drop_message("too_big"),
    "400 without details": drop_message("no_details_400"),
    "400 page": pause("bad_request_html", "HTTP_400", 400),
    "400 text": pause("bad_request_text", "HTTP_400", 400),
    "400 JSON of something else": pause("bad_request_json", "HTTP_400", 400),
    "400 with two error codes": Row("several_codes", Disposition.DROP_TARGET, "UNREGISTERED", status=400),
    # Apple's verdicts
    "410 of Apple": Row(
        "apns_error,reason=Unregistered", Disposition.DROP_TARGET, "UNREGISTERED", status=400
    ),
    "410 of Apple, expired": Row(
        "apns_error,reason=ExpiredToken", Disposition.DROP_TARGET, "UNREGISTERED", status=400
    ),
    "403 of Apple, the other environment": alone("BadEnvironmentKeyInToken", "THIRD_PARTY_AUTH_ERROR", 401),
    "400 of Apple, a bad token": alone("BadDeviceToken", "INVALID_ARGUMENT", 400),
    "400 of Apple, of another app": alone("DeviceTokenNotForTopic", "INVALID_ARGUMENT", 400),
    "403 of Apple, the key": Row(
        "apns_error,reason=InvalidProviderToken",
        Disposition.PAUSE_PLATFORM,
        "THIRD_PARTY_AUTH_ERROR",
        uses_try=False,
        status=401,
    ),
    "400 of Apple, a header": drop_message("apns_error,reason=BadCollapseId"),
    "413 of Apple": drop_message("apns_error,reason=PayloadTooLarge"),
    "400 of Apple, unknown": drop_message("apns_error,reason=SomeFutureReason"),
    "429 of Apple": quota("apns_error,reason=TooManyRequests", 0.0, Limit.TARGET),
    "503 of Apple": Row(
        "apns_error,reason=Shutdown",
        Disposition.PAUSE_PLATFORM,
        "UNAVAILABLE",
        uses_try=False,
        ambiguous=True,
        status=503,
    ),
    # 401: whose credentials?
    "401 APNs, by its former name": Row(
        "apns_auth_error", Disposition.PAUSE_PLATFORM, "APNS_AUTH_ERROR", uses_try=False, status=401
    ),
    "401 APNs or web push": Row(
        "third_party_auth", Disposition.PAUSE_PLATFORM, "THIRD_PARTY_AUTH_ERROR", uses_try=False, status=401
    ),
    "401 expired, then accepted": Row(
        "token_expired,times=1", Disposition.ACCEPTED, "OK", status=200, requests=2, grants=2
    ),
    "401 unauthenticated, then accepted": Row(
        "unauthenticated,times=1", Disposition.ACCEPTED, "OK", status=200, requests=2, grants=2
    ),
    "401 expired twice": pause("token_expired", "UNAUTHENTICATED", 401, requests=2, grants=2),
    "401 unauthenticated twice": pause("unauthenticated", "UNAUTHENTICATED", 401, requests=2, grants=2),
    # 403, 404: the target's fault, or ours?
    "403 sender id": Row("sender_id_mismatch", Disposition.DROP_TARGET, "SENDER_ID_MISMATCH", status=403),
    "403 permission": pause("permission_denied", "PERMISSION_DENIED", 403),
    "404 unregistered": Row("unregistered", Disposition.DROP_TARGET, "UNREGISTERED", status=404),
    "404 unregistered, a dead- token": Row(
        None, Disposition.DROP_TARGET, "UNREGISTERED", status=404, token="dead-" + TOKEN
    ),
    "404 without details": pause("not_found_no_details", "NOT_FOUND", 404),
    "404 page": pause("not_found_html", "HTTP_404", 404),
    # 429
    "429": quota("quota_exceeded", 60.0),
    "429 of a topic": quota("topic_quota_exceeded", 60.0, Limit.TARGET),
    "429 of a device": quota("device_quota_exceeded", 60.0, Limit.TARGET),
    "429 of the front end": quota("project_quota_exceeded", 60.0, code="RESOURCE_EXHAUSTED"),
    "429 Retry-After": quota("quota_exceeded,retry_after=120", 120.0),
    "429 Retry-After, short": quota("quota_exceeded,retry_after=1", 1.0),
    # 5xx
    "500": unavailable("internal", "INTERNAL", 500),
    "502 page": unavailable("bad_gateway_html", "HTTP_502", 502, 30.0),
    "504": unavailable("gateway_timeout", "DEADLINE_EXCEEDED", 504),
    "503": unavailable("unavailable", "UNAVAILABLE", 503),
    "503 without details": unavailable("unavailable_no_details", "UNAVAILABLE", 503),
    "503 Retry-After": unavailable("unavailable,retry_after=45", "UNAVAILABLE", 503, 45.0),
    "503 Retry-After, short": unavailable("unavailable,retry_after=1", "UNAVAILABLE", 503, 1.0),
    # No answer
    "timeout": unavailable("timeout", "TIMEOUT", None),
    "timeout, though accepted": unavailable("timeout_after_accept", "TIMEOUT", None),
    "reset": unavailable("reset", "RESET", None),
    "reset, though accepted": unavailable("reset_after_accept", "RESET", None),
    # No access token
    "OAuth invalid_grant": no_token("oauth_invalid_grant", Disposition.PAUSE, "OAUTH_INVALID_GRANT"),
    "OAuth 500": no_token("oauth_server_error", Disposition.RETRY, "OAUTH_UNAVAILABLE"),
    "OAuth 400 temporarily_unavailable": no_token(
        "oauth_temporarily_unavailable", Disposition.RETRY, "OAUTH_UNAVAILABLE"
    ),
    "OAuth 400 server_error": no_token("oauth_server_error_400", Disposition.RETRY, "OAUTH_UNAVAILABLE"),
    "OAuth 400 internal_failure": no_token(
        "oauth_internal_failure_400", Disposition.RETRY, "OAUTH_UNAVAILABLE"
    ),
    "OAuth 403 rate_limit_exceeded": no_token(
        "oauth_rate_limit_exceeded", Disposition.RETRY, "OAUTH_UNAVAILABLE"
    ),
    "OAuth timeout": no_token("oauth_timeout", Disposition.RETRY, "OAUTH_TIMEOUT"),
    # An errorCode of the future: by HTTP class, and never the token's fault
    "400 unknown": Row("unknown_code,status=400", Disposition.DROP_MESSAGE, "HTTP_400", status=400),
    "401 unknown": pause("unknown_code,status=401", "HTTP_401", 401),
    "403 unknown": pause("unknown_code,status=403", "HTTP_403", 403),
    "404 unknown": pause("unknown_code,status=404", "HTTP_404", 404),
    "429 unknown": quota("unknown_code,status=429", 60.0, Limit.UNKNOWN, "HTTP_429"),
    "500 unknown": unavailable("unknown_code,status=500", "HTTP_500", 500),
    "503 unknown": unavailable("unknown_code,status=503", "HTTP_503", 503),
}


def check_outcome(outcome: Outcome, row: Row) -> None:
    assert (outcome.disposition, outcome.code, outcome.http_status) == (row.disposition, row.code, row.status)
    assert (outcome.uses_try, outcome.ambiguous, outcome.limit) == (
        row.uses_try,
        row.ambiguous,
        row.limit,
    )
    # A date has whole seconds, so the delay may be up to a second longer. (The minimum of 10 s is the retry policy's.)
    assert row.delay <= outcome.delay <= row.delay + 1
    for secret in (TOKEN, "APA91b", "814233", "ya29"):
        assert secret not in outcome.reason


SLOW = [name for name, row in ROWS.items() if "TIMEOUT" in row.code]


async def test_outcomes() -> None:
    async with Emulator() as emulator:
        for name, row in ROWS.items():
            if name not in SLOW:
                with naming(name):
                    emulator.clear()
                    emulator.clear_faults()
                    await try_row(row, emulator)


@pytest.mark.parametrize("name", SLOW)
async def test_outcome_that_is_waited_for(name: str) -> None:
    async with Emulator() as emulator:
        await try_row(ROWS[name], emulator)


async def try_row(row: Row, emulator: Emulator) -> None:
    if row.fault is not None:
        emulator.add_fault(row.fault)
    waits_for = row.code if "TIMEOUT" in row.code else ""
    async with sending(emulator.endpoint, emulator.service_account, waits_for=waits_for) as sender:
        outcome = await sender.send(Outgoing(lambda: body(row.token)))
    check_outcome(outcome, row)
    assert len(emulator.received) == row.requests
    assert sum(emulator.stats()["token_answers"].values()) == row.grants
    (name,) = [record.name for record in emulator.accepted] or [None]
    told = row.disposition is Disposition.ACCEPTED and row.fault != "ok_without_body"
    assert outcome.message_id == (name if told else None)


@pytest.mark.parametrize(("fault", "status"), [("quota_exceeded", 429), ("unavailable", 503)])
async def test_outcome_of_a_retry_after_date(fault: str, status: int) -> None:
    async with Emulator() as emulator, sending(emulator.endpoint, emulator.service_account) as sender:
        emulator.add_fault(fault, retry_after=formatdate(time() + 3600, usegmt=True))
        outcome = await sender.send(Outgoing(lambda: body()))
    assert (outcome.disposition, outcome.http_status) == (Disposition.RETRY, status)
    assert 3570 <= outcome.delay <= 3601


# --- answers that the emulator does not give -------------------------------------------------------------

FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"

BODIES = {
    "400 that names the token in words only": (
        (400, "INVALID_ARGUMENT", "The registration token is not a valid FCM registration token"),
        ("INVALID_ARGUMENT",),
        Row(None, Disposition.DROP_TARGET, "INVALID_ARGUMENT", status=400),
    ),
    "401 APNs, in the words of our own credentials": (
        (401, "UNAUTHENTICATED", "Request is missing required authentication credential."),
        ("THIRD_PARTY_AUTH_ERROR",),
        Row(None, Disposition.PAUSE_PLATFORM, "THIRD_PARTY_AUTH_ERROR", uses_try=False, status=401),
    ),
    "403 API not enabled": (
        (403, "PERMISSION_DENIED", "Firebase Cloud Messaging API has not been used in project 1 before"),
        (),
        Row(None, Disposition.PAUSE, "PERMISSION_DENIED", uses_try=False, status=403),
    ),
    "404 no such project": (
        (404, "NOT_FOUND", "Requested entity was not found."),
        (),
        Row(None, Disposition.PAUSE, "NOT_FOUND", uses_try=False, status=404),
    ),
    "500 UNSPECIFIED_ERROR": (
        (500, "INTERNAL", ""),
        ("UNSPECIFIED_ERROR",),
        Row(None, Disposition.RETRY, "UNSPECIFIED_ERROR", ambiguous=True, delay=0.0, status=500),
    ),
    "400 UNSPECIFIED_ERROR": (
        (400, "INVALID_ARGUMENT", ""),
        ("UNSPECIFIED_ERROR",),
        Row(None, Disposition.DROP_MESSAGE, "UNSPECIFIED_ERROR", status=400),
    ),
}


@pytest.mark.parametrize(("error", "codes", "row"), BODIES.values(), ids=BODIES.keys())
async def test_outcome_of_a_body(error: tuple[int, str, str], codes: tuple[str, ...], row: Row) -> None:
    status, name, message = error
    details = [{"@type": FCM_ERROR, "errorCode": code} for code in codes]
    text = orjson.dumps({"error": {"code": status, "message": message, "status": name, "details": details}})

    async def handle(reader: Any, writer: Any) -> None:
        await read_request(reader)
        writer.write(answer(status, text))

    async with (
        Emulator() as emulator,
        tcp_server(handle) as port,
        sending(f"http://127.0.0.1:{port}", emulator.service_account) as sender,
    ):
        check_outcome(await sender.send(Outgoing(lambda: body())), row)


async def test_outcome_of_the_wrong_project() -> None:
    async with (
        Emulator() as emulator,
        sending(emulator.endpoint, emulator.service_account, project_id="another") as sender,
    ):
        check_outcome(
            await sender.send(Outgoing(lambda: body())),
            Row(None, Disposition.PAUSE, "PERMISSION_DENIED", uses_try=False, status=403),
        )


async def test_outcome_of_the_wrong_endpoint() -> None:
    async with (
        Emulator() as emulator,
        sending(emulator.endpoint + "/fcm", emulator.service_account) as sender,
    ):
        check_outcome(
            await sender.send(Outgoing(lambda: body())),
            Row(None, Disposition.PAUSE, "HTTP_404", uses_try=False, status=404),
        )


async def test_outcome_of_a_key_of_another_account() -> None:
    async with Emulator() as emulator, Emulator() as other:
        key = emulator.service_account | {"private_key": other.service_account["private_key"]}
        async with sending(emulator.endpoint, key) as sender:
            outcome = await sender.send(Outgoing(lambda: body()))
        check_outcome(outcome, no_token("", Disposition.PAUSE, "OAUTH_INVALID_GRANT"))
        assert "Invalid JWT Signature" in outcome.reason


# --- no connection: certainly not sent ------------------------------------------------------------------


async def outcome_at(endpoint: str) -> Outcome:
    async with Emulator() as emulator, sending(endpoint, emulator.service_account) as sender:
        return await sender.send(Outgoing(lambda: body()))


def not_sent(code: str) -> Row:
    return Row(None, Disposition.RETRY, code, ambiguous=False, delay=0.0)


async def test_outcome_of_a_name_that_does_not_resolve() -> None:
    check_outcome(await outcome_at("https://fcm.invalid"), not_sent("DNS"))


async def test_outcome_of_a_refused_connection() -> None:
    check_outcome(await outcome_at(f"http://127.0.0.1:{closed_port()}"), not_sent("CONNECT"))


async def test_outcome_of_an_untrusted_certificate(tmp_path: Path) -> None:
    async def handle(reader: Any, writer: Any) -> None:
        await reader.read()

    server: ssl.SSLContext = make_tls(tmp_path).server
    async with tcp_server(handle, server) as port:
        check_outcome(await outcome_at(f"https://localhost:{port}"), not_sent("TLS"))


async def test_outcome_of_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle(reader: Any, writer: Any) -> None:
        await read_request(reader)
        writer.write(answer(407))

    async with tcp_server(handle) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        check_outcome(await outcome_at("https://fcm.example"), not_sent("PROXY"))
