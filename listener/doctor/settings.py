"""The settings: all faults at once, as ``run`` reports them, and the settings that can be used in spite of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from listener import config
from listener.config import ConfigError, DatabaseSettings, Settings
from listener.doctor.findings import Finding, Group

_GROUP = Group("settings")
_KEY = ("fcm_service_account_json", "google_application_credentials")
_OF_DATABASE = frozenset(DatabaseSettings.model_fields)

# A placeholder with which the other settings can be read. Nothing connects to it.
_NO_DATABASE = "dbname=unknown"


@dataclass(frozen=True, slots=True)
class Read:
    """What could be read of the settings."""

    faults: list[str]
    database: DatabaseSettings | None
    """None: an address or another setting of the database is wrong."""
    service: Settings | None
    """All settings, with defaults in place of the wrong ones. Its database addresses must not be used."""
    is_key_wrong: bool
    """Whether the setting that holds or names the key is wrong."""


def read() -> Read:
    """Reads the environment."""
    try:
        settings = config.load()
    except ConfigError as error:
        return _without(error.faults)
    return Read([], settings, settings, is_key_wrong=False)


def _without(faults: list[str]) -> Read:
    wrong = {fault.split()[0].rstrip(":").lower() for fault in faults}
    defaults = {
        name: field.default
        for name, field in Settings.model_fields.items()
        if name in wrong - {"database_url"}
    }
    if "database_url" in wrong:
        defaults["database_url"] = _NO_DATABASE
    service: Settings | None
    try:
        service = config.load(**defaults)
    except ConfigError:  # a default contradicts another setting
        service = None
    database = None if wrong & _OF_DATABASE else config.load_database()
    return Read(faults, database, service, is_key_wrong=bool(wrong.intersection(_KEY)))


def judge(read: Read, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Every fault, and every variable that looks misspelt."""
    for fault in read.faults:
        yield _GROUP.wrong_setting(fault)
    for name, meant in config.misspelt(environment).items():
        yield _GROUP.warning(f"{name} is unknown: is it misspelt?", f"rename it to {meant}, if that is meant")
    if not read.faults:
        yield _GROUP.ok("push-listener run can use them")
