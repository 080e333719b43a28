"""What flyctl reads of a fly.toml, as far as this project uses it; anything else is refused.

There is no public schema, and ``fly deploy`` ignores what it does not know. Source: the structs in flyctl's
internal/appconfig (config.go, toplevelcheck.go, validation.go, patches.go) and those of fly-go in machine_types.go, in
August 2026.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr, model_validator

_DURATION = re.compile(r"(\d+(\.\d+)?(ns|us|ms|s|m|h))+")
_MEMORY = re.compile(r"(\d+)(mb|gb)")


def _duration(value: str) -> str:
    """As Go's time.ParseDuration reads it. A bare number is nanoseconds in one table and milliseconds in another."""
    if not _DURATION.fullmatch(value):
        raise ValueError("is not a duration with its unit, such as 30s")
    return value


def _memory(value: str) -> str:
    if not _MEMORY.fullmatch(value):
        raise ValueError("is not a size such as 512mb")
    return value


def _path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("does not begin with /")
    return value


Duration = Annotated[StrictStr, AfterValidator(_duration)]
Memory = Annotated[StrictStr, AfterValidator(_memory)]
UrlPath = Annotated[StrictStr, AfterValidator(_path)]
Port = Annotated[StrictInt, Field(ge=1, le=65535)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Build(_Table):
    dockerfile: StrictStr
    ignorefile: StrictStr | None = None


class Deploy(_Table):
    strategy: Literal["canary", "rolling", "immediate", "bluegreen"]
    release_command: StrictStr
    release_command_timeout: Duration
    wait_timeout: Duration


class Metrics(_Table):
    port: Port
    path: UrlPath
    processes: list[StrictStr]


class Check(_Table):
    type: Literal["http", "tcp"]
    port: Port
    method: Literal["get", "head"]
    path: UrlPath
    interval: Duration
    timeout: Duration
    grace_period: Duration
    processes: list[StrictStr]


class Restart(_Table):
    policy: Literal["always", "never", "on-failure"]
    processes: list[StrictStr]


class Vm(_Table):
    size: Literal[
        "shared-cpu-1x", "shared-cpu-2x", "shared-cpu-4x", "shared-cpu-8x", "performance-1x", "performance-2x"
    ]
    memory: Memory
    processes: list[StrictStr]


class FlyToml(_Table):
    app: StrictStr
    primary_region: Annotated[StrictStr, Field(pattern="^[a-z]{3}$")]
    kill_signal: Literal["SIGINT", "SIGTERM", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGSTOP"]
    kill_timeout: Duration
    build: Build
    deploy: Deploy
    env: dict[StrictStr, StrictStr]
    processes: dict[StrictStr, StrictStr]
    metrics: list[Metrics]
    checks: dict[StrictStr, Check]
    restart: list[Restart]
    vm: list[Vm]

    @model_validator(mode="after")
    def _processes_are_there(self) -> FlyToml:
        tables: list[Metrics | Check | Restart | Vm] = [
            *self.metrics,
            *self.checks.values(),
            *self.restart,
            *self.vm,
        ]
        for each in tables:
            if unknown := set(each.processes) - set(self.processes):
                raise ValueError(f"processes that [processes] does not name: {sorted(unknown)}")
        return self
