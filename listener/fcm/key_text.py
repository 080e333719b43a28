"""Reads a key in the forms in which shells, .env files and secret stores leave it. Pure.

It accepts a form that can be read in one way only. For any other form, the error message says what the text looks like
and what to do. No message quotes a part of the key.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
from collections.abc import Mapping
from typing import Any

WHERE_TO_GET = "Firebase console, Project settings, Service accounts, Generate new private key"

_BASE64 = re.compile(r"[A-Za-z0-9+/_=\s-]{40,}")
_PATH = re.compile(r"(\.{0,2}/|~|[A-Za-z]:\\)[^\n{]*|[^\n{]{1,250}\.json")
_SERVER_KEY = re.compile(r"AAAA[A-Za-z0-9_-]{7}:[A-Za-z0-9_-]{20,}|AIza[A-Za-z0-9_-]{20,}")
_PEM = re.compile(r"(-----BEGIN [A-Z ]+-----)([A-Za-z0-9+/=\s]+)(-----END [A-Z ]+-----)")
_ESCAPED = re.compile(r'\{(\s|\\[nrt])*\\"')  # an object whose quotes are escaped
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def decode(content: bytes) -> str:
    """The text of a key file. Editors on Windows begin it with a byte order mark, and PowerShell writes UTF-16.

    Raises ValueError.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding)
    return content.decode()


def parse(text: str) -> dict[str, Any]:
    """The JSON object that a text holds: as it is, in quotes, with its quotes escaped, or encoded in base64.

    Raises:
        ValueError: it holds none. The message continues a sentence about the text, such as "... is a path".
    """
    text = text.strip("\ufeff \t\r\n")
    for _ in range(3):  # one form inside another
        if text.startswith("{"):
            break
        inner = _unwrapped(text)
        if inner is None:
            raise ValueError(_what_else(text))
        text = inner
    if _ESCAPED.match(text):
        text = _unescaped(f'"{text}"') or text
    try:
        # Not strict: a real line break inside the private key means the same as an escaped one.
        found = json.loads(text, strict=False)
    except ValueError:
        raise ValueError(_what_is_wrong(text)) from None
    if not isinstance(found, dict):
        raise ValueError("is JSON, but not an object")
    return found


def _unwrapped(text: str) -> str | None:
    """What a text holds in quotes or in base64; None if it is neither."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        return _unescaped(text) or text[1:-1].strip("\ufeff \t\r\n")
    if _BASE64.fullmatch(text):
        plain = "".join(text.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
        try:
            inner = decode(base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True))
        except (binascii.Error, ValueError):
            return None
        return inner.strip("\ufeff \t\r\n")
    return None


def _unescaped(text: str) -> str | None:
    """The text that a JSON string stands for; None if it is no JSON string."""
    try:
        found = json.loads(text, strict=False)
    except ValueError:
        return None
    return found.strip() if isinstance(found, str) else None


def _what_else(text: str) -> str:
    """Says what a text without a JSON object looks like, and what to do."""
    if text.startswith("["):
        return "is JSON, but not an object"
    if text.startswith("-----BEGIN"):
        return f"is only the private key: the whole content of the key file is needed ({WHERE_TO_GET})"
    if text.startswith(("<?xml", "<plist", "<!DOCTYPE")):
        return f"is a configuration file of an app; a service-account key is needed ({WHERE_TO_GET})"
    if _SERVER_KEY.fullmatch(text):
        return f"is an API key or a legacy server key, which FCM HTTP v1 does not take ({WHERE_TO_GET})"
    hint = "; it looks like a path: use GOOGLE_APPLICATION_CREDENTIALS" if _PATH.fullmatch(text) else ""
    return f"is not JSON: the whole content of a key file is needed{hint}"


def _what_is_wrong(text: str) -> str:
    """Says what is wrong with a text that begins like a JSON object."""
    if not text.endswith("}"):
        return (
            "is not JSON: its end is missing; put it in single quotes where a shell or a .env file reads it, or encode "
            "it in base64"
        )
    if "{'" in text[:20].replace(" ", ""):
        return "is not JSON: its names are in single quotes; use the content of the key file as it is"
    if '"' not in text:
        return (
            "is not JSON: its quotes are missing; put it in single quotes where a shell reads it, or encode it in "
            "base64"
        )
    return "is not JSON: the whole content of a key file is needed"


def kind_of(info: Mapping[str, Any]) -> str | None:
    """Says what a JSON object is if it is no service-account key, and what to do; None if it is one or is unknown."""
    match info:
        case {"type": "authorized_user"}:
            return f"is the login of a person (authorized_user), not a service-account key ({WHERE_TO_GET})"
        case {"type": "service_account"}:
            return None
        case {
            "type": "external_account" | "external_account_authorized_user" | "impersonated_service_account"
        }:
            return (
                'is no service-account key: type is not "service_account" (save it as a file, and set '
                "GOOGLE_APPLICATION_CREDENTIALS to its path)"
            )
        case {"web": {}} | {"installed": {}}:
            return f"is the key of an OAuth client, not a service-account key ({WHERE_TO_GET})"
        case {"project_info": _} | {"apiKey": _}:
            return f"is the configuration of an app, not a service-account key ({WHERE_TO_GET})"
        case _:
            return None


def pem(text: str) -> str:
    """Restores the line breaks of a private key, which are often escaped twice or have become spaces.

    PEM itself has no backslashes.
    """
    text = re.sub(r"\\+r", "", text)
    text = re.sub(r"\\+n", "\n", text).strip(" \t\r\n'\"")
    whole = _PEM.fullmatch(text)
    if whole is None:
        return text
    head, body, end = whole.groups()
    body = "".join(body.split())
    return "\n".join([head, *(body[i : i + 64] for i in range(0, len(body), 64)), end, ""])
