"""A stand-in for Supabase's REST interface: the gateway that checks the API key, and PostgREST's ``/rpc`` and inserts.

It does what PostgREST 12 does for a call of a function: checks the token, sets the role with its settings and the
claims for one transaction, binds the keys of the body to arguments by name, converts them in Postgres, and answers
errors with ``{code, message, details, hint}`` and the status that belongs to the SQLSTATE (postgrest.org, "Errors").
Of tables it knows the insert of rows that all have the same keys. Pages of any origin may call it, and may sign out; it
never refreshes a session. It can also be told to fail.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt
import psycopg
from aiohttp import web
from aiohttp.typedefs import Handler
from psycopg import sql
from psycopg.rows import namedtuple_row, scalar_row
from psycopg_pool import AsyncConnectionPool

from tests.support.postgres import Database

SECRET = "a-secret-that-only-the-tests-know-0123456789"
SECRET_KEY = "sb_secret_of_the_tests"
"""A key of the newer kind for servers: no JWT."""
PUBLISHABLE_KEY = "sb_publishable_of_the_tests"

_KEYS = {SECRET_KEY: "service_role", PUBLISHABLE_KEY: "anon"}

_CANDIDATES = """
select p.proretset as is_set, p.prorettype = 'void'::regtype as is_void,
       coalesce(p.proargnames[:p.pronargs], '{}')::text[] as names,
       array(select format_type(t, null) from unnest(p.proargtypes) with ordinality u(t, n) order by n) as types,
       p.pronargs - p.pronargdefaults as required
  from pg_proc p
  where p.pronamespace = 'public'::regnamespace and p.proname = %s and p.prokind = 'f'
"""

_SETTINGS = """
select s.setting from pg_roles r, unnest(r.rolconfig) s(setting)
  where r.rolname = %s and s.setting ~ '^(statement_timeout|lock_timeout|plan_cache_mode)='
"""

# The first that fits counts. Source: PostgREST, src/PostgREST/Error.hs, pgErrorStatus.
_STATUSES = {
    "08": 503, "09": 500, "0L": 403, "0P": 403, "23503": 409, "23505": 409, "25006": 405, "25": 500, "28": 403,
    "2D": 500, "38": 500, "39": 500, "3B": 500, "40": 500, "53400": 500, "53": 503, "54": 500, "55": 500,
    "57P01": 503, "57": 500, "58": 500, "F0": 500, "HV": 500, "P0001": 400, "P0": 500, "XX": 500, "42883": 404,
    "42P01": 404, "42P17": 500,
}  # fmt: skip


def token(role: str, user: str | None = None, *, seconds: float = 3600, secret: str = SECRET) -> str:
    """A JWT as Supabase's auth signs it; with ``role`` alone also one of the older API keys."""
    claims = {"role": role, "iss": "supabase", "exp": int(time.time() + seconds)}
    return jwt.encode(claims if user is None else {**claims, "sub": user}, secret, algorithm="HS256")


SERVICE_KEY = token("service_role", seconds=10**9)
ANON_KEY = token("anon", seconds=10**9)
"""Keys of the older kind, which are JWTs."""


@dataclass
class Request:
    """One that has come, and what was answered."""

    function: str
    """Or the table."""
    headers: dict[str, str]
    body: bytes
    status: int | None = None


@dataclass
class RestServer:
    """A running stand-in."""

    url: str = ""
    faults: deque[int | str] = field(default_factory=deque)
    """For each of the next requests: ``cut`` (carried out, but no answer), ``reset`` (neither), ``""`` (none), or a
    status that the gateway answers with a page of HTML."""
    retry_after: str | None = None
    """Header of such a status."""
    away: bool = False
    """Whether every connection is reset."""
    requests: list[Request] = field(default_factory=list)


class _Refused(Exception):
    def __init__(self, status: int, **body: Any) -> None:
        self.status = status
        self.body = body


