"""Credentials for FCM, found and checked: a service-account key, or whatever else google-auth understands."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google.auth
from google.auth import exceptions
from google.auth.credentials import Credentials
from google.oauth2 import service_account

from listener.fcm.redaction import without_tokens

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"


def load_credentials(service_account_info: Mapping[str, Any] | None) -> tuple[Credentials, str | None]:
    """Credentials for FCM, and the id of the project they belong to, if they name one.

    Blocks: it reads files and, if there are none, asks the machine's metadata server. Call it before the event loop
    starts, or in a thread.

    Args:
        service_account_info: a service-account key, parsed; None to search where google-auth does:
            GOOGLE_APPLICATION_CREDENTIALS (a key, or a workload identity configuration), gcloud's own files, the
            metadata server.

    Raises:
        ValueError: the key, or what was found, cannot be used. The message says what is wrong and quotes nothing of
            it.
    """
    key = _key_file() if service_account_info is None else service_account_info
    if key is not None:
        return _from_key(key)
    try:
        credentials, project_id = google.auth.default(scopes=[SCOPE])
    except Exception as exc:  # Each fault of a configuration raises its own type.
        known = isinstance(exc, exceptions.GoogleAuthError) and exc.args
        reason = without_tokens(str(exc.args[0])) if known else type(exc).__name__
        raise ValueError(
            "no usable credentials (in FCM_SERVICE_ACCOUNT_JSON, GOOGLE_APPLICATION_CREDENTIALS or this "
            f"machine's metadata server): {reason}"
        ) from None
    return credentials, project_id


def _key_file() -> Mapping[str, Any] | None:
    """The service-account key that GOOGLE_APPLICATION_CREDENTIALS points at, if it is one.

    google-auth would read it too, but it checks less, and some of its errors quote the key.
    """
    try:
        info = json.loads(Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).read_bytes())
    except (KeyError, OSError, ValueError):
        return None
    return info if isinstance(info, dict) and info.get("type") == "service_account" else None


def _from_key(info: Mapping[str, Any]) -> tuple[Credentials, str | None]:
    needed = ("client_email", "private_key", "token_uri")
    missing = [name for name in needed if not (isinstance(info.get(name), str) and info[name].strip())]
    if missing:
        raise ValueError(
            f"not a service-account key: {', '.join(missing)} missing or empty "
            "(Firebase console, Project settings, Service accounts, Generate new private key)"
        )
    if info.get("type") != "service_account":
        raise ValueError(
            'not a service-account key: type is not "service_account" '
            "(point GOOGLE_APPLICATION_CREDENTIALS at a file for other kinds of credentials)"
        )
    if not info["token_uri"].startswith(("https://", "http://")):
        raise ValueError("service-account key: token_uri is not an http(s) URL")
    # A shell or a .env file often leaves the line breaks escaped twice. PEM itself has no backslashes.
    pem = info["private_key"].replace("\\n", "\n")
    if "-----BEGIN" not in pem:
        raise ValueError(
            "service-account key: private_key is not PEM (it must begin with -----BEGIN PRIVATE KEY-----)"
        )
    try:
        credentials = service_account.Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
            {**info, "private_key": pem}, scopes=[SCOPE]
        )
        credentials.sign_bytes(b"probe")  # Only this shows that a key is not RSA.
    except Exception:
        raise ValueError("service-account key: private_key is damaged or not an RSA key") from None
    return credentials.with_quota_project_from_environment(), info.get("project_id") or None
