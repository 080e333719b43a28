"""Promises of the code in Dart and Swift, which nothing here can run, as far as its text shows them."""

from __future__ import annotations

import re

from tests.support.phone_pages import CODE

SERVICE = (CODE / "flutter/push_service.dart").read_text()
STORE = (CODE / "flutter/push_store.dart").read_text()
TELEMETRY = (CODE / "flutter/telemetry.dart").read_text()
EXTENSION = (CODE / "ios/NotificationService.swift").read_text()


def method(text: str, name: str) -> str:
    """The body of a method of Dart, from its name to the closing brace in its column."""
    found = re.search(rf"^((?:  )?)[\w<>?,. ]+ {name}\(.*?^\1\}}", text, re.MULTILINE | re.DOTALL)
    assert found
    return found[0]


def test_a_sign_out_that_fails_lets_the_next_user_register() -> None:
    """gotrue's signOut rethrows what is no 401 or 404, so without a network it throws."""
    assert re.search(r"finally \{[^}]*_isLeaving = false", method(SERVICE, "signOut"))


def test_a_phone_that_cannot_read_its_store_signs_the_user_out() -> None:
    body = method(SERVICE, "signOut")
    before = body.partition("finally {")[0]
    assert "PushStore" not in body
    assert "await _leave()" in before
    assert "auth.signOut" not in before


def test_the_start_of_the_app_waits_for_nothing() -> None:
    """A receipt of up to 10 s would hold the first frame; onTap may need the navigator, so it comes after it."""
    assert "await " not in method(SERVICE, "start")
    assert "\n  push.start();\n  runApp(" in (CODE / "flutter/main.dart").read_text()
    assert re.search(r"endOfFrame;\s+await _tapped", method(SERVICE, "_startedByTap"))


def test_no_more_receipts_wait_or_are_sent_at_once_than_the_database_takes() -> None:
    """Of 501 the database refuses all, at every start."""
    assert "const _mostReceipts = 500;" in STORE
    assert "take(_mostReceipts)" in method(STORE, "flushReceipts")
    assert "most: _mostReceipts" in method(STORE, "recordReceipt")
    assert "let mostReceipts = 500\n" in EXTENSION
    assert re.search(r"dropLast\(mostReceipts\) \{ defaults\.removeObject", EXTENSION)


def test_telemetry_keeps_a_copy_that_is_plain_json() -> None:
    assert "_records.add(jsonDecode(text)" in method(TELEMETRY, "log")
    assert "dropped += records.length" in method(TELEMETRY, "_freeze")
