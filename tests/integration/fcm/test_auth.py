"""Credentials and access tokens, against token endpoints that behave and some that misbehave."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.auth.credentials import Scoped
from structlog.testing import capture_logs

from listener.emulator import Emulator
from listener.fcm import auth
from listener.fcm.auth import AccessTokens
from listener.fcm.credentials import SCOPE, KeyFile, load_credentials
from listener.fcm.fault import AuthFault
from tests.support.servers import (
    answer,
    closed_port,
    forget_proxies,
    make_tls,
    read_request,
    tcp_server,
    tunnelling_proxy,
)

Key = dict[str, Any]

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = RSA_KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()


def make_key(token_uri: str = "https://oauth2.googleapis.com/token", **fields: Any) -> Key:
    return {
        "type": "service_account",
        "project_id": "p1",
        "private_key_id": "0123456789abcdef",
        "private_key": PEM,
        "client_email": "sender@p1.iam.gserviceaccount.com",
        "token_uri": token_uri,
        **fields,
    }


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_proxies(monkeypatch)
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_QUOTA_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "no-gcloud-here"))
    # Keeps tests away from the real metadata server of this machine.
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)


# --- keys ----------------------------------------------------------------------------------------------


def test_key_gives_scoped_credentials_and_its_project() -> None:
    credentials, project_id = load_credentials(make_key())
    assert project_id == "p1"
    assert isinstance(credentials, Scoped)
    assert credentials.scopes == [SCOPE]


def test_key_need_not_name_a_project() -> None:
    key = make_key()
    del key["project_id"]
    assert load_credentials(key)[1] is None


ODD_PEMS = {
    "escaped twice": PEM.replace("\n", "\\n"),
    "escaped thrice": PEM.replace("\n", "\\\\n"),
    "Windows, escaped": PEM.replace("\n", "\\r\\n"),
    "Windows": PEM.replace("\n", "\r\n"),
    "spaces": PEM.replace("\n", " "),
    "no line breaks": PEM.replace("\n", ""),
    "in quotes": f'"{PEM}"',
    "indented": PEM.replace("\n", "\n  "),
}


@pytest.mark.parametrize("odd", ODD_PEMS.values(), ids=ODD_PEMS.keys())
def test_line_breaks_of_the_private_key_are_restored(odd: str) -> None:
    load_credentials(make_key(private_key=odd))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_key_file_that_windows_has_written(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.json").write_bytes(json.dumps(make_key(), indent=2).encode(encoding))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    assert load_credentials(None)[1] == "p1"


def test_a_key_file_in_base64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key.b64").write_bytes(base64.encodebytes(json.dumps(make_key()).encode()))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.b64"))
    assert load_credentials(None)[1] == "p1"


def pem_of(key: Any, encryption: serialization.KeySerializationEncryption | None = None) -> str:
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        encryption or serialization.NoEncryption(),
    )
    return pem.decode()


BAD_KEYS: dict[str, tuple[Key, str]] = {
    "nothing in it": ({}, "client_email, private_key, token_uri missing or empty"),
    "two fields missing": (
        {"type": "service_account", "client_email": "a@b"},
        "private_key, token_uri missing or empty",
    ),
    "an empty field": (make_key(client_email=" "), "client_email missing or empty"),
    "a key that is no text": (make_key(private_key={"pem": PEM}), "private_key missing or empty"),
    "another kind": (make_key(type="external_account"), 'type is not "service_account"'),
    "no URL": (make_key(token_uri="oauth2.googleapis.com/token"), "token_uri is not an http"),
    "no PEM": (make_key(private_key=PEM.split("\n")[1]), "private_key is not PEM"),
    "damaged PEM": (make_key(private_key=PEM.replace("\n", "!\n", 5)), "private_key is damaged"),
    "cut PEM": (make_key(private_key=PEM[:900]), "private_key is damaged"),
    "a key that is not RSA": (make_key(private_key=pem_of(ec.generate_private_key(ec.SECP256R1()))), "RSA"),
    "an encrypted key": (
        make_key(private_key=pem_of(RSA_KEY, serialization.BestAvailableEncryption(b"x"))),
        "private_key is damaged",
    ),
}


def check_refused(info: Key | None, message: str, secret: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load_credentials(info)
    shown = "".join(traceback.format_exception(raised.value))
    assert not any(line in shown for line in secret.split("\n") if len(line) > 30)


@pytest.mark.parametrize(("key", "message"), BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_bad_key_is_named_and_not_quoted(key: Key, message: str) -> None:
    check_refused(key, message, str(key.get("private_key", "")))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        pytest.param(*case, id=name)
        for name, case in BAD_KEYS.items()
        if case[0].get("type") == "service_account"
    ],
)
def test_bad_key_file_is_named_and_not_quoted(
    key: Key, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.json").write_text(json.dumps(key))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    check_refused(None, message, str(key.get("private_key", "")))


# --- credentials from elsewhere ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "was not found"),
        ("{", "the key file is not JSON: its end is missing"),
        ("[1]", "the key file is JSON, but not an object"),
        ("\x00\x01", "the key file is not JSON: the whole content of a key file is needed$"),
        ('{"web": {"client_id": "S3cr3t"}}', "the key file is the key of an OAuth client"),
        ('{"project_info": {}}', "the key file is the configuration of an app"),
        ('{"type": "other"}', "not have a valid type"),
        ('{"type": "external_account"}', "no usable credentials"),
    ],
)
def test_bad_credentials_file(
    text: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "credentials.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    with pytest.raises(ValueError, match=message):
        load_credentials(None)


def test_no_credentials_anywhere() -> None:
    with pytest.raises(ValueError, match="no usable credentials"):
        load_credentials(None)


def test_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key.json").write_text(json.dumps(make_key()))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "payer")
    credentials, project_id = load_credentials(None)
    assert project_id == "p1"
    assert AccessTokens(credentials).quota_project_id == "payer"


async def test_workload_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with TokenEndpoint.running() as endpoint:
        (tmp_path / "subject-token").write_text("proof")
        configuration = {
            "type": "external_account",
            "audience": "//iam.googleapis.com/pools/pool/providers/provider",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": endpoint.url,
            "credential_source": {"file": str(tmp_path / "subject-token")},
        }
        (tmp_path / "configuration.json").write_text(json.dumps(configuration))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "configuration.json"))
        credentials, _ = await asyncio.to_thread(load_credentials, None)
        async with kept(AccessTokens(credentials, backoff=0)) as tokens:
            endpoint.will_give("t1")
            assert await tokens.get() == "t1"

        (tmp_path / "subject-token").unlink()
        async with kept(AccessTokens(credentials)) as tokens:
            with pytest.raises(AuthFault, match=r"OAUTH_CREDENTIALS.*subject-token") as raised:
                await tokens.get()
            assert raised.value.permanent


async def test_metadata_server(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {
        b"/computeMetadata/v1/project/project-id": ("text/plain", "p2"),
        b"/computeMetadata/v1/instance/service-accounts/default/": (
            "application/json",
            '{"email": "default@p2", "scopes": []}',
        ),
        b"/computeMetadata/v1/instance/service-accounts/default/token": (
            "application/json",
            '{"access_token": "t1", "expires_in": 3600}',
        ),
    }

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path = (await read_request(reader))[0].split()[1].split(b"?")[0]
            kind, text = pages.get(path, ("text/plain", ""))
            writer.write(
                f"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(text)}\r\n\r\n{text}".encode()
            )

    async with tcp_server(handle) as port:
        metadata = "google.auth.compute_engine._metadata"
        monkeypatch.setattr(f"{metadata}._NO_GCE_CHECK", False)
        monkeypatch.setattr(f"{metadata}._GCE_METADATA_HOST", f"127.0.0.1:{port}")
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{port}")
        credentials, project_id = await asyncio.to_thread(load_credentials, None)
        assert project_id == "p2"
        async with kept(AccessTokens(credentials)) as tokens:
            assert await tokens.get() == "t1"


# --- access tokens -------------------------------------------------------------------------------------


class TokenEndpoint:
    """An OAuth token endpoint that answers each request with the next item of a queue.

    It runs in the event loop of the test: a refresh that blocked the loop would never end.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.asked = asyncio.Queue[int]()
        self.count = 0
        self.replies = asyncio.Queue[bytes | None]()

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[TokenEndpoint]:
        endpoint = cls()
        async with tcp_server(endpoint.handle) as endpoint.port:
            yield endpoint

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/token"

    def will(self, reply: bytes | None) -> None:
        """Answer the next request with these bytes; None: never."""
        self.replies.put_nowait(reply)

    def will_give(self, token: str, expires_in: int = 3600) -> None:
        self.will(answer(200, json.dumps({"access_token": token, "expires_in": expires_in}).encode()))

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        self.count += 1
        self.asked.put_nowait(self.count)
        reply = await self.replies.get()
        if reply is None:
            await reader.read()
        else:
            writer.write(reply)
            await writer.drain()


