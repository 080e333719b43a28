"""A client of the local FCM that shows each answer as it came."""

from __future__ import annotations

import json
import time
from typing import Any

import aiohttp
from google.auth import crypt, jwt

from listener.emulator import Emulator

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
APNS_ERROR = "type.googleapis.com/google.firebase.fcm.v1.ApnsError"
BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
# google-auth claims to be typed, but these are not.
RSASigner: Any = crypt.RSASigner
jwt_encode: Any = jwt.encode


class Reply:
    """A complete answer."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error = self.json["error"]
        assert isinstance(error, dict)
        assert error["code"] == self.status
        assert self.headers["Content-Type"] == "application/json; charset=UTF-8"
        return error

    @property
    def details(self) -> dict[str, dict[str, Any]]:
        return {detail["@type"]: detail for detail in self.error.get("details", [])}

    @property
    def violations(self) -> list[str | None]:
        return [v.get("field") for v in self.details.get(BAD_REQUEST, {}).get("fieldViolations", [])]

    @property
    def fcm_code(self) -> str | None:
        code = self.details.get(FCM_ERROR, {}).get("errorCode")
        assert code is None or isinstance(code, str)
        return code


class Client:
    """Makes the requests of a sender."""

    def __init__(self, emulator: Emulator, session: aiohttp.ClientSession) -> None:
        self.emulator = emulator
        self.session = session
        self.token = ""

    async def authorize(self) -> None:
        reply = await self.grant(assertion(self.emulator))
        assert reply.status == 200, reply.body
        self.token = reply.json["access_token"]

    async def request(self, method: str, path: str, **options: Any) -> Reply:
        async with self.session.request(method, self.emulator.endpoint + path, **options) as response:
            return Reply(response.status, response.headers, await response.read())

    async def post(self, body: Any, *, project: str = "demo-project", token: str | None = None) -> Reply:
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        return await self.request("POST", f"/v1/projects/{project}/messages:send", json=body, headers=headers)

    async def send(self, **message: Any) -> Reply:
        return await self.post({"message": message})

    async def grant(self, assertion: str, grant_type: str = GRANT) -> Reply:
        form = {"grant_type": grant_type, "assertion": assertion}
        return await self.request("POST", "/token", data=form)


def assertion(emulator: Emulator, *, key: str | None = None, **changes: Any) -> str:
    """A JWT as google-auth makes it, with some claims changed (None: omitted)."""
    account = emulator.service_account
    now = int(time.time())
    claims = {
        "iss": account["client_email"],
        "aud": "https://oauth2.googleapis.com/token",
        "iat": now,
        "exp": now + 3600,
        "scope": SCOPE,
        **changes,
    }
    signer = RSASigner.from_string(key or account["private_key"], account["private_key_id"])
    token = jwt_encode(signer, {name: value for name, value in claims.items() if value is not None})
    assert isinstance(token, bytes)
    return token.decode()
