"""The entry point of ``python -m listener``, the same as ``push-listener``."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys

from listener import interrupts


def main() -> None:
    """Runs the command that the arguments name; does not return."""
    interrupts.end_at_once()
    interrupts.end_by_sigterm_as_first_process()
    _open_standard_streams()
    from listener.cli.main import main as command

    try:
        command(prog_name="push-listener")
    except KeyboardInterrupt:
        _end(interrupts.EXIT_CODE)
    except SystemExit as end:
        _end(end.code)
    finally:
        interrupts.end_at_once()


def _end(code: str | int | None) -> None:
    """Ends the process without shutting down the interpreter.

    Threads of libraries and the thread that writes the log may still run. On a busy machine one of them sometimes
    crashes Python 3.11 during the shutdown, and the exit code is then that of a segmentation fault.
    """
    interrupts.end_at_once()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            if isinstance(code, str) and stream is sys.stderr:
                stream.write(f"{code}\n")
            stream.flush()
    os._exit(1 if isinstance(code, str) else code or 0)


def _open_standard_streams() -> None:
    """Opens /dev/null as each standard stream that the process was started without.

    Otherwise the next file that is opened gets the number of that stream: the log would go into a connection to
    Postgres, and libuv aborts the process when it closes such a file.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115  # for the life of the process


if __name__ == "__main__":
    main()
