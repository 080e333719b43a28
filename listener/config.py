"""Settings from the environment: parsed and checked at start, with every fault reported at once.

``DatabaseSettings`` is for commands that need only the database. ``Settings`` adds what the service needs. The fields
are the only description of the variables: ``describe`` reads them for ``--help`` and docs/configuration.md.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    HttpUrl,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from listener.fcm import key_text
from listener.fcm.transports.choose import TransportName
from listener.postgres.batch_limit import MOST_CLAIMED


class ConfigError(Exception):
    """The configuration cannot be used; ``faults`` lists everything that is wrong with it, one line each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


# Each validator's message continues a sentence that begins with the name of the variable, and quotes no value.


def _unambiguous_dsn(value: SecretStr) -> SecretStr:
    from listener.postgres import address  # It imports psycopg, which --help does not need.

    return SecretStr(address.checked(value.get_secret_value()))


def _service_account_key(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    key = key_text.parse(
        value
    )  # raises ValueError, as load_credentials does; the text quotes no part of the key
    from listener.fcm.credentials import load_credentials  # Slow to import, and no other setting needs it.

    load_credentials(key)
    return key


_WHY_UNREADABLE = {
    errno.ENOENT: "names a file that does not exist",
    errno.EACCES: "names a file that this process may not read",
    errno.EISDIR: "names a directory",
    errno.ENAMETOOLONG: "is too long to be the path of a file",
}

_BEGINNINGS_OF_KEYS = ("{", "-----BEGIN", "eyJ", "ewog", "ewoJ", "ew0K")  # the last four are { in base64


def _readable_file(value: Path | None) -> Path | None:
    try:
        if value is not None:
            value.open("rb").close()
        return value
    except OSError as error:
        why = _WHY_UNREADABLE.get(error.errno or 0, "names a file that cannot be read")
    except ValueError:  # a zero byte
        why = "is not the path of a file"
    text = str(value).strip("\ufeff \t\n")
    if text.strip("'\"").startswith(_BEGINNINGS_OF_KEYS):
        why = "holds a key, but must be the path of a file: set FCM_SERVICE_ACCOUNT_JSON to the key"
    elif text[:1] in ("'", '"'):
        why = "is in quotes, which Docker and some .env readers leave in place: remove them"
    raise ValueError(why)


_PROJECT = re.compile(r"[a-z][a-z0-9.:-]{4,}|[1-9][0-9]{4,}")


def _project_id(value: object) -> object:
    """Also takes the number of a project, as FCM does. Source: FCM HTTP v1, projects.messages.send, "parent"."""
    if not isinstance(value, str):
        return value
    project = value.strip().removeprefix("projects/")
    if not project:
        return None
    if not _PROJECT.fullmatch(project):
        raise ValueError(
            "is not the id of a project, such as my-app-1a2b3, nor its number (Firebase console, Project settings, "
            "General)"
        )
    return project


_LEAST_TOKEN = 8
_LEAST_PAGE_TOKEN = 16
"""More than for the metrics: a token of the page may allow actions, and anyone may try any number of tokens."""


def _hard_to_guess(value: SecretStr | None, least: int = _LEAST_TOKEN) -> SecretStr | None:
    if value is not None and len(value) < least:
        raise ValueError(f"has fewer than {least} characters: it can be guessed")
    return value


_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")


def _action_tokens(value: object) -> object:
    """Parses ``name:token,name:token``. A token has no comma, and no blank at its start or end."""
    if not isinstance(value, str):
        return value
    tokens: dict[str, SecretStr] = {}
    faults: list[str] = []
    for number, entry in enumerate(filter(None, map(str.strip, value.split(","))), 1):
        name, colon, token = (part.strip() for part in entry.partition(":"))
        if not colon or not _NAME.fullmatch(name):
            faults.append(
                f"entry {number} must be name:token, with a name of letters, digits and . _ @ - (at most 64 characters)"
            )
        elif name == "local":
            faults.append(f"entry {number} has the name of a person on a page that is open without a token")
        elif name in tokens:
            faults.append(f"entry {number} has the name of an earlier one")
        elif len(token) < _LEAST_PAGE_TOKEN:
            faults.append(
                f"entry {number} has a token of fewer than {_LEAST_PAGE_TOKEN} characters: it can be guessed"
            )
        elif token in {known.get_secret_value() for known in tokens.values()}:
            faults.append(f"entry {number} has the token of an earlier one: the log could not tell who acted")
        else:
            tokens[name] = SecretStr(token)
    if not (tokens or faults):
        faults.append("holds no token: give name:token,name:token, or leave it out")
    if faults:
        raise ValueError("; ".join(faults))
    return tokens


_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")
_OWN_PATHS = ("/healthz", "/readyz", "/metrics")


def _path_prefix(value: object) -> object:
    if not isinstance(value, str):
        return value
    prefix = value.strip().rstrip("/")
    if not _PREFIX.fullmatch(prefix) or {".", ".."} & set(prefix.split("/")):
        raise ValueError(
            "is not a path such as /push: it begins with / and has letters, digits and . _ ~ - only"
        )
    if prefix in _OWN_PATHS:
        raise ValueError("is a path that push-listener itself answers: choose another one")
    return prefix


def _plain_endpoint(value: HttpUrl) -> HttpUrl:
    if value.username or value.password or "@" in (value.path or ""):
        raise ValueError("holds a user name or password: FCM takes access tokens only")
    if value.query is not None or value.fragment is not None:
        raise ValueError("contains a ? or #: give only the part of the URL before /v1/projects")
    return value


def _blank_is_none(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _unquoted(value: object) -> object:
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1].strip()
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def age(value: str) -> timedelta:
    """Parses an age such as 12h, 30d or 8w. Raises ValueError, also above a century."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([hdw])", value.strip().lower())
    if match is None or (parsed := int(match[1]) * _UNITS[match[2]]) > timedelta(days=36_525):
        raise ValueError("is not an age such as 12h, 30d or 8w")
    return parsed


def _age(value: object) -> object:
    return age(value) if isinstance(value, str) else value


def _longest_send(request_timeout: float) -> float:
    """Maximum duration of a send in seconds: FCM refuses the access token, and a second request has another one."""
    from listener.fcm.auth import REFRESH_TIMEOUT  # Slow to import, and only the service needs it.

    return 2 * (REFRESH_TIMEOUT + request_timeout)


Dsn = Annotated[SecretStr, AfterValidator(_unambiguous_dsn)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


def _group(title: str) -> Any:
    """A ``pydantic.Field`` for the settings that --help and docs/configuration.md list under ``title``."""
    return partial(Field, json_schema_extra={"group": title})


_database = _group("Database")
_fcm = _group("FCM")
_sending = _group("Sending")
_failures = _group("Failures and retries")
_periodic = _group("Periodic work")
_web = _group("Web server")
_process = _group("Process")


_WITH_BLANKS = {"google_application_credentials"}
"""Blanks stay, because google-auth reads this path from the environment itself."""

_WITH_QUOTES = {"metrics_token", "page_token", *_WITH_BLANKS}
"""Quotes stay, because they may be a part of the token."""

_NEVER_BLANK = {"metrics_token", "page_token", "action_tokens"}
"""A value of blanks is a fault. If it counted as not set, it might open what was meant to be closed."""


class DatabaseSettings(BaseSettings):
    """Settings that tell how to reach and recognize the database; enough for migrate, stats, send and purge."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", hide_input_in_errors=True, env_ignore_empty=True
    )

    database_url: Dsn = _database(description="address of the Postgres database; may be a pooler's")
    listen_database_url: Dsn | None = _database(
        default=None,
        description="direct or session-mode address, for LISTEN and migrations; "
        "needed if DATABASE_URL is a transaction pooler's; default: DATABASE_URL",
    )
    wakeup: Literal["listen", "sweep"] = _database(
        default="listen",
        description="how the service learns of new rows; listen: NOTIFY wakes it; sweep: it polls every few seconds, "
        "for when every address is a transaction pooler's",
    )
    installation: Annotated[str | None, BeforeValidator(_blank_is_none)] = _database(
        default=None,
        max_length=200,
        description="name of this installation, such as production; the service then recognizes its database by this "
        "name instead of by the address",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_wrapping(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Removes blanks and quotes around values, except those of ``_WITH_BLANKS`` and ``_WITH_QUOTES``.

        A value from a file often ends with a line break. Docker's --env-file and some .env readers leave quotes in
        place.
        """
        stripped = {
            name: value if name in _WITH_BLANKS else _stripped(value) for name, value in values.items()
        }
        plain = {
            name: value if name in _WITH_QUOTES else _unquoted(value) for name, value in stripped.items()
        }
        return {
            name: value
            for name, value in plain.items()
            if value != "" or values[name] == "" or name in _NEVER_BLANK
        }

    @property
    def listen_dsn(self) -> str:
        """The address for LISTEN, migrations and all else that needs a session of its own."""
        return (self.listen_database_url or self.database_url).get_secret_value()


class Settings(DatabaseSettings):
    """Every setting: the environment of ``push-listener run``. Times are in seconds."""

    fcm_project_id: Annotated[str | None, BeforeValidator(_project_id)] = _fcm(
        default=None,
        description="Firebase project to send for; default: the project of the key",
    )
    fcm_service_account_json: Annotated[
        dict[str, Any] | None, NoDecode, BeforeValidator(_service_account_key)
    ] = _fcm(default=None, repr=False, description="service-account key itself, as JSON")
    google_application_credentials: Annotated[Path | None, AfterValidator(_readable_file)] = _fcm(
        default=None, description="path of a key file, or of anything else that google-auth understands"
    )
    fcm_endpoint: Annotated[HttpUrl, AfterValidator(_plain_endpoint)] = _fcm(
        default=HttpUrl("https://fcm.googleapis.com"), description="base URL of FCM HTTP v1"
    )
    fcm_quota: int = _fcm(
        default=600_000,
        ge=60,
        le=1_000_000_000,
        description="messages a minute that FCM accepts for the project; all processes share it",
    )
    fcm_ramp: Annotated[float, Field(ge=0, le=86_400)] = _fcm(
        default=60.0,
        description="time in which the rate rises from nothing to the quota (FCM asks for 60); 0: no ramp",
    )
    fcm_request_timeout: Seconds = _fcm(
        default=15.0, description="timeout of a request to FCM (FCM asks for at least 10)"
    )
    fcm_connect_timeout: Seconds = _fcm(
        default=10.0, description="timeout of a connection to FCM, as a part of FCM_REQUEST_TIMEOUT"
    )
    transport: Annotated[TransportName, BeforeValidator(_lower)] = _fcm(
        default="http2",
        description="how requests go out: http2, at the least cost; http1, with a connection for each request; "
        "or aiohttp, HTTP/1.1 by that library",
    )

    max_in_flight: int = _sending(
        default=1250,
        ge=1,
        le=100_000,
        description="maximum of concurrent requests to FCM; an eighth of them is kept for high priority",
    )
    claim_batch: int = _sending(
        default=500,
        ge=1,
        le=MOST_CLAIMED,
        description=f"maximum of rows claimed at once; at most {MOST_CLAIMED:,}",
    )
    settle_batch: int = _sending(default=500, ge=1, le=10_000, description="maximum of rows settled at once")
    lease: Seconds = _sending(
        default=120.0,
        description="time for which a claimed row belongs to its worker, unless the worker dies",
    )

    max_tries: int = _failures(
        default=5, ge=1, le=100, description="tries, the first one included, after which a push is dead"
    )
    retry_min_delay: Seconds = _failures(
        default=10.0, description="minimum wait before a retry (FCM asks for at least 10)"
    )
    retry_max_delay: Seconds = _failures(
        default=3600.0, description="maximum wait before a retry, unless FCM's Retry-After is longer"
    )
    token_loss_breaker: bool = _failures(
        default=True,
        description="whether tokens stay enabled while FCM calls those of nearly all users dead: then the project or "
        "key is probably wrong",
    )

    sweep_interval: Seconds = _periodic(
        default=14.0,
        ge=1,
        description="maximum time between two looks at the queue and at the locks, even if nothing wakes the service; "
        "at most 5 with WAKEUP=sweep",
    )
    listen_check_interval: Seconds = _periodic(
        default=60.0, ge=1, description="silence on the LISTEN connection after which it is checked"
    )
    queue_depth_interval: Annotated[float, Field(ge=1, le=120)] = _periodic(
        default=15.0,
        description="time between two counts of the queue for /metrics, while there is work; at most 120",
    )
    idle_probe_interval: Annotated[float, Field(ge=0, le=86_400)] = _periodic(
        default=300.0,
        description="silence of FCM after which it is asked to validate a message, so that a revoked permission is "
        "known before a push needs it; 0: never",
    )
    retention: Annotated[timedelta | None, BeforeValidator(_age)] = _periodic(
        default=None,
        description="age at which finished pushes are deleted, dead ones excepted, such as 30d or 12h; default: never",
    )

    host: str | None = _web(default=None, description="address to bind to; default: every address")
    port: int = _web(
        default=8080,
        ge=0,
        le=65535,
        description="port of the page, /metrics, /healthz and /readyz; 0: any free port",
    )
    page_token: Annotated[
        SecretStr | None, AfterValidator(partial(_hard_to_guess, least=_LEAST_PAGE_TOKEN))
    ] = _web(
        default=None,
        description="token with which a person reads the page and changes nothing, at least 16 characters; without any "
        "token the page is open on loopback only",
    )
    action_tokens: Annotated[dict[str, SecretStr], NoDecode, BeforeValidator(_action_tokens)] = _web(
        default={},
        repr=False,
        description="tokens with which persons also act on the page, each under a name: name:token,name:token; "
        "a token has at least 16 characters",
    )
    path_prefix: Annotated[str, BeforeValidator(_path_prefix)] = _web(
        default="", description="path under which the page answers, such as /push, behind a proxy; default: /"
    )
    operator_database_url: Dsn | None = _web(
        default=None,
        description="address with a login that has the role push_listener_operator, for what persons do on the page; "
        "default: DATABASE_URL",
    )
    metrics_token: Annotated[SecretStr | None, AfterValidator(_hard_to_guess)] = _web(
        default=None,
        description="bearer token for /metrics; without one, /metrics is open on loopback only",
    )

    metrics_port: int | None = _web(
        default=None,
        ge=0,
        le=65535,
        description="second port, which serves /metrics alone, and without a token, for a private network",
    )
    metrics_host: str | None = _web(
        default=None, description="address to bind METRICS_PORT to; default: every address"
    )

    worker_name: str | None = _process(
        default=None, max_length=200, description="name in push_listener.workers; default: the host name"
    )
    shutdown_grace: Seconds = _process(
        default=25.0, description="time from SIGTERM in which the process finishes its work and exits"
    )
    watchdog_timeout: Annotated[float, Field(ge=0, le=86_400)] = _process(
        default=600.0,
        description="time without a turn of the event loop, or without any progress, after which the process ends "
        "itself with exit code 1; at least 400, and never less than twice SWEEP_INTERVAL or "
        "twice LEASE; 0: never",
    )
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_lower)] = _process(
        default="text", description="text or json"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = _process(
        default="info", description="lowest level that is logged: debug, info, warning or error"
    )

    @field_validator("fcm_connect_timeout")
    @classmethod
    def _is_part_of_request_timeout(cls, seconds: float, info: ValidationInfo) -> float:
        if seconds >= info.data.get("fcm_request_timeout", float("inf")):
            raise ValueError("is not less than FCM_REQUEST_TIMEOUT, of which it is a part")
        return seconds

    @field_validator("lease")
    @classmethod
    def _outlives_a_send(cls, lease: float, info: ValidationInfo) -> float:
        least = _longest_send(info.data.get("fcm_request_timeout", 0.0)) + 5.0
        if lease < least:
            raise ValueError(
                f"is {lease:g}, but must be at least {least:g}, twice FCM_REQUEST_TIMEOUT and more: otherwise another "
                "worker takes the row while this one is still sending it"
            )
        return lease

    @field_validator("retry_max_delay")
    @classmethod
    def _is_not_below_minimum(cls, delay: float, info: ValidationInfo) -> float:
        if delay < info.data.get("retry_min_delay", 0):
            raise ValueError("is less than RETRY_MIN_DELAY")
        return delay

    @field_validator("action_tokens")
    @classmethod
    def _do_more_than_page_token(
        cls, tokens: dict[str, SecretStr], info: ValidationInfo
    ) -> dict[str, SecretStr]:
        if info.data.get("page_token") in tokens.values():
            raise ValueError("has the token of PAGE_TOKEN: then all who read may act")
        return tokens

    @field_validator("metrics_port")
    @classmethod
    def _is_another_port(cls, port: int | None, info: ValidationInfo) -> int | None:
        if port is not None and port != 0 and port == info.data.get("port"):
            raise ValueError("is the same as PORT")
        return port

    @field_validator("watchdog_timeout")
    @classmethod
    def _outlasts_every_pause(cls, seconds: float) -> float:
        if 0 < seconds < 400:
            raise ValueError(
                f"is {seconds:g}, but must be at least 400, or 0: a worker that FCM refuses waits for five minutes"
            )
        return seconds

    @property
    def stuck_after(self) -> float:
        """Seconds without progress after which the process is stuck, longer than any wait; 0: never."""
        waits = self.sweep_interval, _longest_send(self.fcm_request_timeout), self.lease
        return self.watchdog_timeout and max(self.watchdog_timeout, 2 * max(waits))

    @property
    def longest_poll_delay(self) -> float:
        """Maximum seconds between two looks at the queue; shorter where nothing but a sweep finds new rows."""
        return min(self.sweep_interval, 5.0) if self.wakeup == "sweep" else self.sweep_interval

    @property
    def metrics_closed(self) -> bool:
        """Whether /metrics is refused to everyone: it has no token, and other machines can reach the address."""
        return self.metrics_token is None and not self.is_on_loopback

    @property
    def is_on_loopback(self) -> bool:
        """Whether only this machine can reach HOST."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host or "::").is_loopback
        except ValueError:
            return False


def load(**overrides: object) -> Settings:
    """Every setting, from the environment. Raises ConfigError that names every fault and quotes no secret."""
    return _load(Settings, overrides)


def load_database(**overrides: object) -> DatabaseSettings:
    """Only the settings of the database; faults in the others do not matter. Raises ConfigError as ``load`` does."""
    return _load(DatabaseSettings, overrides)


S = TypeVar("S", bound=BaseSettings)


def _load(kind: type[S], overrides: dict[str, object]) -> S:
    try:
        return kind(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError(
            [_line(dict(fault)) for fault in error.errors(include_input=False, include_url=False)]
        ) from None


def _line(fault: dict[str, Any]) -> str:
    name = str(fault["loc"][0]).upper()
    if fault["type"] == "missing":
        others = [given for given, meant in misspelt(os.environ).items() if meant == name]
        return f"{name} is not set" + (f", but {others[0]} is" if others else "")
    text = str(fault["msg"]).removeprefix("Value error, ")
    return f"{name} {text}" if text != fault["msg"] else f"{name}: {text}"


_SYNONYMS = {
    "DB_URL": "DATABASE_URL",
    "DATABASE_DSN": "DATABASE_URL",
    "POSTGRES_URL": "DATABASE_URL",
    "POSTGRESQL_URL": "DATABASE_URL",
    "PG_URL": "DATABASE_URL",
    "DIRECT_URL": "LISTEN_DATABASE_URL",
    "DIRECT_DATABASE_URL": "LISTEN_DATABASE_URL",
    "LISTEN_URL": "LISTEN_DATABASE_URL",
    "LISTEN_DSN": "LISTEN_DATABASE_URL",
    "LISTEN_DB_URL": "LISTEN_DATABASE_URL",
    "DIRECT_DB_URL": "LISTEN_DATABASE_URL",
    "FIREBASE_PROJECT_ID": "FCM_PROJECT_ID",
    "FIREBASE_PROJECT": "FCM_PROJECT_ID",
    "GOOGLE_APPLICATION_CREDENTIALS_JSON": "FCM_SERVICE_ACCOUNT_JSON",
    "FIREBASE_SERVICE_ACCOUNT": "FCM_SERVICE_ACCOUNT_JSON",
    "FIREBASE_SERVICE_ACCOUNT_JSON": "FCM_SERVICE_ACCOUNT_JSON",
    "FCM_SERVICE_ACCOUNT": "FCM_SERVICE_ACCOUNT_JSON",
    "FCM_CREDENTIALS": "FCM_SERVICE_ACCOUNT_JSON",
    "FIREBASE_CREDENTIALS": "FCM_SERVICE_ACCOUNT_JSON",
    "GOOGLE_CREDENTIALS": "GOOGLE_APPLICATION_CREDENTIALS",
    "FCM_TIMEOUT": "FCM_REQUEST_TIMEOUT",
    "MAX_CONCURRENCY": "MAX_IN_FLIGHT",
    "MAX_RETRIES": "MAX_TRIES",
    "LOG_FMT": "LOG_FORMAT",
}
"""Names that other programs use for the same settings, and whose letters differ too much for ``_ALIKE``."""

_UNIT = re.compile(r"(?:_IN)?_(?:MS|MILLISECONDS|S|SECS?|SECONDS|MINS?|MINUTES|HOURS|DAYS|WEEKS)$")
"""The unit at the end of a name. Settings of other programs have it, and ours do not."""

_ALIKE = 0.85
"""A name counts as misspelt from this share of letters in common. LOGNAME and HOSTNAME have a smaller share."""

_LEAST_LETTERS = 6
"""Shorter names, such as PORT, resemble too many others."""


def misspelt(environment: Mapping[str, str]) -> dict[str, str]:
    """Maps each unknown variable that probably stands for one of ours to that one, if it is not set.

    The platform and other programs set variables too. So a name counts only if it hardly differs from a known one.
    """
    given = {name.upper() for name, value in environment.items() if value}
    known = {name.upper() for name in Settings.model_fields}
    unset = [name for name in known - given if len(name) >= _LEAST_LETTERS]
    found = {}
    for name in sorted(given - known):
        plain = name.removeprefix("PUSH_").removeprefix("LISTENER_")
        plain = _UNIT.sub("", plain)
        if name in _SYNONYMS or plain in _SYNONYMS:
            meant = _SYNONYMS.get(name) or _SYNONYMS[plain]
        elif plain != name and plain in known:
            meant = plain
        else:
            meant = next(iter(get_close_matches(name, unset, n=1, cutoff=_ALIKE)), "")
        if meant and meant not in given:
            found[name] = meant
    return found


class Variable(NamedTuple):
    """One environment variable, as --help and docs/configuration.md show it."""

    group: str
    """Its topic. The variables of a group follow each other."""
    name: str
    default: str
    """Empty if it has none, or if ``meaning`` tells it."""
    meaning: str


def describe() -> list[Variable]:
    """Every environment variable, group by group."""
    return [_variable(name, field) for name, field in Settings.model_fields.items()]


def _variable(name: str, field: FieldInfo) -> Variable:
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    return Variable(str(extra["group"]), name.upper(), _default(field), field.description or "")


def _default(field: FieldInfo) -> str:
    match field.default:
        case _ if field.is_required():
            return "required"
        case None | "" | {}:
            return ""
        case bool(value):
            return str(value).lower()
        case float(value):
            return f"{value:g}"
        case value:
            return str(value)
