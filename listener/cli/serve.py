"""What ``push-listener run`` does. It imports neither the emulator nor the demo, nor anything that only they need."""

from __future__ import annotations

import os

import structlog

from listener import config, log, process, tracing
from listener.cli.shared import Misconfigured
from listener.config import ConfigError, Settings
from listener.fcm.credentials import load_credentials
from listener.schema.served import Adoption
from listener.service import Service, credentials_for
from listener.web.server import PortTaken


def serve(adoption: Adoption | None) -> None:
    """Runs the service until a signal ends it. Raises ConfigError or Misconfigured."""
    settings = _load_settings()
    log.configure(settings.log_format, settings.log_level)
    _warn_of_misspelt_variables()
    credentials, project = credentials_for(settings)
    settings = _limit_to_open_files(settings)
    process.tune_garbage_collector(settings.max_in_flight)

    async def run() -> None:
        await Service(
            settings,
            credentials,
            project,
            on_overdue=_exit_overdue,
            on_stuck=process.exit_stuck,
            adoption=adoption,
            tracing=tracing.from_environment(),
        ).run()

    try:
        process.run(run())
    except PortTaken as error:
        raise Misconfigured(str(error)) from None


def _warn_of_misspelt_variables() -> None:
    for name, meant in config.misspelt(os.environ).items():
        structlog.get_logger(__name__).warning(
            "unknown variable: is it misspelt?", variable=name, known=meant
        )


def _load_settings() -> Settings:
    """Loads the settings. Raises ConfigError with the faults of the settings and of the credentials together."""
    try:
        return config.load()
    except ConfigError as error:
        raise ConfigError(error.faults + _faults_of_default_credentials(error.faults)) from None


def _faults_of_default_credentials(known: list[str]) -> list[str]:
    """What is wrong with the credentials that google-auth finds; nothing if a known fault is about credentials."""
    key, path = "FCM_SERVICE_ACCOUNT_JSON", "GOOGLE_APPLICATION_CREDENTIALS"
    if os.environ.get(key) or any(fault.startswith((key, path)) for fault in known):
        return []
    try:
        load_credentials(None)
    except ValueError as error:
        return [f"{key} / {path}: {error}"]
    return []


def _limit_to_open_files(settings: Settings) -> Settings:
    """Lowers MAX_IN_FLIGHT to what the limit of open files allows. Raises ConfigError if it allows no request."""
    allowed = process.make_room_for_requests(settings)
    if allowed == settings.max_in_flight:
        return settings
    fault = f"the limit of open files allows {allowed}; raise it (ulimit -n)"
    if allowed == 0:
        raise ConfigError([f"MAX_IN_FLIGHT: {fault}"])
    structlog.get_logger(__name__).warning(
        "MAX_IN_FLIGHT lowered", reason=fault, wanted=settings.max_in_flight
    )
    return settings.model_copy(update={"max_in_flight": allowed})


def _exit_overdue() -> None:
    structlog.get_logger(__name__).error("could not end in time")
    process.exit_now()
