"""Settings are read from the environment and checked; every fault is reported at once, and no secret with it."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from listener.config import ConfigError, DatabaseSettings, Settings, describe, load, load_database, misspelt
from listener.fcm.auth import REFRESH_TIMEOUT

SECRET = "S3cr3t"
DSN = f"postgresql://user:{SECRET}@db.example.com:5432/postgres"
NAMES = [variable.name for variable in describe()]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def key() -> dict[str, str]:
    private = rsa.generate_private_key(65537, 2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "type": "service_account",
        "project_id": "my-project",
        "private_key_id": "id",
        "private_key": pem.decode(),
        "client_email": "push@my-project.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": "https://oauth2.googleapis.com/token",
    }


def with_environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name.upper(), value)
    return load()


def faults(**variables: str) -> list[str]:
    """What is wrong with an environment that is otherwise good."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"database_url": DSN, **variables}.items():
            patch.setenv(name.upper(), value)
        with pytest.raises(ConfigError) as caught:
            load()
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


# --- what is right -------------------------------------------------------------------------------------------


def test_an_address_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_environment(monkeypatch, database_url=DSN)
    assert found.database_url.get_secret_value() == found.listen_dsn == DSN
    assert str(found.fcm_endpoint) == "https://fcm.googleapis.com/"
    assert (found.port, found.max_in_flight, found.max_tries) == (8080, 1250, 5)
    assert (found.metrics_token, found.fcm_service_account_json) == (None, None)


