"""Fixtures that give a test a real Postgres, and the option that says which.

``--postgres 16,18`` or ``TEST_POSTGRES`` name the major versions, ``all`` means every one that the project is
tested on. A test that uses a database runs on the newest of them; marked ``oldest_postgres`` on the oldest too, marked
``every_postgres`` on each.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import cache

import hypothesis
import pytest
import structlog

from listener import registration
from listener.doctor import examination
from listener.postgres.connect import Address, is_transaction_pooler, is_transaction_pooler_blocking
from listener.schema.migrate import session
from tests.support import key_pairs, tools
from tests.support.postgres import VERSIONS, Database, Server, Template, is_direct, programs

# No deadline: on a busy machine an example may take any time. `make check` asks for "quick".
hypothesis.settings.register_profile("push-listener", deadline=None, max_examples=50)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20)
hypothesis.settings.load_profile("push-listener")

_CHOSEN = pytest.StashKey[list[int]]()
_MISSING = pytest.StashKey[list[int]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres",
        action="append",
        metavar="VERSION",
        help="major versions to test on, separated by commas, or 'all'; default: TEST_POSTGRES, or 18",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "every_postgres: run on every chosen version; for SQL that one version may take differently",
    )
    config.addinivalue_line(
        "markers",
        "oldest_postgres: run on the oldest chosen version too; for what changes from version to version",
    )
    config.addinivalue_line(
        "markers",
        "newest_postgres: run on the newest chosen version only, in a module that is marked otherwise",
    )
    # To one stream: a service in this process may log while a test has sys.stdout, to read what a command prints.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell without job control starts what it leaves in the background so, and each program would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    asked = ",".join(config.getoption("--postgres") or []) or os.environ.get("TEST_POSTGRES", "")
    words = {word.strip() for word in asked.split(",") if word.strip()}
    try:
        versions = set(VERSIONS) if "all" in words else {int(word) for word in words or {"18"}}
    except ValueError:
        raise pytest.UsageError(f"--postgres takes versions such as 16,18 or 'all', not {asked!r}") from None
    config.stash[_CHOSEN] = sorted(each for each in versions if programs(each))
    config.stash[_MISSING] = missing = sorted(each for each in versions if not programs(each))
    if missing and (words - {"all"} or os.environ.get("CI") == "true"):
        raise pytest.UsageError(_missing_line(missing))


def _missing_line(missing: list[int]) -> str:
    names = ", ".join(map(str, missing))
    return f"PostgreSQL {names} is not here: NOTHING IS TESTED ON IT (`make test` installs what it can)"


def pytest_report_header(config: pytest.Config) -> list[str]:
    lines = [f"postgres {version}: {programs(version)}" for version in config.stash[_CHOSEN]]
    if config.stash[_MISSING]:
        lines.append(_missing_line(config.stash[_MISSING]))
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[_MISSING]:
        terminalreporter.write_line(_missing_line(config.stash[_MISSING]), red=True, bold=True)
    for name in sorted(tools.missing):
        line = f"{name} is not here: WHAT NEEDS IT IS NOT TESTED (`make test` installs what it can)"
        terminalreporter.write_line(line, red=True, bold=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "postgres" in metafunc.fixturenames:
        chosen = metafunc.config.stash[_CHOSEN]
        by_mark = {
            "every_postgres": chosen,
            "oldest_postgres": sorted({*chosen[:1], *chosen[-1:]}),
            "newest_postgres": chosen[-1:],
        }
        marks = (
            mark.name for mark in metafunc.definition.iter_markers()
        )  # that of a test before that of its module
        versions = by_mark[next((name for name in marks if name in by_mark), "newest_postgres")]
        metafunc.parametrize(
            "postgres", versions, indirect=True, scope="session", ids=[f"pg{each}" for each in versions]
        )


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Without garbage collection, which would look through thousands of tests again and again, now and later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that take long, which have a timeout of their own, run first: none is left alone for the end of a run.

    Then come those on an older Postgres: they stay together, so that few workers start a server of each version.
    """
    items.sort(key=lambda test: (-_allowed_time(test), _version(test)))


def _allowed_time(test: pytest.Item) -> float:
    mark = test.get_closest_marker("timeout")
    return float(mark.args[0]) if mark else 0.0


def _version(test: pytest.Item) -> int:
    callspec = getattr(test, "callspec", None)
    return VERSIONS[-1] if callspec is None else callspec.params.get("postgres", VERSIONS[-1])


@pytest.fixture(scope="session", autouse=True)
def _few_key_pairs() -> Iterator[None]:
    with key_pairs.few():
        yield


@pytest.fixture(scope="session", autouse=True)
def _known_addresses() -> Iterator[None]:
    """A test's own server is no pooler: to make sure of it would take 90 ms of CPU time, and longer, at each start.

    ``migrate`` does not ask; the service and the doctor ask once. They still connect, and meet what is wrong.
    """

    def asks_blocking(dsn: str) -> bool:
        return not is_direct(dsn) and is_transaction_pooler_blocking(dsn)

    async def asks(address: Address) -> bool:
        return await (
            is_transaction_pooler(address, probes=1)
            if is_direct(address.dsn)
            else is_transaction_pooler(address)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "is_transaction_pooler_blocking", asks_blocking)
        for module in (registration, examination):
            patch.setattr(module, "is_transaction_pooler", asks)
        yield


@pytest.fixture(scope="session")
def postgres_servers() -> Iterator[Callable[[int], Server]]:
    """One server for each major version, started when the first test asks for it."""
    with ExitStack() as stack:

        @cache
        def server(version: int) -> Server:
            bin_dir = programs(version)
            assert bin_dir is not None
            return stack.enter_context(Server(version, bin_dir))

        yield server


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest, postgres_servers: Callable[[int], Server]) -> Server:
    """A running server with a database of its own for each test, and roles that they share."""
    return postgres_servers(request.param)


@pytest.fixture(scope="session")
def oldest_server(pytestconfig: pytest.Config, postgres_servers: Callable[[int], Server]) -> Server:
    """Of the chosen versions the oldest, for a test that compares two."""
    return postgres_servers(pytestconfig.stash[_CHOSEN][0])


@pytest.fixture
def database(postgres: Server) -> Iterator[Database]:
    """Like a new Supabase project, with all migrations applied."""
    with postgres.database(Template.MIGRATED) as database:
        yield database


@pytest.fixture
def blank_database(postgres: Server) -> Iterator[Database]:
    """Like a new Supabase project: the roles and functions, no table."""
    with postgres.database(Template.SUPABASE) as database:
        yield database


@pytest.fixture
def bare_database(postgres: Server) -> Iterator[Database]:
    """Empty. Roles belong to the server, so those that other tests have made may exist."""
    with postgres.database(Template.BARE) as database:
        yield database
