"""The emulator as a program: what ``push-listener emulator`` runs."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

import orjson

from listener.emulator.faults import Fault
from listener.emulator.oauth import ACCOUNT
from listener.emulator.server import Emulator

DEFAULT_PORT = 9199


async def run(
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    project_id: str = "demo-project",
    latency_ms: float = 0.0,
    faults: Iterable[Fault | str] = (),
    credentials: Path | None = None,
    token_lifetime: float = 3600.0,
    seed: int | None = None,
    say: Callable[[str], object] = print,
) -> None:
    """Runs the emulator until cancelled.

    ``credentials`` names the file for the service account's key; only its owner may read it. An existing file is
    overwritten only if it is empty or an emulator has written it, because any other file may be a real key.
    ``say`` gets the lines that tell how to use the emulator. Raises ValueError for a bad rule or latency, or if it must
    not overwrite the file; OSError if the port cannot be bound or the file cannot be written.
    """
    if credentials is not None and not _may_write(credentials):
        raise ValueError(
            f"{credentials} exists and is not the key of an emulator: name another file, or remove it"
        )
    emulator = Emulator(
        project_id,
        host,
        port,
        latency=latency_ms / 1000,
        faults=faults,
        token_lifetime=token_lifetime,
        seed=seed,
    )
    async with emulator:
        if credentials is not None:
            _write_private(credentials, orjson.dumps(emulator.service_account, option=orjson.OPT_INDENT_2))
        say(_how_to_use(emulator, credentials))
        await asyncio.Event().wait()


def _how_to_use(emulator: Emulator, credentials: Path | None) -> str:
    if credentials is None:
        key = (
            "  export FCM_SERVICE_ACCOUNT_JSON="
            f'"$(curl -s {emulator.endpoint}/emulator/service-account.json)"'
        )
    else:
        key = f"  export GOOGLE_APPLICATION_CREDENTIALS={shlex.quote(str(credentials.absolute()))}"
    return (
        f"FCM emulator for project {emulator.project_id} at {emulator.endpoint}\n"
        "Point the service at it:\n"
        f"  export FCM_ENDPOINT={emulator.endpoint}\n"
        f"{key}\n"
        f"See what it received: {emulator.endpoint}/emulator/messages"
    )


def _may_write(path: Path) -> bool:
    """Whether nothing is lost if a key is written to this path."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return True
    try:
        key = orjson.loads(content)
    except orjson.JSONDecodeError:
        return not content.strip()
    return isinstance(key, dict) and str(key.get("client_email", "")).startswith(f"{ACCOUNT}@")


def _write_private(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)  # os.open does not change the mode of an existing file.
        file.write(content)