@asynccontextmanager
async def kept(tokens: AccessTokens) -> AsyncIterator[AccessTokens]:
    try:
        yield tokens
    finally:
        await tokens.close()


@asynccontextmanager
async def endpoint_and_tokens(**options: Any) -> AsyncIterator[tuple[TokenEndpoint, AccessTokens]]:
    async with TokenEndpoint.running() as endpoint:
        credentials, _ = load_credentials(make_key(endpoint.url))
        async with kept(AccessTokens(credentials, None, **options)) as tokens:
            yield endpoint, tokens


@pytest.fixture
def early_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refresh starts at the beginning of a token's life, of five minutes or less, instead of in its last tenth."""
    monkeypatch.setattr(auth, "AHEAD_SHARE", 1.0)
    monkeypatch.setattr(auth, "random", SimpleNamespace(uniform=lambda low, high: high))


async def test_google_accepts_the_assertion() -> None:
    async with Emulator() as emulator:
        credentials, _ = load_credentials(emulator.service_account)
        async with kept(AccessTokens(credentials)) as tokens:
            assert await tokens.get() == await tokens.get()
        assert emulator.stats()["token_answers"] == {"200": 1}


async def test_all_callers_share_one_refresh() -> None:
    async with endpoint_and_tokens() as (endpoint, tokens):
        callers = [asyncio.create_task(tokens.get()) for _ in range(100)]
        await endpoint.asked.get()
        endpoint.will_give("t1")
        assert set(await asyncio.gather(*callers)) == {"t1"}
        assert await tokens.get() == "t1"
        assert endpoint.count == 1