def test_everything_can_be_set(monkeypatch: pytest.MonkeyPatch, key: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.write_text(json.dumps(key))
    given_values: dict[str, str] = {
        "listen_database_url": "host=localhost dbname=x",
        "fcm_project_id": "my-project",
        "fcm_service_account_json": json.dumps(key),
        "google_application_credentials": str(path),
        "fcm_endpoint": "http://127.0.0.1:9199",
        "fcm_quota": "1200",
        "fcm_ramp": "0",
        "host": "127.0.0.1",
        "port": "0",
        "metrics_token": "long-enough",
        "log_format": "json",
        "log_level": "debug",
        "max_in_flight": "10",
        "claim_batch": "20",
        "settle_batch": "30",
        "fcm_request_timeout": "12.5",
        "fcm_connect_timeout": "3",
        "lease": "600",
        "max_tries": "7",
        "retry_min_delay": "11",
        "retry_max_delay": "12",
        "shutdown_grace": "13",
        "sweep_interval": "14",
        "queue_depth_interval": "15",
        "worker_name": "web.1",
        "installation": "production",
    }
    found = with_environment(monkeypatch, database_url=DSN, **given_values)
    assert found.fcm_service_account_json == key
    assert found.listen_dsn == "host=localhost dbname=x"
    for name in (
        "fcm_ramp",
        "fcm_request_timeout",
        "lease",
        "retry_min_delay",
        "retry_max_delay",
        "sweep_interval",
    ):
        assert getattr(found, name) == float(given_values[name])
    for name in ("fcm_quota", "port", "max_in_flight", "claim_batch", "settle_batch", "max_tries"):
        assert getattr(found, name) == int(given_values[name])


def test_an_empty_value_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Platforms and compose files set variables to nothing."""
    plain = with_environment(monkeypatch, database_url=DSN)
    for name in NAMES:
        if name != "DATABASE_URL":
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(name, "")
                assert load() == plain, name


def test_an_empty_database_url_is_not_set() -> None:
    assert faults(database_url="") == ["DATABASE_URL is not set"]


def test_settings_cannot_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_environment(monkeypatch, database_url=DSN)
    with pytest.raises(ValueError, match="frozen"):
        found.port = 1


def test_the_repr_shows_no_secret(monkeypatch: pytest.MonkeyPatch, key: dict[str, str]) -> None:
    found = with_environment(
        monkeypatch,
        database_url=DSN,
        listen_database_url=DSN,
        metrics_token=f"{SECRET}-token",
        fcm_service_account_json=json.dumps({**key, "client_id": SECRET}),
    )
    for shown in (repr(found), str(found)):
        assert SECRET not in shown
        assert "PRIVATE KEY" not in shown


@pytest.mark.parametrize(
    ("host", "token", "closed"),
    [
        (None, None, True),
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("192.168.1.5", None, True),
        ("push.example.com", None, True),
        ("127.0.0.1", None, False),
        ("127.1.2.3", None, False),
        ("::1", None, False),
        ("localhost", None, False),
        (None, "long-enough", False),
        ("0.0.0.0", "long-enough", False),
    ],
)
def test_metrics_are_closed_where_others_could_read_them(
    host: str | None, token: str | None, closed: bool
) -> None:
    assert load(database_url=DSN, host=host, metrics_token=token).metrics_closed is closed


# --- what is wrong ---------------------------------------------------------------------------------------------


WRONG = {
    "WAKEUP": ["ring"],
    "LISTEN_CHECK_INTERVAL": ["0"],
    "TOKEN_LOSS_BREAKER": ["perhaps"],
    "DATABASE_URL": ["mysql://u:S3cr3t@h/d", "S3cr3t", "postgresql://h:S3cr3t/d", "postgresql://u:S3cr3t@h:54x/d", "postgresql://u:p@S3cr3t@h/d"],
    "LISTEN_DATABASE_URL": ["https://S3cr3t", "host=h port=S3cr3t"],
    "FCM_PROJECT_ID": ["S3cr3t", "x", "my project", "0123456789", "https://S3cr3t"],
    "FCM_SERVICE_ACCOUNT_JSON": ["S3cr3t", "/etc/S3cr3t.json", '["S3cr3t"]', '{"type": "S3cr3t"}', "{'a': 'S3cr3t'}"],
    "GOOGLE_APPLICATION_CREDENTIALS": [
        "/nowhere/S3cr3t.json", "/", "'/nowhere/S3cr3t.json'", '{"private_key": "S3cr3t"}', "'{\"k\": \"S3cr3t\"}'",
        "S3cr3t" * 1000, "eyJwcml2YXRlX2tleSI6ICJTM2NyM3QifQ==", "-----BEGIN PRIVATE KEY-----\nS3cr3t",
    ],
    "FCM_ENDPOINT": [
        "S3cr3t", "ftp://S3cr3t", "https://", "https://u:S3cr3t@h", "https://S3cr3t@h", "https://h?k=S3cr3t", "https://h/#S3cr3t",
        "https://u:12/S3cr3t@h",
    ],
    "FCM_QUOTA": ["0", "59", "1e9", "1000000001", "S3cr3t"],
    "FCM_RAMP": ["-1", "nan", "inf", "86401", "S3cr3t"],
    "PORT": ["S3cr3t", "-1", "65536", "80.5"],
    "METRICS_TOKEN": ["S3cr3t", "short"],
    "PAGE_TOKEN": ["S3cr3t", "short"],
    "ACTION_TOKENS": [
        "S3cr3t", "S3cr3t-S3cr3t", "anna:S3cr3t", ":S3cr3t-S3cr3t", "an na:S3cr3t-S3cr3t", "x" * 65 + ":S3cr3t-S3cr3t",
        "anna:S3cr3t-S3cr3t-S3cr3t,anna:other-S3cr3t-S3cr3t", "anna:S3cr3t-S3cr3t-S3cr3t,ben:S3cr3t-S3cr3t-S3cr3t",
        ", ,",
    ],
    "PATH_PREFIX": ["push", "/pu sh", "/S3cr3t?x", "//S3cr3t", "/../S3cr3t", "/metrics", "/healthz/"],
    "OPERATOR_DATABASE_URL": ["https://S3cr3t", "postgresql://u:p@S3cr3t@h/d"],
    "METRICS_PORT": ["S3cr3t", "-1", "8080"],
    "IDLE_PROBE_INTERVAL": ["-1", "S3cr3t"],
    "WATCHDOG_TIMEOUT": ["-1", "S3cr3t", "399"],
    "LOG_FORMAT": ["S3cr3t", "xml"],
    "LOG_LEVEL": ["S3cr3t", "trace"],
    "MAX_IN_FLIGHT": ["0", "S3cr3t", "100001", "1e9"],
    "CLAIM_BATCH": ["0", "4097"],
    "SETTLE_BATCH": ["0", "10001"],
    "FCM_REQUEST_TIMEOUT": ["0", "-1", "nan", "inf", "S3cr3t", "86401"],
    "FCM_CONNECT_TIMEOUT": ["0", "15", "16"],
    "TRANSPORT": ["carrier pigeon", "S3cr3t"],
    "LEASE": ["4", "64.9", "S3cr3t"],
    "MAX_TRIES": ["0", "101"],
    "RETRY_MIN_DELAY": ["0", "nan"],
    "RETRY_MAX_DELAY": ["0", "9.9"],
    "SHUTDOWN_GRACE": ["0", "S3cr3t"],
    "SWEEP_INTERVAL": ["0.5"],
    "QUEUE_DEPTH_INTERVAL": ["0.5", "121"],
    "WORKER_NAME": ["x" * 201],
    "INSTALLATION": ["x" * 201],
    "RETENTION": ["S3cr3t", "30", "0d", "5m", "999999w"],
}  # fmt: skip


def test_each_fault_names_its_variable_and_shows_no_value() -> None:
    for name, value in ((name, value) for name, values in WRONG.items() for value in values):
        told = faults(**{name: value})
        assert len(told) == 1, (name, value)
        assert told[0].startswith((f"{name} ", f"{name}: ")), (name, value)
        assert SECRET not in told[0], (name, value)
        assert "\n" not in told[0], (name, value)


def test_every_fault_is_told_at_once() -> None:
    told = faults(**{name: values[0] for name, values in WRONG.items()})
    named = [line.split()[0].rstrip(":") for line in told]
    assert sorted(named) == sorted(WRONG)
    assert SECRET not in "\n".join(told)


def test_the_variables_that_can_be_wrong_are_all_tried() -> None:
    assert set(NAMES) - set(WRONG) == {
        "HOST",
        "METRICS_HOST",
    }  # whether a name is one is for the resolver to say


def test_the_least_lease_is_told_and_is_enough() -> None:
    least = 2 * (REFRESH_TIMEOUT + 20.0) + 5.0
    (line,) = faults(fcm_request_timeout="20", lease="60")
    assert f"must be at least {least:g}" in line
    assert load(database_url=DSN, fcm_request_timeout=20, lease=least).lease == least


def test_a_lease_far_too_short_is_told_the_least_at_once() -> None:
    (line,) = faults(lease="1")
    assert "must be at least 65" in line


def test_a_token_for_metrics_that_is_too_short_is_told_in_plain_words() -> None:
    assert faults(metrics_token="short") == ["METRICS_TOKEN has fewer than 8 characters: it can be guessed"]


def test_a_token_of_the_page_is_longer_than_one_that_a_person_would_think_of() -> None:
    told = ["PAGE_TOKEN has fewer than 16 characters: it can be guessed"]
    assert faults(page_token="15-characters-x") == told
    assert load(database_url=DSN, page_token="16-characters-xy").page_token is not None


def test_the_tokens_of_the_page() -> None:
    found = load(
        database_url=DSN, action_tokens=" anna:one:two-three-four , ben@example.com: 0123456789abcdef ,"
    )
    assert {name: token.get_secret_value() for name, token in found.action_tokens.items()} == {
        "anna": "one:two-three-four",
        "ben@example.com": "0123456789abcdef",
    }
    assert load(database_url=DSN).action_tokens == {}
    assert "one:two-three-four" not in repr(found)


def test_every_fault_of_the_tokens_is_told_at_once() -> None:
    (line,) = faults(
        action_tokens="anna:15-characters-x,ben,anna:token-long-enough,carl:token-long-enough,dora:other-long-enough"
    )
    assert line == (
        "ACTION_TOKENS entry 1 has a token of fewer than 16 characters: it can be guessed; entry 2 must be name:token, "
        "with a name of letters, digits and . _ @ - (at most 64 characters); entry 4 has the token of an earlier one: "
        "the log could not tell who acted"
    )


def test_nobody_is_called_like_the_person_of_an_open_page() -> None:
    """The page shows that person no way to sign out, and records must tell both apart."""
    (line,) = faults(action_tokens="local:0123456789abcdef")
    assert "entry 1 has the name of a person on a page that is open without a token" in line


def test_the_token_that_reads_does_not_act() -> None:
    told = faults(page_token="token-long-enough", action_tokens="anna:token-long-enough")
    assert told == ["ACTION_TOKENS has the token of PAGE_TOKEN: then all who read may act"]


@pytest.mark.parametrize("name", ["page_token", "action_tokens"])
def test_a_token_of_blanks_does_not_open_the_page(name: str) -> None:
    (line,) = faults(**{name: 10 * " "})
    assert line.startswith(f"{name.upper()} ")


@pytest.mark.parametrize(
    ("given", "prefix"),
    [
        ("/", ""),
        ("/push", "/push"),
        ("/push/", "/push"),
        ("/a/b~c.d_e-f", "/a/b~c.d_e-f"),
        ("/metrics2", "/metrics2"),
    ],
)
def test_the_prefix_of_the_page(given: str, prefix: str) -> None:
    assert load(database_url=DSN, path_prefix=given).path_prefix == prefix


@pytest.mark.parametrize(
    ("host", "is_on_loopback"),
    [(None, False), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("push.example", False),
     ("localhost", True), ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True)],
)  # fmt: skip
def test_what_only_this_machine_can_reach(host: str | None, is_on_loopback: bool) -> None:
    assert load(database_url=DSN, host=host).is_on_loopback is is_on_loopback


def test_words_in_capitals_are_the_same_words() -> None:
    found = load(database_url=DSN, log_level="WARNING", log_format="JSON")
    assert (found.log_level, found.log_format) == ("warning", "json")


any_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(NAMES), any_text, any_text)
@example("DATABASE_URL", "postgresql://user:", "@host:5432/db?sslmode")
@example("DATABASE_URL", "postgresql://u:", "@[::1/db")
@example("FCM_SERVICE_ACCOUNT_JSON", '{"private_key": "', '"}')
@example("FCM_ENDPOINT", "https://", ":x")
@example("METRICS_TOKEN", "", "")
@example("PORT", "80", "")
def test_no_fault_quotes_what_was_given(name: str, before: str, after: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", DSN)
        patch.setenv(name, f"{before}{SECRET}{after}")
        told = fault_of_load()
    if told is not None:
        assert told.faults
        assert SECRET not in str(told)
        assert (told.__cause__, told.__suppress_context__) == (None, True)


def fault_of_load() -> ConfigError | None:
    try:
        load()
    except ConfigError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("/nowhere/key.json", "names a file that does not exist"),
        ("/", "names a directory"),
        (
            "'/nowhere/key.json'",
            "is in quotes, which Docker and some .env readers leave in place: remove them",
        ),
        ("{}", "holds a key, but must be the path of a file: set FCM_SERVICE_ACCOUNT_JSON to the key"),
        ("x" * 5000, "is too long to be the path of a file"),
    ],
)
def test_a_key_file_that_cannot_be_read(value: str, message: str) -> None:
    assert faults(google_application_credentials=value) == [f"GOOGLE_APPLICATION_CREDENTIALS {message}"]


def test_quotes_around_a_value_are_not_part_of_it(
    monkeypatch: pytest.MonkeyPatch, key: dict[str, str]
) -> None:
    found = with_environment(
        monkeypatch,
        database_url=f'"{DSN}"',
        fcm_service_account_json=f"'{json.dumps(key)}'",
        fcm_project_id='"my-project"',
        port="'9000'",
        log_level='"DEBUG"',
        listen_database_url="''",
        metrics_token='"long-enough"',
    )
    assert found.database_url.get_secret_value() == found.listen_dsn == DSN
    assert found.fcm_service_account_json == key
    assert (found.fcm_project_id, found.port, found.log_level) == ("my-project", 9000, "debug")
    assert found.metrics_token is not None
    assert found.metrics_token.get_secret_value() == '"long-enough"'


def test_blanks_and_line_ends_around_a_value_are_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that is read from a file ends with a line end often."""
    found = with_environment(
        monkeypatch,
        database_url=f"{DSN}\n",
        metrics_token=" long-enough\r\n",
        installation="production\n",
        host="127.0.0.1\n",
        metrics_host=" \n",
        log_format="json\n",
        worker_name="'one' \n",
    )
    assert found.database_url.get_secret_value() == DSN
    assert found.metrics_token is not None
    assert found.metrics_token.get_secret_value() == "long-enough"
    assert (found.installation, found.host, found.metrics_host) == ("production", "127.0.0.1", None)
    assert (found.log_format, found.worker_name) == ("json", "one")


def test_a_token_of_blanks_does_not_open_the_metrics() -> None:
    assert faults(metrics_token=10 * " ") == ["METRICS_TOKEN has fewer than 8 characters: it can be guessed"]


@pytest.mark.parametrize("project", ["123456789012", "my-project", "example.com:api", " my-project "])
def test_a_project_is_named_by_its_id_or_its_number(project: str) -> None:
    assert load(database_url=DSN, fcm_project_id=project).fcm_project_id == project.strip()


def test_a_project_with_its_prefix() -> None:
    assert load(database_url=DSN, fcm_project_id="projects/my-project").fcm_project_id == "my-project"


# --- what is said of them ----------------------------------------------------------------------------------------


def test_describe_lists_every_variable_with_its_default() -> None:
    rows = {variable.name: variable for variable in describe()}
    assert list(rows) == [name.upper() for name in Settings.model_fields]
    assert rows["DATABASE_URL"].default == "required"
    assert rows["PORT"].default == "8080"
    assert rows["LEASE"].default == "120"
    assert rows["TOKEN_LOSS_BREAKER"].default == "true"
    assert rows["HOST"].default == ""
    assert rows["FCM_ENDPOINT"].default == "https://fcm.googleapis.com/"
    assert all(variable.meaning for variable in rows.values())


def test_the_variables_of_a_group_follow_each_other() -> None:
    titles = [title for title, _ in groupby(variable.group for variable in describe())]
    assert len(titles) == len(set(titles))


# --- misspelt ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LOGLEVEL", "LOG_LEVEL"),
        ("loglevel", "LOG_LEVEL"),
        ("LOG_LEVELS", "LOG_LEVEL"),
        ("MAX_INFLIGHT", "MAX_IN_FLIGHT"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("FCM_PROJECT", "FCM_PROJECT_ID"),
        ("LISTEN_DATABASE_URI", "LISTEN_DATABASE_URL"),
        ("METRIC_TOKEN", "METRICS_TOKEN"),
        ("GOOGLE_APPLICATION_CREDENTIAL", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("GOOGLE_APPLICATION_CREDENTIALS_JSON", "FCM_SERVICE_ACCOUNT_JSON"),
        ("SHUTDOWN_GRACE_S", "SHUTDOWN_GRACE"),
        ("PUSH_LISTENER_LEASE", "LEASE"),
        ("PUSH_LOG_FORMAT", "LOG_FORMAT"),
        ("DIRECT_URL", "LISTEN_DATABASE_URL"),
        ("MAX_RETRIES", "MAX_TRIES"),
        ("LISTEN_URL", "LISTEN_DATABASE_URL"),
        ("LISTEN_DB_URL", "LISTEN_DATABASE_URL"),
        ("RETENTION_DAYS", "RETENTION"),
        ("RETENTION_IN_DAYS", "RETENTION"),
        ("LEASE_SECONDS", "LEASE"),
        ("PUSH_LISTENER_LEASE_SECONDS", "LEASE"),
        ("SHUTDOWN_GRACE_SECONDS", "SHUTDOWN_GRACE"),
        ("RETRY_MIN_DELAY_MS", "RETRY_MIN_DELAY"),
        ("FCM_TIMEOUT", "FCM_REQUEST_TIMEOUT"),
        ("FCM_TIMEOUT_SECONDS", "FCM_REQUEST_TIMEOUT"),
        ("GOOGLE_CREDENTIALS", "GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_a_misspelt_variable_is_found(name: str, meant: str) -> None:
    assert misspelt({name: "x"}) == {name.upper(): meant}
    assert misspelt({name: ""}) == {}
    assert misspelt({name: "x", meant: "y"}) == {}, (
        "what it stands for is set, so it belongs to another program"
    )


def test_a_variable_with_one_letter_less_is_found_if_it_is_long_enough() -> None:
    for name in NAMES:
        if len(name) > 8:
            assert misspelt({name[:4] + name[5:]: "x"}) == {name[:4] + name[5:]: name}


PLATFORM = """
PORT PATH HOME HOST HOSTNAME LOGNAME USER SHELL TERM LANG LC_ALL PWD OLDPWD SHLVL TMPDIR EDITOR MAIL TZ
LS_COLORS DISPLAY PYTHONPATH PYTHONUNBUFFERED PYTHON_VERSION VIRTUAL_ENV PIP_INDEX_URL DYNO HEROKU_APP_NAME
HEROKU_POSTGRESQL_AMBER_URL DATABASE_CONNECTION_POOL_URL WEB_CONCURRENCY MEMORY_AVAILABLE FLY_APP_NAME
FLY_ALLOC_ID FLY_REGION PRIMARY_REGION REDIS_URL TEST_DATABASE_URL SHADOW_DATABASE_URL PGHOST PGPORT PGUSER
PGPASSWORD PGDATABASE SUPABASE_URL SUPABASE_SERVICE_ROLE_KEY KUBERNETES_SERVICE_HOST KUBERNETES_PORT
RAILWAY_PROJECT_ID RENDER_SERVICE_ID GOOGLE_CLOUD_PROJECT GOOGLE_CLOUD_QUOTA_PROJECT HTTPS_PROXY HTTP_PROXY
ALL_PROXY NO_PROXY SSL_CERT_FILE SSL_CERT_DIR INVOCATION_ID JOURNAL_STREAM LISTEN_FDS LISTEN_PID LOG_LEVEL_SQL
SENTRY_DSN XDG_RUNTIME_DIR SSH_AUTH_SOCK COLORTERM INSTALL_DIR TRANSPORT_URL WORKER_ID WORKERS RELEASE
SERVICE_NAME
"""


def test_what_platforms_set_is_not_taken_for_ours() -> None:
    assert [name for name in PLATFORM.split() if misspelt({name: "x"})] == []


def test_a_missing_variable_and_its_misspelling_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URI", DSN)
    with pytest.raises(ConfigError) as refused:
        load()
    assert refused.value.faults == ["DATABASE_URL is not set, but DATABASE_URI is"]


# --- the database alone ------------------------------------------------------------------------------------------


def test_the_settings_of_the_database_do_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", DSN)
    for name, values in WRONG.items():
        if name.lower() not in DatabaseSettings.model_fields:
            monkeypatch.setenv(name, values[0])
    assert load_database().listen_dsn == DSN
    with pytest.raises(ConfigError, match="FCM_SERVICE_ACCOUNT_JSON is not JSON"):
        load()


def test_every_fault_of_the_database_settings_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name.upper() for name in DatabaseSettings.model_fields]
    for name in names:
        monkeypatch.setenv(name, WRONG[name][0])
    with pytest.raises(ConfigError) as caught:
        load_database()
    assert [fault.split()[0].rstrip(":") for fault in caught.value.faults] == names


def test_the_queue_is_counted_often_enough_for_the_metrics_to_stay() -> None:
    """After 300 s the alerts take an instance for frozen, and after 900 s the metrics are absent."""
    (fault,) = faults(queue_depth_interval="3600")
    assert fault.startswith("QUEUE_DEPTH_INTERVAL")


def test_a_worker_is_not_stuck_while_an_attempt_may_last() -> None:
    assert load(database_url=DSN, lease=3600).stuck_after > 3600
    assert load(database_url=DSN).stuck_after == 600
    assert load(database_url=DSN, lease=3600, watchdog_timeout=0).stuck_after == 0
