"""Faults of the code that readers copy, as far as its text shows them."""

from __future__ import annotations

import re
import runpy

import pytest

from tests.support.service import PROJECT

FLUTTER = PROJECT / "docs/phones/flutter"


def method(text: str, name: str) -> str:
    """The body of a method of Dart, from its name to the closing brace in its column."""
    found = re.search(rf"^((?:  )?)[\w<>?,. ]+ {name}\(.*?^\1\}}", text, re.MULTILINE | re.DOTALL)
    assert found
    return found[0]


def test_a_sign_out_that_fails_lets_the_next_user_register() -> None:
    """gotrue's signOut rethrows what is no 401 or 404, so without a network it throws; the flag would stay."""
    body = method((FLUTTER / "push_service.dart").read_text(), "signOut")
    assert re.search(r"finally \{[^}]*_isLeaving = false", body)


def test_the_start_of_the_app_does_not_wait_for_a_request() -> None:
    """main() awaits start() before runApp(): after a tap the receipt, of up to 10 s, would hold the first frame."""
    body = method((FLUTTER / "push_service.dart").read_text(), "start")
    assert "await _tapped" not in body


def test_no_more_receipts_are_sent_at_once_than_the_database_takes() -> None:
    """The extension of iOS adds without a bound; of 501 the database refuses all, at every start."""
    body = method((FLUTTER / "push_store.dart").read_text(), "flushReceipts")
    assert "500" in body


def test_djangos_settings_keep_what_the_address_says_of_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "DATABASE_URL", "postgresql://u:p@db.example/shop?sslmode=verify-full&sslrootcert=/ca.pem"
    )
    monkeypatch.setenv("DJANGO_SECRET_KEY", "k")
    settings = runpy.run_path(str(PROJECT / "examples/django_shop/settings.py"))
    assert settings["DATABASES"]["default"].get("OPTIONS", {}).get("sslmode") == "verify-full"
