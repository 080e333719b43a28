"""``push-listener run``. It imports neither the emulator nor the demo, nor anything that only they need."""

from __future__ import annotations

import os
from itertools import groupby
from typing import get_args

import click
import structlog

from listener import config, log, process, tracing
from listener.cli.shared import Misconfigured
from listener.config import ConfigError, Settings, Variable
from listener.fcm.credentials import load_credentials
from listener.schema import served
from listener.service import Service, credentials_for
from listener.web.server import PortTaken


class _Run(click.Command):
    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists every environment variable."""
        formatter.write_paragraph()
        formatter.write_text("Environment variables, with defaults in brackets and times in seconds:")
        for group, variables in groupby(config.describe(), key=lambda variable: variable.group):
            with formatter.section(group):
                formatter.write_dl([(variable.name, _meaning(variable)) for variable in variables])


def _meaning(variable: Variable) -> str:
    return variable.meaning + (f" [{variable.default}]" if variable.default else "")


@click.command(cls=_Run)
@click.option(
    "--adopt-copy",
    "adoption",
    type=click.Choice(get_args(served.Adoption)),
    help="If the database is a copy of one that was served before, or has a new address: let the pushes that wait in "
    "it expire, or send them.",
)
def command(adoption: served.Adoption | None) -> None:
    """Run the service until SIGTERM or SIGINT.

    Environment variables are its whole configuration. If any of them is wrong, every fault is reported at once and
    the exit code is 2.
    """
    settings = _load_settings()
    log.configure(settings.log_format, settings.log_level)
    _warn_of_misspelt_variables()
    credentials, project = credentials_for(settings)
    settings = _limit_to_open_files(settings)
    process.tune_garbage_collector(settings.max_in_flight)

    async def serve() -> None:
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
        process.run(serve())
    except PortTaken as error:
        raise Misconfigured(str(error)) from None


def _warn_of_misspelt_variables() -> None:
    for name, meant in config.misspelt(os.environ).items():
        structlog.get_logger(__name__).warning(
            "unknown variable: is it misspelt?", variable=name, known=meant
        )


def _load_settings() -> Settings:
    """Raises ConfigError with the faults of the settings and of the credentials together."""
    try:
        return config.load()
    except ConfigError as error:
        raise ConfigError(error.faults + _faults_of_default_credentials(error.faults)) from None


def _faults_of_default_credentials(known: list[str]) -> list[str]:
    """What is wrong with the credentials that google-auth finds, unless the known faults are about credentials."""
    key, path = "FCM_SERVICE_ACCOUNT_JSON", "GOOGLE_APPLICATION_CREDENTIALS"
    if os.environ.get(key) or any(fault.startswith((key, path)) for fault in known):
        return []
    try:
        load_credentials(None)
    except ValueError as error:
        return [f"{key} / {path}: {error}"]
    return []


def _limit_to_open_files(settings: Settings) -> Settings:
    """Lowers MAX_IN_FLIGHT to what the limit of open files allows. Raises ConfigError if that is nothing."""
    allowed = process.make_room_for_requests(settings.max_in_flight)
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