@contextmanager
def serving(database: Database) -> Iterator[RestServer]:
    """The stand-in before a database, in a thread of its own."""
    server = RestServer()
    loop = asyncio.new_event_loop()
    ready, leave = threading.Event(), asyncio.Event()
    trouble: list[BaseException] = []

    async def serve() -> None:
        pool = AsyncConnectionPool(
            database.dsn_as("authenticator"), min_size=0, max_size=10, open=False, name="rest"
        )
        async with pool:
            app = web.Application(client_max_size=64 << 20, middlewares=[_for_any_origin])
            handler = _Handler(server, pool)
            app.router.add_post("/rest/v1/rpc/{function}", handler.handle)
            app.router.add_post("/rest/v1/{table}", handler.handle)
            app.router.add_post("/auth/v1/{function}", handler.handle_auth)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            server.url = f"http://{host}:{port}"
            ready.set()
            await leave.wait()
            await runner.cleanup()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:
            trouble.append(error)
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=run, name="rest")
    thread.start()
    ready.wait()
    try:
        if not trouble:
            yield server
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(leave.set)
        thread.join()
    if trouble:
        raise trouble[0]


class _Handler:
    def __init__(self, server: RestServer, pool: AsyncConnectionPool[Any]) -> None:
        self._server = server
        self._pool = pool

    async def handle(self, request: web.Request) -> web.StreamResponse:
        called = request.match_info.get("function")
        seen = Request(called or request.match_info["table"], dict(request.headers), await request.read())
        self._server.requests.append(seen)
        fault = self._server.faults.popleft() if self._server.faults else ""
        if self._server.away or fault == "reset":
            return _cut(request)
        if isinstance(fault, int):
            headers = {"Retry-After": self._server.retry_after} if self._server.retry_after else {}
            seen.status = fault
            return web.Response(
                status=fault, text="<html>gateway</html>", content_type="text/html", headers=headers
            )
        try:
            if called is None:
                found = await self._insert(seen.function, request, seen.body)
            else:
                found = await self._call(called, request, seen.body)
            answer = web.Response(status=204) if found is None else web.json_response(text=found)
        except _Refused as refused:
            answer = web.json_response(refused.body, status=refused.status)
        seen.status = answer.status
        return _cut(request) if fault == "cut" else answer

    async def handle_auth(self, request: web.Request) -> web.StreamResponse:
        function = request.match_info["function"]
        status = 204 if function == "logout" else 400
        self._server.requests.append(
            Request(f"auth/{function}", dict(request.headers), await request.read(), status)
        )
        return web.Response(status=status)

    async def _call(self, function: str, request: web.Request, body: bytes) -> str | None:
        """The JSON of the answer; None for a function that returns nothing."""
        claims = _claims(request)
        role = claims["role"]
        try:
            given = json.loads(body or b"{}")
        except ValueError:
            given = None
        if not isinstance(given, dict):
            raise _Refused(400, code="PGRST102", details=None, hint=None, message="Empty or invalid json")
        try:
            async with self._pool.connection() as connection, connection.transaction():
                await self._become(connection, role, claims)
                chosen = await _choose(connection, function, list(given))
                async with connection.cursor(row_factory=scalar_row) as cursor:
                    await cursor.execute(_statement(function, chosen, list(given)), {"body": body.decode()})
                    found = await cursor.fetchone()
            return None if chosen.is_void else str(found)
        except psycopg.Error as error:
            raise _refusal(error, role) from error

    async def _insert(self, table: str, request: web.Request, body: bytes) -> str | None:
        """The rows as JSON; None if the caller does not want them. One statement, as PostgREST makes it."""
        claims = _claims(request)
        rows = json.loads(body)
        names = list((rows if isinstance(rows, list) else [rows])[0])
        wants_rows = "return=minimal" not in request.headers.get("Prefer", "")
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        statement = sql.SQL(
            "with added as (insert into public.{table} ({columns}) "
            "select {columns} from json_populate_recordset(null::public.{table}, %(body)s::json) returning *) "
            "select {answer} from added"
        ).format(
            table=sql.Identifier(table),
            columns=columns,
            answer=sql.SQL("json_agg(added)::text" if wants_rows else "count(*)::text"),
        )
        text = body.decode() if isinstance(rows, list) else f"[{body.decode()}]"
        try:
            async with self._pool.connection() as connection, connection.transaction():
                await self._become(connection, claims["role"], claims)
                async with connection.cursor(row_factory=scalar_row) as cursor:
                    await cursor.execute(statement, {"body": text})
                    found = await cursor.fetchone()
            return str(found) if wants_rows else None
        except psycopg.Error as error:
            raise _refusal(error, claims["role"]) from error

    async def _become(
        self, connection: psycopg.AsyncConnection[Any], role: str, claims: dict[str, Any]
    ) -> None:
        async with connection.cursor(row_factory=scalar_row) as cursor:
            settings = await (await cursor.execute(_SETTINGS, (role,))).fetchall()
            for name, _, value in (str(each).partition("=") for each in settings):
                await cursor.execute("select set_config(%s, %s, true)", (name, value))
            await cursor.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
            await cursor.execute("select set_config('request.jwt.claims', %s, true)", (json.dumps(claims),))


