"""Runs commands of push-listener in this process."""

from __future__ import annotations

import asyncio
import os

from click.testing import CliRunner, Result

from listener import config
from listener.cli.main import main


async def invoke(dsn: str | None, *arguments: str, answer: str = "", **variables: str) -> Result:
    """Runs a command in a thread, with DATABASE_URL and ``variables`` set, and no other variable of push-listener.

    ``answer`` is what a person types.
    """
    names = {variable.name for variable in config.describe()} & os.environ.keys()
    env: dict[str, str | None] = {**dict.fromkeys(names), **variables}
    if dsn is not None:
        env["DATABASE_URL"] = dsn
    return await asyncio.to_thread(CliRunner().invoke, main, list(arguments), input=answer, env=env)