async def test_cancelled_caller_does_not_cancel_the_refresh() -> None:
    async with endpoint_and_tokens() as (endpoint, tokens):
        first, second = asyncio.create_task(tokens.get()), asyncio.create_task(tokens.get())
        await endpoint.asked.get()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        endpoint.will_give("t1")
        assert await second == "t1"
        assert endpoint.count == 1


@pytest.mark.usefixtures("early_refresh")
async def test_refresh_starts_before_expiry_and_delays_no_caller() -> None:
    async with endpoint_and_tokens() as (endpoint, tokens):
        endpoint.will_give("t1", expires_in=300)
        assert await tokens.get() == "t1"
        assert await endpoint.asked.get() == 1
        assert await endpoint.asked.get() == 2  # The timer started it: there was no caller.
        assert await tokens.get() == "t1"
        endpoint.will_give("t2")
        tokens.reject("t1")
        assert await tokens.get() == "t2"
        assert endpoint.count == 2


@pytest.mark.usefixtures("early_refresh")
async def test_callers_wait_once_the_token_has_expired() -> None:
    async with endpoint_and_tokens() as (endpoint, tokens):
        endpoint.will_give("t1", expires_in=1)
        await tokens.get()
        while True:  # The second request gets no answer, so the first token expires.
            caller = asyncio.create_task(tokens.get())
            await asyncio.wait([caller], timeout=0.05)
            if not caller.done():
                break
        endpoint.will_give("t2")
        assert await caller == "t2"
        assert endpoint.count == 2


