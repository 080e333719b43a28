"""What can go wrong, and a plan of it that a seed decides."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import psycopg
from psycopg import AsyncConnection

from tests.chaos.proxy import Link
from tests.chaos.world import LEASE, Listener, World

SLOTS = 3
"""Listeners at once."""

_LAST_PROCESS = "SIGSTOP for longer than the lease"
_PAUSE = "FCM: permission denied"


@dataclass(frozen=True, slots=True)
class Step:
    """One fault: when (seconds from the start), what, at which listener, for how long, how bad (0 to 1)."""

    at: float
    fault: str
    slot: int
    seconds: float
    degree: float


CRASH = "Postgres restarted (immediate)"
"""The fault after which Postgres has forgotten what did not wait for the disk."""


@dataclass(frozen=True, slots=True)
class Event:
    """A fault that has been: Unix times, and whom it hit (None: all)."""

    fault: str
    began: float
    ended: float
    victim: Listener | None


@dataclass(slots=True)
class Stage:
    """Who plays, and what has happened."""

    world: World
    slots: list[Listener]
    events: list[Event] = field(default_factory=list)
    database: asyncio.Lock = field(default_factory=asyncio.Lock)
    places: list[asyncio.Lock] = field(default_factory=lambda: [asyncio.Lock() for _ in range(SLOTS)])


Act = Callable[[Stage, Step], Awaitable[None]]


# --- processes -------------------------------------------------------------------------------------------


async def start(world: World, slot: int) -> Listener:
    """A listener for a slot: every other one reaches Postgres through a unix socket."""
    return await world.start(unix=slot % 2 == 1)


async def _kill(stage: Stage, step: Step) -> None:
    async with stage.places[step.slot]:
        victim = stage.slots[step.slot]
        # The answers are on their way for a second, so the process dies with claims in its hands.
        victim.fcm.latency = 1.0
        await stage.world.until_sending(victim, patience=30.0)
        await victim.kill()
        await asyncio.sleep(step.seconds)
        stage.slots[step.slot] = await start(stage.world, step.slot)


async def _deploy(stage: Stage, step: Step) -> None:
    async with stage.places[step.slot]:
        old = stage.slots[step.slot]
        stage.slots[step.slot] = await start(stage.world, step.slot)
        await asyncio.sleep(step.degree)
        await old.end()


async def _stop(stage: Stage, step: Step) -> None:
    async with stage.places[step.slot]:
        await stage.world.until_sending(stage.slots[step.slot])
        await stage.slots[step.slot].stop_for(step.seconds)


async def _stop_long(stage: Stage, step: Step) -> None:
    async with stage.places[step.slot]:
        await stage.world.until_sending(stage.slots[step.slot])
        await stage.slots[step.slot].stop_for(LEASE + 1 + 2 * step.degree)


# --- Postgres --------------------------------------------------------------------------------------------


async def _restart(stage: Stage, step: Step, *, crash: bool) -> None:
    async with stage.database:
        await asyncio.to_thread(stage.world.server.stop, "immediate" if crash else "fast")
        await asyncio.sleep(step.seconds)
        await asyncio.to_thread(stage.world.server.start)


async def _restart_fast(stage: Stage, step: Step) -> None:
    await _restart(stage, step, crash=False)


async def _restart_immediate(stage: Stage, step: Step) -> None:
    await _restart(stage, step, crash=True)


async def _terminate_doorbells(stage: Stage, step: Step) -> None:
    async with stage.database:
        await stage.world.terminate()


async def _terminate_pools(stage: Stage, step: Step) -> None:
    async with stage.database:
        await stage.world.terminate(doorbells=False, pools=True)


async def _terminate_all(stage: Stage, step: Step) -> None:
    async with stage.database:
        await stage.world.terminate(doorbells=True, pools=True)


async def _use_up_connections(stage: Stage, step: Step) -> None:
    async with stage.database, contextlib.AsyncExitStack() as taken:
        until = time.monotonic() + step.seconds
        await stage.world.terminate(doorbells=step.degree < 0.5, pools=True)
        while time.monotonic() < until:
            try:
                conn = await AsyncConnection.connect(stage.world.database.dsn)
                await taken.enter_async_context(conn)
            except psycopg.OperationalError:
                await asyncio.sleep(0.02)


async def _configured(stage: Stage, step: Step, name: str, value: str) -> None:
    async with stage.database:
        async with await stage.world.admin() as conn:
            await conn.execute(f"alter system set {name} = {value}".encode())
            await conn.execute("select pg_reload_conf()")
        await asyncio.sleep(step.seconds)
        async with await stage.world.admin() as conn:
            await conn.execute(f"alter system reset {name}".encode())
            await conn.execute("select pg_reload_conf()")


async def _read_only(stage: Stage, step: Step) -> None:
    await _configured(stage, step, "default_transaction_read_only", "on")


async def _statement_timeout(stage: Stage, step: Step) -> None:
    await _configured(stage, step, "statement_timeout", f"{1 + int(step.degree * 8)}")


async def _login_refused(stage: Stage, step: Step) -> None:
    await _role_with(stage, step, "nologin", "login")


async def _few_connections(stage: Stage, step: Step) -> None:
    await _role_with(stage, step, f"connection limit {4 + int(4 * step.degree)}", "connection limit -1")


async def _role_with(stage: Stage, step: Step, option: str, usual: str) -> None:
    async with stage.database, await stage.world.admin() as conn:
        await conn.execute(f"alter role postgres {option}".encode())
        await stage.world.terminate(doorbells=True, pools=True)
        await asyncio.sleep(step.seconds)
        await conn.execute(f"alter role postgres {usual}".encode())


async def _workers_forgotten(stage: Stage, step: Step) -> None:
    """As by a failover to a server that lagged behind. The ids go on: the checker tells workers by them."""
    async with stage.database, await stage.world.admin() as conn:
        await conn.execute("truncate push_listener.workers")
        await stage.world.terminate(doorbells=True, pools=True)


async def _table_locked(stage: Stage, step: Step) -> None:
    async with stage.database, await stage.world.admin() as conn, conn.transaction():
        await conn.execute("lock table push_notifications in access exclusive mode")
        await asyncio.sleep(step.seconds)


async def _rows_locked(stage: Stage, step: Step) -> None:
    """The application locks some rows of the queue, as a transaction does that hangs."""
    async with stage.database, await stage.world.admin() as conn, conn.transaction():
        await conn.execute(
            "select from push_notifications where status in ('pending', 'processing') order by random() limit %s "
            "for update skip locked",
            (1 + int(step.degree * 30),),
        )
        await asyncio.sleep(step.seconds)


def _trigger(body: str, condition: str = "true") -> Act:
    """The application has a trigger for a while; ``condition`` is about ``new`` and ``old``."""

    async def act(stage: Stage, step: Step) -> None:
        async with stage.database:
            async with await stage.world.admin() as conn, conn.transaction():
                await conn.execute(
                    f"""
                    create or replace function public.chaos_meddles() returns trigger language plpgsql as
                      $$ begin {body} end $$;
                    create trigger chaos_meddles before update on push_notifications
                      for each row when ({condition}) execute function public.chaos_meddles();
                    """.encode()
                )
            await asyncio.sleep(step.seconds)
            async with await stage.world.admin() as conn:
                await conn.execute("drop trigger chaos_meddles on push_notifications")

    return act


# Some of the rows, chosen by their ids. A receipt for a row that is being sent is no claim.
_SOME_CLAIMS = "new.status = 'processing' and old.status <> 'processing' and hashtext(new.id::text) % 3 = 0"


# --- the network -----------------------------------------------------------------------------------------


async def _hole(link: Link, step: Step, *, forget: bool) -> None:
    link.hole()
    await asyncio.sleep(step.seconds)
    link.heal(forget=forget)


async def _latency(link: Link, step: Step) -> None:
    link.latency = 0.1 + 0.5 * step.degree
    await asyncio.sleep(step.seconds)
    link.latency = 0.0


async def _rate(link: Link, step: Step) -> None:
    link.rate = 20_000 + 100_000 * step.degree
    await asyncio.sleep(step.seconds)
    link.rate = None


_NETWORK: dict[str, Callable[[Link, Step], Awaitable[None]]] = {
    "black hole": lambda link, step: _hole(link, step, forget=False),
    "black hole that forgets connections": lambda link, step: _hole(link, step, forget=True),
    "slow": _latency,
    "throttled": _rate,
}


def _on_network(which: str, trouble: Callable[[Link, Step], Awaitable[None]]) -> Act:
    async def act(stage: Stage, step: Step) -> None:
        victim = stage.slots[step.slot]
        await trouble(victim.postgres if which == "Postgres" else victim.fcm, step)

    return act


def _cut(which: str, *, silently: bool) -> Act:
    async def act(stage: Stage, step: Step) -> None:
        victim = stage.slots[step.slot]
        link = victim.postgres if which == "Postgres" else victim.fcm
        if silently:
            link.silence()
        else:
            link.reset()

    return act


# --- FCM -------------------------------------------------------------------------------------------------


def _storm(rule: str, *, all_of_it: bool = False) -> Act:
    async def act(stage: Stage, step: Step) -> None:
        share = 1.0 if all_of_it else 0.2 + 0.7 * step.degree
        rule_id = stage.world.fcm.add_fault(f"{rule},share={share:.2f}")
        await asyncio.sleep(step.seconds)
        stage.world.fcm.remove_fault(rule_id)

    return act


async def _fcm_down(stage: Stage, step: Step) -> None:
    await stage.world.fcm.stop()
    await asyncio.sleep(step.seconds)
    await stage.world.fcm.start()


async def _no_tokens(stage: Stage, step: Step) -> None:
    rule_id = stage.world.fcm.add_fault("oauth_server_error")
    stage.world.fcm.expire_access_tokens()
    await asyncio.sleep(step.seconds)
    stage.world.fcm.remove_fault(rule_id)


async def _expired_tokens(stage: Stage, step: Step) -> None:
    stage.world.fcm.expire_access_tokens()


ACTS: dict[str, tuple[Act, tuple[float, float]]] = {
    "SIGKILL": (_kill, (0.5, 3.0)),
    "SIGTERM, the next one already there": (_deploy, (0.0, 0.0)),
    "SIGSTOP for some seconds": (_stop, (1.0, 5.0)),
    _LAST_PROCESS: (_stop_long, (0.0, 0.0)),
    "Postgres restarted (fast)": (_restart_fast, (0.0, 2.0)),
    CRASH: (_restart_immediate, (0.0, 2.0)),
    "LISTEN backends terminated": (_terminate_doorbells, (0.0, 0.0)),
    "pool backends terminated": (_terminate_pools, (0.0, 0.0)),
    "all backends terminated": (_terminate_all, (0.0, 0.0)),
    "connections used up": (_use_up_connections, (1.0, 3.0)),
    "database read-only": (_read_only, (1.0, 3.0)),
    "statement timeouts": (_statement_timeout, (1.0, 3.0)),
    "login refused": (_login_refused, (1.0, 3.0)),
    "few connections for the role": (_few_connections, (1.0, 3.0)),
    "workers forgotten": (_workers_forgotten, (0.0, 0.0)),
    "table locked": (_table_locked, (0.5, 2.0)),
    "rows locked": (_rows_locked, (1.0, 5.0)),
    "trigger refuses claims": (_trigger("raise exception 'no';", _SOME_CLAIMS), (1.0, 3.0)),
    "trigger ignores claims": (_trigger("return null;", _SOME_CLAIMS), (1.0, 3.0)),
    "trigger undoes claims": (_trigger("return old;", _SOME_CLAIMS), (1.0, 3.0)),
    "trigger is slow": (_trigger("perform pg_sleep(0.005); return new;"), (1.0, 3.0)),
    **{
        f"network to {which}: {name}": (_on_network(which, trouble), (2.0, 6.0))
        for which in ("Postgres", "FCM")
        for name, trouble in _NETWORK.items()
    },
    "network to Postgres: half-open": (_cut("Postgres", silently=True), (0.0, 0.0)),
    "network to Postgres: reset": (_cut("Postgres", silently=False), (0.0, 0.0)),
    "network to FCM: half-open": (_cut("FCM", silently=True), (0.0, 0.0)),
    "network to FCM: reset": (_cut("FCM", silently=False), (0.0, 0.0)),
    "FCM: 429": (_storm("quota_exceeded,retry_after=1"), (1.0, 3.0)),
    "FCM: 500": (_storm("internal"), (1.0, 3.0)),
    "FCM: 503": (_storm("unavailable"), (1.0, 3.0)),
    "FCM: 502 in HTML": (_storm("bad_gateway_html"), (1.0, 3.0)),
    "FCM: no answer": (_storm("timeout"), (1.0, 3.0)),
    "FCM: accepts, and does not answer": (_storm("timeout_after_accept"), (1.0, 3.0)),
    "FCM: resets": (_storm("reset"), (1.0, 3.0)),
    "FCM: accepts, and resets": (_storm("reset_after_accept"), (1.0, 3.0)),
    "FCM: slow": (_storm("slow,latency_ms=1500"), (1.0, 3.0)),
    "FCM: 503 to everything": (_storm("unavailable", all_of_it=True), (2.0, 5.0)),
    "FCM: down": (_fcm_down, (1.0, 5.0)),
    "OAuth: down, tokens expired": (_no_tokens, (1.0, 3.0)),
    "OAuth: tokens expired": (_expired_tokens, (0.0, 0.0)),
    _PAUSE: (_storm("permission_denied", all_of_it=True), (0.5, 1.0)),
}


def plan(seed: int, seconds: float) -> list[Step]:
    """The faults of a run: every kind once, in an order that the seed decides, and again while there is time.

    The stop for longer than the lease comes at once, and the refusal of permission, after which listeners pause for
    half a minute, late.
    """
    rng = random.Random(seed)
    kinds = [kind for kind in ACTS if kind not in (_LAST_PROCESS, _PAUSE)]
    rounds = max(1, round(seconds / 100))
    steps: list[Step] = []
    length = seconds / rounds
    for number in range(rounds):
        began = number * length
        rng.shuffle(kinds)
        frozen = rng.randrange(SLOTS)
        steps.append(_step(rng, began + 1.5, _LAST_PROCESS, frozen))
        others = [slot for slot in range(SLOTS) if slot != frozen]
        gap = (length - 6.0) / len(kinds)
        for place, kind in enumerate(kinds):
            at = began + 3.0 + (place + rng.uniform(0.0, 0.8)) * gap
            steps.append(_step(rng, at, kind, rng.choice(others)))
        steps.append(_step(rng, began + length - 2.0, _PAUSE, 0))
    return sorted(steps, key=lambda step: step.at)


def _step(rng: random.Random, at: float, fault: str, slot: int) -> Step:
    least, most = ACTS[fault][1]
    return Step(round(at, 2), fault, slot, round(rng.uniform(least, most), 2), round(rng.random(), 2))


async def perform(stage: Stage, step: Step) -> None:
    """Does it, when it is time, and notes what it was."""
    await asyncio.sleep(step.at)
    victim = stage.slots[step.slot] if "SIG" in step.fault or "network" in step.fault else None
    began = time.time()
    await ACTS[step.fault][0](stage, step)
    stage.events.append(Event(step.fault, began, time.time(), victim))
