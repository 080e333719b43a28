"""Every setting, in one frozen object: read from the environment, checked at start, every fault at once."""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    HttpUrl,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from listener.fcm.auth import REFRESH_TIMEOUT
from listener.fcm.transports.choose import TransportName, check_installed
from listener.postgres import address


class ConfigError(Exception):
    """The configuration cannot be used; ``faults`` lists everything that is wrong with it, one line each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def _dsn(value: SecretStr) -> SecretStr:
    return SecretStr(address.checked(value.get_secret_value()))


def _key(value: object) -> object:
    """The service-account key as a dict; the JSON text never reaches a message."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        key = orjson.loads(value)
    except orjson.JSONDecodeError:
        hint = "; it looks like a path: use GOOGLE_APPLICATION_CREDENTIALS" if "/" in value[:200] else ""
        raise ValueError(f"is not JSON; put the whole content of the key file into it{hint}") from None
    if not isinstance(key, dict):
        raise ValueError("is JSON, but not an object")
    from listener.fcm.credentials import load_credentials  # Slow to import, and no other setting needs it.

    load_credentials(key)  # raises ValueError, with a text that quotes nothing of the key
    return key


def _readable(value: Path | None) -> Path | None:
    if value is not None and not value.is_file():
        raise ValueError("names a file that is not there (or not readable by this process)")
    return value


def _long_enough(value: SecretStr | None) -> SecretStr | None:
    if value is not None and len(value) < 8:
        raise ValueError("has fewer than 8 characters: it can be guessed")
    return value


def _longest_send(request_timeout: float) -> float:
    return 2 * (REFRESH_TIMEOUT + request_timeout)


def _plain_endpoint(value: HttpUrl) -> HttpUrl:
    if value.username or value.password or "@" in (value.path or ""):
        raise ValueError("holds a user name or password: FCM takes access tokens only")
    if value.query is not None or value.fragment is not None:
        raise ValueError("goes on with a ? or #: it is the part of the URL before /v1/projects")
    return value


