"""Applications that write pushes whatever happens, and remember what the database promised them."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from uuid import UUID

import orjson
import psycopg
from psycopg.types.json import Jsonb

from tests.chaos.fcm import Exchange

USERS = 20
DEVICES = 3

_INSERT = """
insert into push_notifications
    (id, device_token, topic, user_id, title, body, data, priority, next_attempt_at, expires_at)
  select id, token, topic, "user", 'Your ride', 'It waits at the corner', '{"ride": "4711"}', priority,
      now() + make_interval(secs => send_in), now() + make_interval(secs => lives)
    from jsonb_to_recordset(%s) as wish(
      id uuid, token text, topic text, "user" uuid, priority text, send_in float8, lives float8)
  on conflict (id) do nothing
"""


@dataclass(slots=True)
class Wish:
    """A push that an application wants sent."""

    id: UUID
    token: str | None = None
    topic: str | None = None
    user: UUID | None = None
    priority: str = "normal"
    send_in: float = 0.0
    lives: float | None = None


@dataclass(slots=True)
class Ledger:
    """What the writers know. Only ever added to, by several threads."""

    committed: dict[UUID, Wish] = field(default_factory=dict)
    """The database has said that it has them."""
    taken_back: set[UUID] = field(default_factory=set)
    """Rolled back: nobody may ever hear of them."""
    cancelled: dict[UUID, float] = field(default_factory=dict)
    """``cancel_push`` has said yes; and when it had."""
    requeued: set[UUID] = field(default_factory=set)
    receipts: int = 0
    refused: int = 0
    """How often the database was away for a writer."""


class Writer(threading.Thread):
    """One application. ``act`` is done again and again, with a connection that may break at any moment."""

    def __init__(
        self, dsn: str, ledger: Ledger, seed: int, act: Callable[[Writer, psycopg.Connection], None]
    ) -> None:
        super().__init__(daemon=True, name=act.__name__)
        self.ledger = ledger
        self.rng = random.Random(seed)
        self.ended = threading.Event()
        self.unsure: list[Wish] = []
        """Asked for in a commit whose answer did not come."""
        self.fault: BaseException | None = None
        self._dsn = dsn
        self._act = act

    def run(self) -> None:
        try:
            while not self.ended.is_set() or self.unsure:
                try:
                    with psycopg.connect(self._dsn, connect_timeout=3) as conn:
                        self._again(conn)
                        while not self.ended.is_set():
                            self._act(self, conn)
                except (psycopg.OperationalError, psycopg.InternalError):
                    self.ledger.refused += 1
                    self.ended.wait(self.rng.uniform(0.05, 0.3))
        except BaseException as fault:
            self.fault = fault
            raise

    def wish(self, **how: object) -> Wish:
        """A push with an id of its own, by default to a device of its own."""
        push_id = UUID(int=self.rng.getrandbits(128), version=4)
        wish = Wish(push_id, **how)  # type: ignore[arg-type]
        if wish.user is None and wish.topic is None and wish.token is None:
            wish.token = f"phone-{push_id}"
        return wish

    def pause(self, least: float, most: float) -> None:
        """Waits, unless the writer is to end."""
        self.ended.wait(self.rng.uniform(least, most))

    def insert(self, conn: psycopg.Connection, wishes: Sequence[Wish]) -> None:
        """Inserts within the transaction that is open."""
        conn.execute(_INSERT, (Jsonb([asdict(wish) for wish in wishes], dumps=orjson.dumps),))

    def commit(self, conn: psycopg.Connection, wishes: Sequence[Wish]) -> None:
        """Commits, and notes what is promised by it; what an error leaves open is tried again later."""
        self.unsure.extend(wishes)
        conn.commit()
        self.ledger.committed.update((wish.id, wish) for wish in wishes)
        self.unsure.clear()

    def _again(self, conn: psycopg.Connection) -> None:
        if self.unsure:
            self.insert(conn, self.unsure)
            self.commit(conn, list(self.unsure))


def user(number: int) -> UUID:
    """The id of one of the users whose devices are registered."""
    return UUID(int=0xA0000000 + number, version=4)


def register_users(conn: psycopg.Connection) -> None:
    """Users with several devices each."""
    for number in range(USERS):
        for device in range(DEVICES):
            conn.execute(
                "insert into push_devices (token, user_id, platform) values (%s, %s, %s)",
                (f"user-{number}-{device}", user(number), ("android", "ios", "web")[device]),
            )


def steady(self: Writer, conn: psycopg.Connection) -> None:
    """One row after another, of every kind, as a busy application writes them."""
    rng = self.rng
    wish = self.wish()
    match rng.choices(
        ["plain", "high", "user", "topic", "scheduled", "expiring", "cancelled", "dead", "back", "held"],
        [30, 10, 12, 3, 12, 8, 8, 2, 5, 10],
    )[0]:
        case "high":
            wish.priority = "high"
        case "user":
            wish = self.wish(user=user(rng.randrange(USERS)))
        case "topic":
            wish = self.wish(topic=f"news-{rng.randrange(3)}")
        case "scheduled":
            wish.send_in = rng.uniform(0.2, 6.0)
        case "expiring":
            wish.lives = rng.uniform(0.05, 4.0)
        case "cancelled":
            wish.send_in = rng.choice([0.0, 0.0, 2.0])
            self.insert(conn, [wish])
            self.commit(conn, [wish])
            self.pause(0, 0.05)
            row = conn.execute("select cancel_push(%s)", (wish.id,)).fetchone()
            conn.commit()
            if row == (True,):
                self.ledger.cancelled[wish.id] = time.time()
            return
        case "dead":
            wish = self.wish(token=f"dead-{wish.id}")
        case "back":
            self.insert(conn, [wish])
            self.pause(0, 0.05)
            conn.rollback()
            self.ledger.taken_back.add(wish.id)
            return
        case "held":
            self.insert(conn, [wish])
            self.pause(0.05, 1.0)
    self.insert(conn, [wish])
    self.commit(conn, [wish])
    self.pause(0.005, 0.03)


def bursty(self: Writer, conn: psycopg.Connection) -> None:
    """Many rows at once, in large statements, long transactions and savepoints."""
    rng = self.rng
    many = [
        self.wish(priority=rng.choice(["normal", "normal", "high"])) for _ in range(rng.randrange(50, 400))
    ]
    self.insert(conn, many)
    if rng.random() < 0.5:
        lost = [self.wish() for _ in range(20)]
        conn.execute("savepoint perhaps")
        self.insert(conn, lost)
        conn.execute("rollback to savepoint perhaps")
        more = [self.wish() for _ in range(20)]
        self.insert(conn, more)
        self.pause(0, 1.5)
        self.commit(conn, [*many, *more])
        self.ledger.taken_back.update(wish.id for wish in lost)
    elif rng.random() < 0.15:
        conn.rollback()
        self.ledger.taken_back.update(wish.id for wish in many)
    else:
        self.commit(conn, many)
    self.pause(0.5, 3.0)


def operator(self: Writer, conn: psycopg.Connection) -> None:
    """Puts back into the queue what was given up."""
    self.pause(2.0, 4.0)
    found = conn.execute(
        "select id from push_notifications where status in ('dead', 'cancelled', 'failed') "
        "order by random() limit 5"
    ).fetchall()
    ids = [row[0] for row in found]
    self.ledger.requeued.update(ids)  # before it is done, for the answer may be lost
    conn.execute("select requeue_pushes(p_ids => %s)", (ids,))
    conn.commit()


class Phones(Writer):
    """Devices that report what they have got."""

    def __init__(self, dsn: str, ledger: Ledger, seed: int) -> None:
        super().__init__(dsn, ledger, seed, _report)
        self.got: queue.SimpleQueue[Exchange] = queue.SimpleQueue()
        self._share = random.Random(seed)

    def heard(self, exchange: Exchange) -> None:
        """FCM has been asked; of the phones that it sends to, some say so."""
        if exchange.accepted and self._share.random() < 0.05:
            self.got.put(exchange)


def _report(self: Writer, conn: psycopg.Connection) -> None:
    assert isinstance(self, Phones)
    try:
        exchange = self.got.get(timeout=0.2)
    except queue.Empty:
        return
    conn.execute(
        "select record_delivery_receipt(%s, %s, %s)",
        (exchange.push_id, exchange.target, self.rng.choice(["delivered", "opened"])),
    )
    conn.commit()
    self.ledger.receipts += 1
