"""Credentials for FCM, found and checked: a service-account key, or whatever else google-auth understands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google.auth
from google.auth import exceptions
from google.auth.credentials import Credentials
from google.oauth2 import service_account

from listener.fcm import key_text
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
            it; it continues a sentence about the key that was passed, or names the key file.
    """
    if service_account_info is not None:
        return _from_key(service_account_info)
    try:
        key = _key_file()
        if key is not None:
            return _from_key(key)
    except ValueError as error:
        raise ValueError(f"the key file {error}") from None
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
    """The service-account key that GOOGLE_APPLICATION_CREDENTIALS points at; None if google-auth has to read it.

    google-auth would read keys too, but it checks less, and some of its errors quote the key. Raises ValueError if
    nobody can use the file.
    """
    try:
        content = Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).read_bytes()
    except (KeyError, OSError, ValueError):
        return None
    try:
        info = key_text.parse(key_text.decode(content))
    except UnicodeDecodeError:
        raise ValueError("is no text: is it the right file?") from None
    if info.get("type") == "service_account":
        return info
    # google-auth knows the other types.
    if "type" not in info and (kind := key_text.kind_of(info)):
        raise ValueError(kind)
    return None


def _from_key(info: Mapping[str, Any]) -> tuple[Credentials, str | None]:
    if kind := key_text.kind_of(info):
        raise ValueError(kind)
    needed = ("client_email", "private_key", "token_uri")
    missing = [name for name in needed if not (isinstance(info.get(name), str) and info[name].strip())]
    if missing:
        raise ValueError(
            f"is no service-account key: {', '.join(missing)} missing or empty ({key_text.WHERE_TO_GET})"
        )
    if info.get("type") != "service_account":
        raise ValueError(
            'is no service-account key: type is not "service_account" '
            "(point GOOGLE_APPLICATION_CREDENTIALS at a file for other kinds of credentials)"
        )
    if not info["token_uri"].startswith(("https://", "http://")):
        raise ValueError("is a service-account key, but token_uri is not an http(s) URL")
    pem = key_text.pem(info["private_key"])
    if "-----BEGIN" not in pem:
        raise ValueError(
            "is a service-account key, but private_key is not PEM (it must begin with -----BEGIN PRIVATE KEY-----)"
        )
    try:
        credentials = service_account.Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
            {**info, "private_key": pem}, scopes=[SCOPE]
        )
        credentials.sign_bytes(b"probe")  # Only this shows that a key is not RSA.
    except Exception:
        raise ValueError("is a service-account key, but private_key is damaged or not an RSA key") from None
    return credentials.with_quota_project_from_environment(), info.get("project_id") or None


class KeyFile:
    """The file that GOOGLE_APPLICATION_CREDENTIALS names, watched for a replacement while the process runs.

    A secret that Kubernetes mounts is replaced by another file under the same path.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._read = self._signature()

    @classmethod
    def of_environment(cls) -> KeyFile | None:
        """None if the environment names no file."""
        path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        return cls(path) if path else None

    @property
    def has_changed(self) -> bool:
        """Whether the file differs from the one that was read last. A missing file does not count as a change."""
        now = self._signature()
        return now is not None and now != self._read

    def read(self) -> tuple[Credentials, str | None]:
        """What ``load_credentials`` gives for the file as it is now. Blocks. Raises ValueError."""
        self._read = self._signature()
        return load_credentials(None)

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