def _blank_is_none(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def age(value: str) -> timedelta:
    """Reads 12h, 30d or 8w. Raises ValueError, also for what is less than an hour or more than a century."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([hdw])", value.strip().lower())
    if match is None or (found := int(match[1]) * _UNITS[match[2]]) > timedelta(days=36_525):
        raise ValueError("is not an age such as 12h, 30d or 8w")
    return found


def _age(value: object) -> object:
    return age(value) if isinstance(value, str) else value


Dsn = Annotated[SecretStr, AfterValidator(_dsn)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(BaseSettings):
    """The environment of ``push-listener run``. Times in seconds."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", hide_input_in_errors=True, env_ignore_empty=True
    )

    database_url: Dsn = Field(description="Postgres to work on; a pooler is fine here")
    listen_database_url: Dsn | None = Field(
        None,
        description="a direct or session-mode address for LISTEN, when DATABASE_URL is a transaction pooler",
    )
    fcm_project_id: Annotated[str | None, BeforeValidator(_blank_is_none)] = Field(
        None, pattern=r"^[a-z][a-z0-9.:-]{4,}$", description="Firebase project; default: the key's"
    )
    fcm_service_account_json: Annotated[dict[str, Any] | None, NoDecode, BeforeValidator(_key)] = Field(
        None, repr=False, description="the service-account key itself, as JSON"
    )
    google_application_credentials: Annotated[Path | None, AfterValidator(_readable)] = Field(
        None, description="path of a key, or anything else that google-auth understands"
    )
    fcm_endpoint: Annotated[HttpUrl, AfterValidator(_plain_endpoint)] = Field(
        HttpUrl("https://fcm.googleapis.com"), description="where FCM HTTP v1 is"
    )

    fcm_quota: int = Field(
        600_000, ge=60, le=1_000_000_000, description="messages a minute that FCM takes from the project"
    )
    fcm_ramp: Annotated[float, Field(ge=0, le=86_400)] = Field(
        60.0, description="from nothing to the whole rate (FCM asks for 60); 0: at once"
    )

    host: str | None = Field(None, description="address the web server binds to; default: all of them")
    port: int = Field(
        8080, ge=0, le=65535, description="port of /metrics, /healthz and /readyz; 0: any free one"
    )
    metrics_token: Annotated[SecretStr | None, AfterValidator(_long_enough)] = Field(
        None,
        description="bearer token for /metrics; without it /metrics is open on loopback only",
    )
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_lower)] = Field(
        "text", description="text or json"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        "info", description="least level to log"
    )

    max_in_flight: int = Field(
        1250,
        ge=1,
        le=100_000,
        description="most requests to FCM under way at once, an eighth kept for high priority",
    )
    claim_batch: int = Field(500, ge=1, le=10_000, description="most rows taken in one claim")
    settle_batch: int = Field(500, ge=1, le=10_000, description="most rows settled in one statement")
    request_timeout: Seconds = Field(15.0, description="for one request to FCM (FCM asks for at least 10)")
    connect_timeout: Seconds = Field(10.0, description="for one connection to FCM")
    transport: Annotated[TransportName, BeforeValidator(_lower), AfterValidator(check_installed)] = Field(
        "http1",
        description="http1, HTTP/1.1 at the least cost; http2, an extra to install; or aiohttp, HTTP/1.1",
    )
    lease: Seconds = Field(120.0, description="how long a claimed row belongs to this worker")
    max_tries: int = Field(5, ge=1, le=100, description="tries before a push is dead")
    retry_floor: Seconds = Field(10.0, description="least wait before a retry (FCM asks for at least 10)")
    retry_cap: Seconds = Field(3600.0, description="longest wait before a retry, Retry-After excepted")
    shutdown_grace: Seconds = Field(25.0, description="from SIGTERM to the end of the process")
    doorbell: Literal["listen", "sweep"] = Field(
        "listen",
        description="listen for new rows; or, behind a transaction pooler, sweep: look every few seconds",
    )
    heartbeat: Seconds = Field(
        60.0, ge=1, description="silence after which the LISTEN connection proves itself"
    )
    token_loss_guard: bool = Field(
        True, description="keep tokens that FCM calls dead while it calls those of nearly all users dead"
    )
    sweep_interval: Seconds = Field(
        14.0,
        ge=1,
        description="longest time without a look for due rows and for strangers' locks (DOORBELL=sweep: at most 5)",
    )
    depth_interval: Seconds = Field(
        15.0, ge=1, description="between two counts of the queue while it is busy"
    )
    retention: Annotated[timedelta | None, BeforeValidator(_age)] = Field(
        None,
        description="age at which pushes that have ended are deleted, such as 30d or 12h; default: never",
    )
    worker_name: str | None = Field(
        None, max_length=200, description="shown in push_listener.workers; default: host name"
    )
    installation: Annotated[str | None, BeforeValidator(_blank_is_none)] = Field(
        None,
        max_length=200,
        description="name of this installation, by which it knows its database instead of by the address",
    )

    @field_validator("connect_timeout")
    @classmethod
    def _part_of_a_request(cls, seconds: float, info: ValidationInfo) -> float:
        if seconds >= info.data.get("request_timeout", float("inf")):
            raise ValueError("is not less than REQUEST_TIMEOUT, of which it is a part")
        return seconds

    @field_validator("lease")
    @classmethod
    def _outlives_a_send(cls, lease: float, info: ValidationInfo) -> float:
        least = _longest_send(info.data.get("request_timeout", 0.0)) + 5.0
        if lease < least:
            raise ValueError(
                f"is {lease:g}, but must be at least {least:g}, twice REQUEST_TIMEOUT and more: a row must not "
                "be taken from a worker that is still sending it"
            )
        return lease

    @field_validator("retry_cap")
    @classmethod
    def _not_below_the_floor(cls, cap: float, info: ValidationInfo) -> float:
        if cap < info.data.get("retry_floor", 0):
            raise ValueError("is less than RETRY_FLOOR")
        return cap

    @property
    def longest_send(self) -> float:
        """Seconds that one send may take at the most: an access token that is refused, and another."""
        return _longest_send(self.request_timeout)

    @property
    def longest_sleep(self) -> float:
        """Seconds between two looks at the queue at the most; without a doorbell they are all there is."""
        return min(self.sweep_interval, 5.0) if self.doorbell == "sweep" else self.sweep_interval

    @property
    def listen_dsn(self) -> str:
        """Where LISTEN and migrations go."""
        return (self.listen_database_url or self.database_url).get_secret_value()

    @property
    def metrics_closed(self) -> bool:
        """No token, and an address that others can reach: then nobody gets /metrics."""
        if self.metrics_token is not None:
            return False
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host or "::").is_loopback
        except ValueError:
            return True


def load(**overrides: object) -> Settings:
    """Settings from the environment. Raises ConfigError naming every fault, and no secret."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError(
            [_line(dict(fault)) for fault in error.errors(include_input=False, include_url=False)]
        ) from None


def _line(fault: dict[str, Any]) -> str:
    name = str(fault["loc"][0]).upper()
    if fault["type"] == "missing":
        return f"{name} is not set"
    text = str(fault["msg"]).removeprefix("Value error, ")
    return f"{name} {text}" if text != fault["msg"] else f"{name}: {text}"


def describe() -> list[tuple[str, str, str]]:
    """Every variable, its default and what it means, for --help and the README."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "required" if field.is_required() else "" if field.default is None else str(field.default)
        rows.append((name.upper(), default, field.description or ""))
    return rows
