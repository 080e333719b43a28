"""``push-listener run`` that notes when it claims: for ``tests.benchmarks.stages``.

    python -m tests.benchmarks.watched FILE

When it ends it writes a line of JSON to the file for each claim: when it was begun and when it was answered, as Unix
time in nanoseconds, and the ids that it brought.
"""

from __future__ import annotations

import atexit
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from listener.__main__ import main
from listener.postgres.queue import Queue
from listener.push import Push


def watch(file: Path) -> None:
    """From now on notes each claim of this process."""
    claims: list[tuple[int, int, list[str]]] = []
    claim = Queue.claim

    async def watched(*arguments: Any, **options: Any) -> list[Push]:
        began = time.time_ns()
        pushes = await claim(*arguments, **options)
        claims.append((began, time.time_ns(), [str(push.id) for push in pushes]))
        return pushes

    setattr(Queue, "claim", watched)  # noqa: B010
    atexit.register(lambda: file.write_bytes(b"\n".join(map(orjson.dumps, claims))))


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
    sys.argv[1:] = ["run"]
    main()