async def test_rejected_token_is_replaced_once_for_all() -> None:
    async with endpoint_and_tokens() as (endpoint, tokens):
        endpoint.will_give("t1")
        old = await tokens.get()
        endpoint.will_give("t2")

        async def refused() -> str:
            tokens.reject(old)
            return await tokens.get()

        assert set(await asyncio.gather(*(refused() for _ in range(100)))) == {"t2"}
        tokens.reject(old)
        assert await tokens.get() == "t2"
        assert endpoint.count == 2


async def test_setting_the_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with TokenEndpoint.running() as endpoint:
        credentials, _ = load_credentials(make_key(endpoint.url))
        async with kept(AccessTokens(credentials)) as tokens:
            endpoint.will_give("t1")
            await tokens.get()
            monkeypatch.setattr(time, "time", lambda: 4e9)
            monkeypatch.setattr("google.auth._helpers.utcnow", lambda: datetime(2100, 1, 1))
            assert credentials.expired
            assert await tokens.get() == "t1"


async def test_token_without_a_life_or_with_a_past_one_is_used() -> None:
    async with endpoint_and_tokens() as (endpoint, tokens):
        endpoint.will(answer(200, b'{"access_token": "t1"}'))
        assert await tokens.get() == "t1"
        tokens.reject("t1")
        endpoint.will_give("t2", expires_in=-100)
        assert await tokens.get() == "t2"
        assert await tokens.get() == "t2"
        assert endpoint.count == 2


async def test_the_token_is_never_logged() -> None:
    with capture_logs() as logs:
        async with endpoint_and_tokens() as (endpoint, tokens):
            endpoint.will_give("ya29.secret")
            tokens.reject(await tokens.get())
            endpoint.will(answer(400, b'{"error": "invalid_grant", "error_description": "revoked"}'))
            with pytest.raises(AuthFault):
                await tokens.get()
    assert [entry["event"] for entry in logs] == [
        "access token refreshed",
        "access token refused",
        "access token refresh failed",
    ]
    assert "ya29" not in repr(logs)


# --- refreshes that fail -------------------------------------------------------------------------------


def oauth_error(error: str, status: int = 400) -> bytes:
    return answer(status, json.dumps({"error": error, "error_description": "so it is"}).encode())


FAULTS: dict[str, tuple[bytes, str, bool]] = {
    "invalid_grant": (oauth_error("invalid_grant"), "OAUTH_INVALID_GRANT", True),
    "invalid_scope": (oauth_error("invalid_scope"), "OAUTH_INVALID_SCOPE", True),
    "401 invalid_client": (oauth_error("invalid_client", 401), "OAUTH_INVALID_CLIENT", True),
    "400 of a new kind": (oauth_error("no_such_error"), "OAUTH_REFUSED", True),
    "403 page": (answer(403, b"<html>"), "OAUTH_UNAVAILABLE", False),
    "404 page": (answer(404, b"<html>"), "OAUTH_REFUSED", True),
    "400 temporarily_unavailable": (oauth_error("temporarily_unavailable"), "OAUTH_UNAVAILABLE", False),
    "400 server_error": (oauth_error("server_error"), "OAUTH_UNAVAILABLE", False),
    "400 internal_failure": (oauth_error("internal_failure"), "OAUTH_UNAVAILABLE", False),
    "403 rate_limit_exceeded": (oauth_error("rate_limit_exceeded", 403), "OAUTH_UNAVAILABLE", False),
    "403 rateLimitExceeded": (
        answer(403, b'{"error": {"code": 403, "errors": [{"reason": "rateLimitExceeded"}]}}'),
        "OAUTH_UNAVAILABLE",
        False,
    ),
    "400 with a passing description": (
        answer(400, b'{"error": "unknown", "error_description": "internal_failure"}'),
        "OAUTH_UNAVAILABLE",
        False,
    ),
    "403 of Google's other services": (
        answer(403, b'{"error": {"code": 403, "status": "PERMISSION_DENIED"}}'),
        "OAUTH_REFUSED",
        True,
    ),
    "400 that quotes a passing fault": (
        answer(400, b'{"error": "invalid_grant", "error_description": "no server_error"}'),
        "OAUTH_INVALID_GRANT",
        True,
    ),
    "429": (oauth_error("rate_limit_exceeded", 429), "OAUTH_UNAVAILABLE", False),
    "500": (oauth_error("internal_failure", 500), "OAUTH_UNAVAILABLE", False),
    "502 page": (answer(502, b"<html>"), "OAUTH_UNAVAILABLE", False),
    "503": (answer(503, b""), "OAUTH_UNAVAILABLE", False),
    "504": (answer(504, b""), "OAUTH_UNAVAILABLE", False),
    "200 page": (answer(200, b"<html>"), "OAUTH_PROTOCOL", False),
    "200 of another form": (answer(200, b"[1]"), "OAUTH_PROTOCOL", False),
    "200 without a token": (answer(200, b"{}"), "OAUTH_PROTOCOL", False),
    "200 with an empty token": (answer(200, b'{"access_token": ""}'), "OAUTH_PROTOCOL", False),
    "200 with an odd life": (
        answer(200, b'{"access_token": "t1", "expires_in": "soon"}'),
        "OAUTH_PROTOCOL",
        False,
    ),
    "hang-up": (b"", "OAUTH_CONNECT", False),
    "not HTTP": (b"220 smtp ready\r\n", "OAUTH_CONNECT", False),
    "half an answer": (answer(200, b'{"access_token": "t1"}')[:-5], "OAUTH_CONNECT", False),
}


