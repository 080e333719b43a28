"""What can go wrong between an application and the queue, in words that say what to do.

Both transports raise these errors, and so does anything built on them. A message never holds a registration token, a
payload or a key.
"""

from __future__ import annotations

import re


class ClientError(Exception):
    """A call has failed: in the database, or on the way to it.

    Attributes:
        message: what is wrong.
        code: the SQLSTATE, or PostgREST's own code (``PGRST202``); None if nothing answered.
        hint: what to do about it, where the other side or this library knows.
    """

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        self.message = message
        self.code = code
        self.hint = hint
        super().__init__(" ".join(part for part in (message, hint and f"({hint})") if part))


class InvalidArgument(ClientError, ValueError):
    """The call can never succeed as it is: an argument is wrong. Nothing was changed."""


class NotAllowed(ClientError, PermissionError):
    """The key, the token or the database role may not do this. Nothing was changed."""


class NotFound(ClientError, LookupError):
    """The push does not exist, or it belongs to another user: the database does not tell which."""


class NotInstalled(ClientError):
    """The database does not have this function, or not with these arguments. Nothing was changed."""


class WrongState(ClientError):
    """The push is in a state that does not allow this; another worker has it, for example. Nothing was changed."""


class Unavailable(ClientError):
    """No answer came, or an answer that says "later". The same call may succeed later.

    Attributes:
        may_have_happened: whether the call may have been carried out although no answer came. If so, repeat the
            call only if that is harmless: a push with an ``idempotency_key``, a receipt, a result.
        retry_after: seconds that the other side asks to wait before the next call; None if it does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        may_have_happened: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.may_have_happened = may_have_happened
        self.retry_after = retry_after


class TooMany(Unavailable):
    """The caller sends more than it may at present. ``retry_after`` says when it may send again."""


SQLSTATE = re.compile(r"(?=.*\d)[0-9A-Z]{5}")
"""Five characters with at least one digit, so that ``EPIPE`` does not match."""
_SECONDS = re.compile(r"\bin (\d+) seconds?\b")
_MIGRATE = "run `push-listener migrate` on this database, and then have PostgREST reload its schema"


# Classes of SQLSTATE that do not blame the arguments. They are about the connection, the transaction, a prepared
# statement that a pooler has lost, or the state or the resources of the server.
_MAY_PASS = frozenset({"08", "25", "26", "40", "53", "55", "57", "58", "72", "F0", "XX"})
_DATA_EXCEPTIONS = frozenset({"22001", "22003", "22007", "22008", "22P02", "22P03", "22P05"})
"""The data exceptions whose message quotes the value."""


def from_sqlstate(code: str, message: str, hint: str | None = None) -> ClientError:
    """The error for an SQLSTATE that Postgres has reported, directly or through PostgREST.

    Args:
        code: five characters. push-listener's functions also raise PT404, PT413 and PT429, codes that PostgREST reads.
    """
    if code in _DATA_EXCEPTIONS:
        message = re.sub(r'".*"', "...", message, flags=re.DOTALL)
    if code == "PT404" or code == "P0002":
        return NotFound(message, code=code, hint=hint)
    if code == "PT429":
        wait = _SECONDS.search(hint or "")
        return TooMany(message, code=code, hint=hint, retry_after=float(wait[1]) if wait else None)
    if code == "42501" or code.startswith("28"):
        return NotAllowed(message, code=code, hint=hint or "call it with the service key, or as the owner")
    if code in ("42883", "3F000", "42P01"):
        return NotInstalled(message, code=code, hint=_MIGRATE)
    # Checked before the rest of class 55, which is temporary: a lock that was not available, for example.
    if code == "55000":
        return WrongState(message, code=code, hint=hint)
    if code[:2] in _MAY_PASS:
        return Unavailable(message, code=code, hint=hint)
    return InvalidArgument(message, code=code, hint=hint)


def reported_by(error: BaseException) -> ClientError | None:
    """The error for another library's error that carries a code of Postgres or PostgREST; None if it carries none.

    Errors of psycopg and asyncpg have a ``sqlstate``; those of postgrest, which supabase-py uses, have a ``code``. The
    text of these errors is left out, because it may hold a payload.
    """
    code = getattr(error, "sqlstate", None) or getattr(error, "code", None)
    if not isinstance(code, str):
        return None
    message = f"{type(error).__name__} {code}"
    if SQLSTATE.fullmatch(code):
        return from_sqlstate(code, message)
    if code in ("PGRST202", "PGRST203"):
        return NotInstalled(message, code=code, hint=_MIGRATE)
    return None


def not_installed(function: str, arguments: list[str]) -> NotInstalled:
    """The error for a function that the database does not have with these arguments."""
    return NotInstalled(
        f"the database has no function public.{function}({', '.join(sorted(arguments))})",
        code="PGRST202",
        hint=_MIGRATE,
    )
