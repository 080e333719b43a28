"""How a run of the benchmark is to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import click

from listener.config import Settings


@dataclass(frozen=True, slots=True)
class Options:
    runs: int = 3
    quick: bool = False
    latency_ms: float = 50.0
    """Of FCM's answers, where that matters."""
    tls: bool | None = None
    """None: both, where it matters most, else without."""
    peers: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further environment of push-listener."""

    @property
    def secure(self) -> bool:
        """Whether pushes go over TLS where only one way is tried."""
        return self.tls is True


def _settings(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for one in given:
        name, equals, value = one.partition("=")
        if name.lower() not in Settings.model_fields:
            raise click.BadParameter(f"push-listener has no setting {name}")
        if not equals:
            raise click.BadParameter(f"{name} has no value (NAME=VALUE)")
        found[name.upper()] = value
    return found


setting = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_settings,
    help="For push-listener; may be given again.",
)