@web.middleware
async def _for_any_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    answer = web.Response() if request.method == "OPTIONS" else await handler(request)
    answer.headers.update(
        {
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "*"),
        }
    )
    return answer


def _claims(request: web.Request) -> dict[str, Any]:
    """Who sent the request: first the gateway, which knows the keys, then PostgREST, which knows JWTs."""
    key = request.headers.get("apikey")
    if not key:
        raise _Refused(
            401,
            message="No API key found in request",
            hint="No `apikey` request header or url param was found.",
        )
    if key not in _KEYS and key not in (SERVICE_KEY, ANON_KEY):
        raise _Refused(
            401,
            message="Invalid API key",
            hint="Double check your Supabase `anon` or `service_role` API key.",
        )
    authorization = request.headers.get("Authorization", "")
    if not authorization:
        return {"role": _KEYS.get(key, "anon")}
    kind, _, text = authorization.partition(" ")
    try:
        claims: dict[str, Any] = jwt.decode(text, SECRET, algorithms=["HS256"])
    except jwt.ExpiredSignatureError:
        raise _Refused(401, code="PGRST303", details=None, hint=None, message="JWT expired") from None
    except jwt.InvalidTokenError:
        raise _Refused(
            401,
            code="PGRST301",
            details=None,
            hint=None,
            message="Expected 3 parts in JWT; got 1" if kind == "Bearer" else "No suitable key was found",
        ) from None
    return {"role": "anon", **claims}


async def _choose(connection: psycopg.AsyncConnection[Any], function: str, given: list[str]) -> Any:
    async with connection.cursor(row_factory=namedtuple_row) as cursor:
        candidates: list[Any] = await (await cursor.execute(_CANDIDATES, (function,))).fetchall()
    fit = [
        each
        for each in candidates
        if set(given) <= set(each.names) and set(each.names[: each.required]) <= set(given)
    ]
    shown = f"public.{function}({', '.join(sorted(given))})"
    if not fit:
        raise _Refused(
            404,
            code="PGRST202",
            details=f"Searched for the function {shown}, but no matches were found in the schema cache.",
            hint=None,
            message=f"Could not find the function {shown} in the schema cache",
        )
    if len(fit) > 1:
        raise _Refused(
            300,
            code="PGRST203",
            details=None,
            hint="Try renaming the parameters or the function itself in the database",
            message=f"Could not choose the best candidate function between: {shown}",
        )
    return fit[0]


def _statement(function: str, chosen: Any, given: list[str]) -> sql.Composed:
    types = dict(zip(chosen.names, chosen.types, strict=True))
    record = sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(n), sql.SQL(types[n])) for n in given)
    arguments = sql.SQL(", ").join(sql.SQL("{0} := body.{0}").format(sql.Identifier(name)) for name in given)
    source = sql.SQL("json_to_record(%(body)s::json) as body({}), ").format(record) if given else sql.SQL("")
    result = (
        sql.SQL("coalesce(json_agg(f), '[]')::text")
        if chosen.is_set
        else sql.SQL("null")
        if chosen.is_void
        else sql.SQL("coalesce(to_json(f), 'null')::text")
    )
    return sql.SQL("select {} from {}lateral public.{}({}) as f").format(
        result, source, sql.Identifier(function), arguments
    )


def _refusal(error: psycopg.Error, role: str) -> _Refused:
    code = error.sqlstate
    if code is None:
        return _Refused(503, code="PGRST001", details=None, hint=None, message="Database client error")
    if code.startswith("PT") and code[2:].isdigit():
        status = int(code[2:])
    elif code == "42501":
        status = 401 if role == "anon" else 403
    else:
        status = next((status for prefix, status in _STATUSES.items() if code.startswith(prefix)), 400)
    diag = error.diag
    return _Refused(
        status, code=code, message=diag.message_primary, details=diag.message_detail, hint=diag.message_hint
    )


def _cut(request: web.Request) -> web.StreamResponse:
    """Closes the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