@pytest.mark.parametrize(("reply", "code", "permanent"), FAULTS.values(), ids=FAULTS.keys())
async def test_fault_of_the_token_endpoint(reply: bytes, code: str, permanent: bool) -> None:
    async with endpoint_and_tokens(backoff=60.0) as (endpoint, tokens):
        endpoint.will(reply)
        with pytest.raises(AuthFault) as raised:
            await tokens.get()
        assert (raised.value.code, raised.value.permanent) == (code, permanent)
        assert endpoint.count == 1  # google-auth does not try again by itself.
        results = await asyncio.gather(*(tokens.get() for _ in range(100)), return_exceptions=True)
        assert {str(result) for result in results} == {str(raised.value)}
        assert endpoint.count == 1  # Nor does AccessTokens, until the backoff is over.


async def test_unreachable_token_endpoint() -> None:
    credentials, _ = load_credentials(make_key(f"http://127.0.0.1:{closed_port()}/token"))
    async with kept(AccessTokens(credentials)) as tokens:
        with pytest.raises(AuthFault, match=r"OAUTH_CONNECT.*refused") as raised:
            await tokens.get()
        assert not raised.value.permanent


@pytest.mark.parametrize(
    "proxy",
    [
        "http://user:12#S3cr3t@127.0.0.1:1",
        "http://user:12/S3cr3t@127.0.0.1:1",
        "http://user:S3cr3t@S3cr3t.invalid:1",
        "http://user:S3cr3t@127.0.0.1:1",
        "S3cr3t://user:S3cr3t@127.0.0.1:1",
    ],
)
async def test_no_fault_of_a_proxy_shows_a_part_of_its_url(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("http_proxy", proxy)
    credentials, _ = load_credentials(make_key("http://token.example/token"))
    async with kept(AccessTokens(credentials)) as tokens:
        with pytest.raises(AuthFault) as raised:
            await tokens.get()
    assert raised.value.code == "OAUTH_CONNECT"
    assert "s3cr3t" not in str(raised.value).lower()


async def test_a_token_in_a_text_of_the_token_endpoint_is_hidden() -> None:
    token = f"ya29.{'Ab1' * 20}"
    body = {"error": "invalid_grant", "error_description": f"no good: {token}"}
    async with endpoint_and_tokens() as (endpoint, tokens):
        endpoint.will(answer(400, json.dumps(body).encode()))
        with pytest.raises(AuthFault, match="no good") as raised:
            await tokens.get()
    assert "Ab1" not in str(raised.value)


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while not writer.is_closing():
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.mark.parametrize("behaves", [silence, trickle])
async def test_a_hanging_token_endpoint_is_a_timeout(behaves: Callable[..., Any]) -> None:
    async with tcp_server(behaves) as port:
        credentials, _ = load_credentials(make_key(f"http://127.0.0.1:{port}/token"))
        async with kept(AccessTokens(credentials, timeout=0.2)) as tokens:
            callers = [asyncio.create_task(tokens.get()) for _ in range(10)]
            results = await asyncio.gather(*callers, return_exceptions=True)
    assert {(type(result), str(result)[:13]) for result in results} == {(AuthFault, "OAUTH_TIMEOUT")}


async def test_next_caller_after_the_backoff_refreshes() -> None:
    async with endpoint_and_tokens(backoff=0) as (endpoint, tokens):
        for count in (1, 2, 3):
            endpoint.will(answer(503, b""))
            with pytest.raises(AuthFault, match="OAUTH_UNAVAILABLE"):
                await tokens.get()
            assert endpoint.count == count
        endpoint.will_give("t1")
        assert await tokens.get() == "t1"


@pytest.mark.usefixtures("early_refresh")
async def test_failed_refresh_is_repeated_while_callers_get_the_old_token() -> None:
    async with endpoint_and_tokens(backoff=0.01) as (endpoint, tokens):
        endpoint.will_give("t1", expires_in=300)
        assert await tokens.get() == "t1"
        with capture_logs() as logs:
            endpoint.will(oauth_error("invalid_grant"))
            while await endpoint.asked.get() < 3:
                pass
        assert [entry["event"] for entry in logs] == ["access token refresh failed"]
        assert await tokens.get() == "t1"
        endpoint.will_give("t2")
        tokens.reject("t1")
        assert await tokens.get() == "t2"
        assert endpoint.count == 3


async def test_backoff_grows_up_to_a_limit() -> None:
    async with endpoint_and_tokens() as (endpoint, tokens):
        with capture_logs() as logs:
            for _ in range(10):
                tokens._retry_at = 0.0  # Ends the backoff.
                endpoint.will(answer(503, b""))
                with pytest.raises(AuthFault):
                    await tokens.get()
        pauses = [entry["retry_in_s"] for entry in logs]
        assert 1.0 <= pauses[0] <= 2.0 < pauses[3] < pauses[9]
        assert all(30.0 <= pause <= 60.0 for pause in pauses[6:])


async def test_a_failure_that_nobody_foresaw_is_one_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may start no more threads, say. No caller tries again before the backoff is over."""
    failures: list[str] = []
    begin = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if len(failures) == 10:  # callers did not wait: let this end
            return begin(thread)
        failures.append(thread.name)
        raise RuntimeError(f"can't start new thread {PEM}")

    async with endpoint_and_tokens(backoff=60.0) as (endpoint, tokens):
        endpoint.will_give("t1")
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(threading.Thread, "start", start)
            for _ in range(2):
                with pytest.raises(
                    AuthFault, match=r"OAUTH_CREDENTIALS: .* cannot be used now: RuntimeError$"
                ):
                    await tokens.get()
        assert failures == ["access-token"]
        assert [entry["event"] for entry in logs] == ["access token refresh failed"]
        tokens._retry_at = 0.0
        assert await tokens.get() == "t1"


async def test_closing_ends_the_wait() -> None:
    async with endpoint_and_tokens() as (endpoint, tokens):
        caller = asyncio.create_task(tokens.get())
        await endpoint.asked.get()
        await tokens.close()
        with pytest.raises(RuntimeError, match="closed"):
            await caller
        with pytest.raises(RuntimeError, match="closed"):
            await tokens.get()


async def test_the_proxy_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = make_tls(tmp_path)
    endpoint = TokenEndpoint()
    async with tunnelling_proxy() as proxy, tcp_server(endpoint.handle, tls.server) as endpoint.port:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tls.ca_file))
        credentials, _ = load_credentials(make_key(f"https://localhost:{endpoint.port}/token"))
        async with kept(AccessTokens(credentials)) as tokens:
            endpoint.will_give("t1")
            assert await tokens.get() == "t1"
        assert [head.split()[1] for head in proxy.heads] == [f"localhost:{endpoint.port}".encode()]


# --- which authorities it trusts ------------------------------------------------------------------------------------


async def test_the_trust_store_is_that_of_the_transports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSL_CERT_FILE or SSL_CERT_DIR alone decides, and not the list that requests brings, or its variables."""
    ours, theirs = make_tls(tmp_path), make_tls(_directory(tmp_path / "theirs"))
    by_hash = _directory(tmp_path / "by-hash")
    endpoint = TokenEndpoint()
    async with tcp_server(endpoint.handle, ours.server) as endpoint.port:
        credentials, _ = load_credentials(make_key(f"https://localhost:{endpoint.port}/token"))

        async def token() -> str:
            async with kept(AccessTokens(credentials)) as tokens:
                return await tokens.get()

        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ours.ca_file))
        monkeypatch.setenv("SSL_CERT_FILE", str(theirs.ca_file))
        with pytest.raises(AuthFault, match="its certificate is not valid"):
            await token()
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(theirs.ca_file))
        monkeypatch.setenv("SSL_CERT_FILE", str(ours.ca_file))
        endpoint.will_give("t1")
        assert await token() == "t1"
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("SSL_CERT_DIR", str(by_hash))
        name = await asyncio.create_subprocess_exec(
            "openssl", "x509", "-hash", "-noout", "-in", str(ours.ca_file), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await name.communicate()
        (by_hash / f"{out.decode().strip()}.0").write_bytes(ours.ca_file.read_bytes())
        endpoint.will_give("t2")
        assert await token() == "t2"


def _directory(path: Path) -> Path:
    path.mkdir()
    return path


# --- a key file that is replaced -----------------------------------------------------------------------


@pytest.fixture
def key_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    return tmp_path / "key.json"


def replace(path: Path, text: str) -> None:
    (path.parent / "new").write_text(text)
    (path.parent / "new").rename(path)


async def test_a_key_file_is_read_again_when_it_has_changed(key_path: Path) -> None:
    old, new = TokenEndpoint(), TokenEndpoint()
    async with tcp_server(old.handle) as old_port, tcp_server(new.handle) as new_port:
        replace(key_path, json.dumps(make_key(f"http://127.0.0.1:{old_port}/token")))
        credentials, _ = load_credentials(None)
        async with kept(AccessTokens(credentials, KeyFile.of_environment())) as tokens:
            old.will(oauth_error("invalid_grant"))
            with capture_logs() as logs, pytest.raises(AuthFault, match="OAUTH_INVALID_GRANT"):
                await tokens.get()
            assert logs[0]["remedy"] == "replace the key file: it is read again when it has changed"
            replace(key_path, "half a ke")
            old.will(oauth_error("invalid_grant"))  # the old key is used on
            with capture_logs() as logs, pytest.raises(AuthFault):
                await tokens.get()
            assert logs[0]["event"] == "the new key file cannot be used"
            replace(key_path, json.dumps(make_key(f"http://127.0.0.1:{new_port}/token")))
            new.will_give("t1")
            assert await tokens.get() == "t1"  # at once, although the backoff is not over
            assert tokens.fault is None


async def test_a_refusal_of_fcm_has_a_new_key_file_read(key_path: Path) -> None:
    endpoint = TokenEndpoint()
    async with tcp_server(endpoint.handle) as port:
        replace(key_path, json.dumps(make_key(f"http://127.0.0.1:{port}/token")))
        credentials, _ = load_credentials(None)
        async with kept(AccessTokens(credentials, KeyFile.of_environment())) as tokens:
            endpoint.will_give("t1")
            assert await tokens.get() == "t1"
            tokens.note_refusal()
            assert await tokens.get() == "t1"  # the file is the same
            replace(key_path, json.dumps(make_key(f"http://127.0.0.1:{port}/token", private_key_id="new")))
            assert await tokens.get() == "t1"
            tokens.note_refusal()
            endpoint.will_give("t2")
            assert await tokens.get() == "t2"


async def test_a_key_in_the_environment_needs_a_restart() -> None:
    async with endpoint_and_tokens() as (endpoint, tokens):
        endpoint.will(oauth_error("invalid_grant"))
        with capture_logs() as logs, pytest.raises(AuthFault):
            await tokens.get()
    assert "restart" in logs[0]["remedy"]
