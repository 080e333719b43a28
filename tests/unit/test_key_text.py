"""Keys in the forms in which shells, .env files and secret stores leave them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.fcm.key_text import kind_of, parse

PEM = "-----BEGIN PRIVATE KEY-----\nMIIE\nS3cr3t\n-----END PRIVATE KEY-----\n"
KEY = {"type": "service_account", "project_id": "p1", "private_key": PEM}
TEXT = json.dumps(KEY, indent=2)

FORMS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "one line": lambda text: json.dumps(json.loads(text)),
    "BOM": lambda text: "\ufeff" + text,
    "blanks around": lambda text: f"\r\n {text}\n\n",
    "single quotes": lambda text: f"'{text}'",
    "double quotes": lambda text: f'"{text}"',
    "a JSON string": json.dumps,
    "a JSON string without its quotes": lambda text: json.dumps(text)[1:-1],
    "escaped quotes": lambda text: text.replace('"', '\\"'),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 with line breaks": lambda text: base64.encodebytes(text.encode()).decode(),
    "base64 for URLs without padding": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "base64 in quotes": lambda text: f"'{base64.b64encode(text.encode()).decode()}'",
    "base64 of a text with a BOM": lambda text: base64.b64encode(text.encode("utf-8-sig")).decode(),
    "base64 of UTF-16": lambda text: base64.b64encode(text.encode("utf-16")).decode(),
    "real line breaks in the private key": lambda text: text.replace("\\n", "\n"),
    "the same with those of Windows": lambda text: text.replace("\\n", "\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_what_can_be_read_in_one_way_is_read(form: Callable[[str], str]) -> None:
    found = parse(form(TEXT))
    found["private_key"] = found["private_key"].replace("\\n", "\n").replace("\r\n", "\n")
    assert found == KEY


NOT_JSON = "is not JSON: the whole content of a key file is needed"
PATH = NOT_JSON + "; it looks like a path: use GOOGLE_APPLICATION_CREDENTIALS"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S3cr3t", NOT_JSON),
        ("/etc/S3cr3t", PATH),
        ("./S3cr3t.json", PATH),
        ("~/S3cr3t", PATH),
        ("S3cr3t.json", PATH),
        (r"C:\S3cr3t\key.json", PATH),
        ("'/etc/S3cr3t.json'", PATH),
        ('["S3cr3t"]', "is JSON, but not an object"),
        (PEM, "is only the private key"),
        (TEXT[:60], "is not JSON: its end is missing; put it in single quotes"),
        ("{", "its end is missing"),
        ("{'type': 'S3cr3t'}", "its names are in single quotes"),
        ("{type:service_account,private_key:S3cr3t}", "its quotes are missing"),
        (TEXT.replace('"p1"', '"p"1"'), NOT_JSON),
        ("AIzaSyS3cr3t" + "x" * 30, "is an API key or a legacy server key"),
        ("AAAAabcdefg:APA91bS3cr3t" + "x" * 100, "is an API key or a legacy server key"),
        ("<?xml version='1.0'?><plist>S3cr3t</plist>", "is a configuration file of an app"),
        (base64.b64encode(b"S3cr3t that is no object, in base64").decode(), NOT_JSON),
        (base64.b64encode(b"\xff\x00" * 40).decode(), NOT_JSON),
    ],
)
def test_what_cannot_is_named_and_not_quoted(text: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # its text is looked at
        parse(text)
    assert str(refused.value).startswith(message) or message in str(refused.value)
    assert "S3cr3t" not in str(refused.value)
    assert (refused.value.__cause__, refused.value.__context__) == (None, None) or (
        refused.value.__suppress_context__
    )


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"type": "authorized_user", "refresh_token": "S3cr3t"}, "is the login of a person"),
        ({"type": "external_account"}, 'type is not "service_account"'),
        ({"web": {"client_secret": "S3cr3t"}}, "is the key of an OAuth client"),
        ({"installed": {"client_secret": "S3cr3t"}}, "is the key of an OAuth client"),
        ({"apiKey": "S3cr3t", "authDomain": "x"}, "is the configuration of an app"),
        ({"project_info": {}, "client": []}, "is the configuration of an app"),
    ],
)
def test_other_kinds_of_files_are_named(info: dict[str, object], message: str) -> None:
    kind = kind_of(info)
    assert kind is not None
    assert message in kind
    assert "S3cr3t" not in kind


def test_a_service_account_key_is_no_other_kind() -> None:
    assert kind_of(KEY) is None
    assert kind_of({}) is None


@given(st.text(max_size=80), st.text(max_size=80))
def test_no_message_quotes_the_text(before: str, after: str) -> None:
    refused = ""
    try:
        parse(f"{before}S3cr3t{after}")
    except ValueError as error:
        refused = str(error)
    assert "S3cr3t" not in refused
