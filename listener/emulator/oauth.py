"""The token endpoint's side of OAuth: the emulator's own service account, the JWT-bearer grant, the issued tokens.

Sources: Google, "Using OAuth 2.0 for Server to Server Applications"; RFC 7523.
"""

from __future__ import annotations

import base64
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from listener.emulator import answers
from listener.emulator.answers import Answer

ACCOUNT = "firebase-adminsdk-emulator"
"""The name of the service account, by which the emulator recognizes its own keys. Google's names end with five more
characters."""

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
SCOPES = frozenset(
    {
        "https://www.googleapis.com/auth/firebase.messaging",
        "https://www.googleapis.com/auth/cloud-platform",
    }
)
GOOGLE_AUDIENCES = frozenset(
    {
        # google-auth signs for the first of these audiences, whatever token_uri the key names. Older Google libraries
        # sign for the others.
        "https://oauth2.googleapis.com/token",
        "https://www.googleapis.com/oauth2/v4/token",
        "https://accounts.google.com/o/oauth2/token",
    }
)
MAX_ASSERTION_LIFE = 3600.0
CLOCK_SKEW = 300.0
"""Seconds by which the times of an assertion may be too early or too late."""

REMEMBERED = 10_000
"""How many access tokens are remembered, to tell an expired token from one that was never issued."""

_TIMEFRAME = (
    "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
    "Check your iat and exp values in the JWT claim."
)


class Refused(Exception):
    """The assertion is not valid; ``code`` and ``description`` are those of RFC 6749, section 5.2."""

    def __init__(self, code: str, description: str) -> None:
        super().__init__(description)
        self.code = code
        self.description = description


class ServiceAccount:
    """A service account with a new key pair."""

    def __init__(self, project_id: str) -> None:
        self._private_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._project_id = project_id
        self._key_id = secrets.token_hex(20)
        self._client_id = "1" + "".join(secrets.choice("0123456789") for _ in range(20))
        self.email = f"{ACCOUNT}@{project_id}.iam.gserviceaccount.com"

    def key(self, origin: str) -> dict[str, str]:
        """The key file in the form of the Firebase console, with ``origin`` as the token server."""
        private = self._private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return {
            "type": "service_account",
            "project_id": self._project_id,
            "private_key_id": self._key_id,
            "private_key": private.decode(),
            "client_email": self.email,
            "client_id": self._client_id,
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": f"{origin}/token",
            "auth_provider_x509_cert_url": "https://www.googleapis.com/oauth2/v1/certs",
            "client_x509_cert_url": "https://www.googleapis.com/robot/v1/metadata/x509/"
            + self.email.replace("@", "%40"),
            "universe_domain": "googleapis.com",
        }

    def verify(self, assertion: str, own_audience: str, now: float) -> None:
        """Checks a JWT: signature, iss, aud, times and scope. Raises Refused.

        ``now`` is Unix time in seconds.
        """
        signed, _, signature = assertion.rpartition(".")
        try:
            header, claims = (_decode_object(part) for part in signed.split("."))
            signature_bytes = _decode(signature)
        except ValueError:
            raise Refused("invalid_grant", "Bad Request") from None
        if header.get("alg") != "RS256":
            raise Refused("invalid_grant", "Invalid JWT: Only RS256 is supported.")
        if claims.get("iss") != self.email:
            raise Refused("invalid_grant", "Invalid grant: account not found")
        try:
            self._private_key.public_key().verify(
                signature_bytes,
                signed.encode(),
                padding.PKCS1v15(),
                hashes.SHA256(),
            )
        except InvalidSignature:
            raise Refused("invalid_grant", "Invalid JWT Signature.") from None
        if claims.get("aud") not in GOOGLE_AUDIENCES | {own_audience}:
            raise Refused("invalid_grant", "Invalid JWT: Failed audience check.")
        issued, expires = claims.get("iat"), claims.get("exp")
        if not _in_timeframe(issued, expires, now):
            raise Refused("invalid_grant", _TIMEFRAME)
        scope = claims.get("scope")
        if not isinstance(scope, str) or SCOPES.isdisjoint(scope.split()):
            raise Refused("invalid_scope", "Invalid OAuth scope or ID token audience provided.")


def _decode(segment: str) -> bytes:
    return base64.b64decode(segment + "=" * (-len(segment) % 4), altchars=b"-_", validate=True)


def _decode_object(segment: str) -> dict[str, Any]:
    value = orjson.loads(_decode(segment))
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _in_timeframe(issued: object, expires: object, now: float) -> bool:
    if not isinstance(issued, int | float) or not isinstance(expires, int | float):
        return False
    return (
        issued <= now + CLOCK_SKEW
        and now <= expires + CLOCK_SKEW
        and 0 < expires - issued <= MAX_ASSERTION_LIFE
    )


class IssuedTokens:
    """The issued access tokens, and when each expires."""

    def __init__(self, lifetime: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.lifetime = lifetime
        self.issued = 0
        self._clock = clock
        self._expires: OrderedDict[str, float] = OrderedDict()

    def issue(self) -> Answer:
        """Issues a new access token; returns the answer of the token endpoint."""
        token = f"ya29.emulator-{secrets.token_urlsafe(96)}"
        self._expires[token] = self._clock() + self.lifetime
        self.issued += 1
        if len(self._expires) > REMEMBERED:
            self._expires.popitem(last=False)
        return answers.oauth_token(token, math.floor(self.lifetime))

    def expire_all(self) -> None:
        """Expires every access token issued so far."""
        self._expires = OrderedDict.fromkeys(self._expires, -math.inf)

    def check(self, authorization: str | None) -> Answer | None:
        """What FCM answers to a request with this ``Authorization`` header; None if the token is valid."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return answers.credentials_missing()
        expires = self._expires.get(token)
        if expires is None:
            return answers.credentials_invalid("ACCESS_TOKEN_TYPE_UNSUPPORTED")
        if expires <= self._clock():
            return answers.credentials_invalid("ACCESS_TOKEN_EXPIRED")
        return None


def grant(
    form: Mapping[str, str], account: ServiceAccount, tokens: IssuedTokens, own_audience: str, now: float
) -> Answer:
    """Answers one POST to the token endpoint. ``now`` is Unix time in seconds."""
    grant_type = form.get("grant_type")
    if not grant_type:
        return answers.oauth_error("invalid_request", "Missing required parameter: grant_type")
    if grant_type != GRANT_TYPE:
        return answers.oauth_error("unsupported_grant_type", f"Invalid grant_type: {grant_type}")
    assertion = form.get("assertion")
    if not assertion:
        return answers.oauth_error("invalid_request", "Missing required parameter: assertion")
    try:
        account.verify(assertion, own_audience, now)
    except Refused as refused:
        return answers.oauth_error(refused.code, refused.description)
    return tokens.issue()
