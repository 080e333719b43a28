"""Goes over every row after a run: what was promised, and what came of it. Pure."""

from __future__ import annotations

import itertools
import signal
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from tests.chaos.faults import CRASH, Event
from tests.chaos.fcm import Exchange
from tests.chaos.world import FCM_REQUEST_TIMEOUT, LEASE, MAX_TRIES, Listener
from tests.chaos.writers import Ledger
from tests.support.service import OVER

MOVES = {
    ("pending", "processing"),
    ("failed", "processing"),
    ("processing", "processing"),
    *(("processing", end) for end in ("pending", "sent", "delivered", "failed", "dead", "expired")),
    *((waiting, over) for waiting in ("pending", "failed") for over in ("cancelled", "expired")),
    *((over, "pending") for over in ("dead", "expired", "failed", "cancelled")),
    ("sent", "delivered"),
}
"""From which status to which a row may go. docs/state_machine.md shows the same table."""
_OWN_FAULTS = {"INTERNAL_ERROR", "NOT_WRITTEN", "INVALID_PUSH", "NOT_TRIED"}
_CLOCK = 0.002
"""Seconds by which two readings of one clock may seem to disagree."""
_FOR_THE_WAY = 2.0
"""Seconds from the last look at ``expires_at`` to the request's arrival, when this machine is busy."""
_UNTIL_ON_DISK = 5.0
"""Seconds after which a commit that does not wait for the disk is there. Postgres promises three times
wal_writer_delay, 0.6 s; a busy machine may take longer."""
_STATUS_BEFORE_LOG = 10.0
"""Seconds. A result that takes too long is written without its log rows; a process that dies takes these with it."""


@dataclass(slots=True)
class Claim:
    """One claim of one row, from the audit."""

    push_id: UUID
    attempt: int
    worker: int
    at: float
    fate: str = "held"
    """held, settled, rescued (its worker was taken for dead), lease (it ran out)."""
    ended: float | None = None


@dataclass(slots=True)
class Findings:
    """What the checker found."""

    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    given_up: Counter[str] = field(default_factory=Counter)
    """Dead rows by error code."""
    unsent: Counter[str] = field(default_factory=Counter)
    """Attempts that did not get as far as FCM, by code."""
    doubles: Counter[str] = field(default_factory=Counter)
    """Copies that a device got beyond the first, by why."""
    unlogged: Counter[str] = field(default_factory=Counter)
    """Requests without a log row, by the process that died of SIGKILL before it could write it."""
    forgotten: set[tuple[UUID, int]] = field(default_factory=set)
    """Pushes and attempts whose first claim Postgres has forgotten in a crash, although requests were made."""
    held_at_kill: dict[str, int] = field(default_factory=dict)
    """Rows in the hands of each killed process."""

    def wrong(self, what: str) -> None:
        """Notes a broken promise."""
        self.violations.append(what)


@dataclass(slots=True)
class Evidence:
    """Everything that is known of a run. Rows are dictionaries, times Unix times."""

    ledger: Ledger
    exchanges: Sequence[Exchange]
    processes: Sequence[Listener]
    events: Sequence[Event]
    workers: Mapping[int, str]
    """Names by worker id."""
    rows: Mapping[UUID, Mapping[str, Any]]
    logs: Sequence[Mapping[str, Any]]
    audit: Sequence[Mapping[str, Any]]


Key = tuple[UUID, int, str]
"""One push, one claim of it, one target."""


def check(evidence: Evidence) -> Findings:
    """Every promise, held against everything that is known."""
    found = Findings()
    claims = _history(evidence, found)
    _promises(evidence, claims, found)
    requests = _by_claim(evidence, claims, found)
    _logs(evidence, claims, requests, found)
    _doubles(evidence, claims, requests, found)
    _timely(evidence, requests, found)
    return found


def _history(evidence: Evidence, found: Findings) -> dict[UUID, list[Claim]]:
    """The claims of each row; checks that every change of state was one that may be."""
    claims: dict[UUID, list[Claim]] = defaultdict(list)
    for change in evidence.audit:
        push_id, before, after = change["push_id"], change["old_status"], change["status"]
        mine = claims[push_id]
        if before is None:
            continue
        if (before, after) not in MOVES:
            found.wrong(f"{push_id} went from {before} to {after}")
        if before == "processing" and mine and mine[-1].fate == "held":
            mine[-1].ended = change["at"]
            mine[-1].fate = "lease" if after == "processing" else "rescued" if change["lost"] else "settled"
        if after == "processing":
            if change["old_due"] is None or change["old_due"] > change["at"] + _CLOCK:
                found.wrong(f"{push_id} was claimed from {before} before it was due")
            if mine and change["attempt"] != mine[-1].attempt + 1:
                found.wrong(f"{push_id}: claim {change['attempt']} follows claim {mine[-1].attempt}")
            mine.append(Claim(push_id, change["attempt"], change["worker"], change["at"]))
    found.counts["claims"] = sum(map(len, claims.values()))
    ends = Counter(claim.fate for mine in claims.values() for claim in mine)
    found.counts["claims rescued from dead workers"] = ends["rescued"]
    found.counts["claims whose lease ran out"] = ends["lease"]
    return claims


def _promises(evidence: Evidence, claims: Mapping[UUID, list[Claim]], found: Findings) -> None:
    """Committed: finished. Rolled back: never heard of. Cancelled: not sent. Tries: not exceeded."""
    ledger, rows = evidence.ledger, evidence.rows
    accepted = {exchange.push_id for exchange in evidence.exchanges if exchange.accepted}
    heard_of = {exchange.push_id for exchange in evidence.exchanges}
    found.counts["rows committed"] = len(ledger.committed)
    for push_id in ledger.committed:
        row = rows.get(push_id)
        if row is None:
            found.counts["lost"] += 1
            found.wrong(f"{push_id} was committed and is gone")
        elif row["status"] not in OVER or row["next_attempt_at"] is not None:
            found.counts["stuck"] += 1
            found.wrong(f"{push_id} is still {row['status']}")
        elif row["status"] in ("sent", "delivered") and push_id not in accepted:
            found.counts["lost"] += 1
            found.wrong(f"{push_id} is {row['status']}, but FCM has not accepted it")
    for push_id, row in rows.items():
        found.statuses[row["status"]] += 1
        if row["retry_count"] > MAX_TRIES:
            found.wrong(f"{push_id} was tried {row['retry_count']} times")
        if row["status"] == "dead":
            found.given_up[row["error_code"]] += 1
        if row["error_code"] in _OWN_FAULTS and row["status"] in OVER:
            found.wrong(f"{push_id} ended with {row['error_code']}: {row['last_error']}")
    for push_id in ledger.taken_back & (heard_of | set(rows)):
        found.wrong(f"{push_id} was rolled back, and is there")
    for push_id, when in ledger.cancelled.items():
        if push_id in ledger.requeued:
            continue
        if rows[push_id]["status"] != "cancelled":
            found.wrong(f"{push_id} was cancelled, and is {rows[push_id]['status']}")
        ghosts = [claim for claim in claims.get(push_id, ()) if claim.fate in ("rescued", "lease")]
        late = [e for e in evidence.exchanges if e.push_id == push_id and e.began > when]
        if not ghosts and not all(_may_be_forgotten(evidence, exchange) for exchange in late):
            found.wrong(f"{push_id} was cancelled, and sent after that")
    for process in evidence.processes:
        # Python was still importing when SIGTERM came; nothing had begun.
        has_begun = process.code != -signal.SIGTERM or bool(process.program.output)
        if process.killed is None and process.code != 0 and has_begun:
            found.wrong(f"{process.name} ended with {process.code}: {process.program.output[-300:]}")
        if "Traceback" in process.program.output:
            found.wrong(f"{process.name} printed a traceback")


def _by_claim(
    evidence: Evidence, claims: Mapping[UUID, list[Claim]], found: Findings
) -> dict[Key, list[Exchange]]:
    """Which claim each request was made for."""
    ports = {process.port: process.name for process in evidence.processes}
    requests: dict[Key, list[Exchange]] = defaultdict(list)
    found.counts["requests"] = len(evidence.exchanges)
    for exchange in evidence.exchanges:
        before = [
            claim
            for claim in claims.get(exchange.push_id, ())
            if evidence.workers.get(claim.worker) == ports[exchange.port]
            and claim.at <= exchange.began + _CLOCK
        ]
        if not before and _may_be_forgotten(evidence, exchange):
            last = max(
                (c.attempt for c in claims.get(exchange.push_id, ()) if c.at <= exchange.began), default=0
            )
            found.forgotten.add((exchange.push_id, last + 1))
            if exchange.status != 401:
                requests[exchange.push_id, last + 1, exchange.target].append(exchange)
        elif not before:
            found.wrong(f"{exchange.push_id} was sent by {ports[exchange.port]}, which had not claimed it")
        elif exchange.status != 401:  # after which the same attempt asks again
            requests[exchange.push_id, before[-1].attempt, exchange.target].append(exchange)
    found.counts["claims that Postgres forgot in a crash"] = len(found.forgotten)
    return requests


def _may_be_forgotten(evidence: Evidence, exchange: Exchange) -> bool:
    """Whether a crash may have undone the claim for which a request was made."""
    return any(
        event.fault == CRASH and event.began - _UNTIL_ON_DISK <= exchange.began <= event.ended + LEASE
        for event in evidence.events
    )


def _logs(
    evidence: Evidence,
    claims: Mapping[UUID, list[Claim]],
    requests: Mapping[Key, list[Exchange]],
    found: Findings,
) -> None:
    """Log rows and requests, one for one, but where a process died between the two."""
    lines: dict[Key, list[Mapping[str, Any]]] = defaultdict(list)
    for line in evidence.logs:
        details = line["details"]
        target = line["device_token"] or details.get("topic") or details.get("condition")
        lines[line["push_id"], details["attempt"], target].append(line)
    found.counts["log rows"] = len(evidence.logs)
    dead = _deaths(evidence)
    for process in evidence.processes:
        if process.name in dead:
            found.held_at_kill[process.name] = sum(
                evidence.workers.get(claim.worker) == process.name
                and claim.at <= dead[process.name]
                and (claim.ended or 1e99) > dead[process.name]
                for mine in claims.values()
                for claim in mine
            )
    names = dict(evidence.workers)
    for key in {*lines, *requests}:
        written, made = lines.get(key, []), requests.get(key, [])
        push_id, attempt, _ = key
        claim = next((one for one in claims.get(push_id, ()) if one.attempt == attempt), None)
        if (push_id, attempt) in found.forgotten and (claim is None or len(made) > 1):
            if len(written) > len(made):
                found.wrong(
                    f"{push_id}: {len(made)} requests of claim {attempt} were logged {len(written)} times"
                )
            if not _all_acceptances(evidence, made, written):
                found.wrong(
                    f"{push_id}: FCM accepted claim {attempt}, which Postgres forgot, and no log row says so"
                )
        elif claim is None:
            found.wrong(f"{push_id}: a log row for claim {attempt}, which never was")
        elif len(written) > 1:
            found.wrong(f"{push_id}: claim {attempt} was logged {len(written)} times")
        elif len(made) > 1:
            found.wrong(f"{push_id}: claim {attempt} sent {len(made)} requests to one target")
        elif not written:
            name = names[claim.worker]
            died = dead.get(name)
            is_lost = claim.fate != "settled" or (claim.ended or 0.0) > (died or 0.0) - _STATUS_BEFORE_LOG
            is_too_late = made[0].began > (died or 0.0) + FCM_REQUEST_TIMEOUT + _FOR_THE_WAY
            if died is None or not is_lost or is_too_late:
                found.wrong(
                    f"{push_id}: the request of claim {attempt} ({claim.fate} at {claim.ended}, {name} died at {died}) "
                    "has no log row"
                )
            else:
                found.unlogged[name] += 1
        else:
            _agree(key, written[0], made[0] if made else None, found)


def _all_acceptances(
    evidence: Evidence, made: Sequence[Exchange], written: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether the log has each message that FCM has accepted, as far as a worker that lives has the answer."""
    if any(line["status"] == "unknown" for line in written):
        return True
    dead, ports = _deaths(evidence), {process.port: process.name for process in evidence.processes}
    logged = {line["details"].get("message_id") for line in written}
    return all(each.name in logged for each in made if each.accepted and ports[each.port] not in dead)


def _agree(key: Key, line: Mapping[str, Any], made: Exchange | None, found: Findings) -> None:
    push_id, attempt, _ = key
    status, details = line["status"], line["details"]
    what = f"{push_id}: claim {attempt} is logged as {status} {details.get('code', '')}"
    if made is None:
        if status == "sent" or details.get("http_status", 401) != 401:
            found.wrong(f"{what}, but no request came")
        found.unsent[str(details.get("code"))] += 1
    elif "http_status" in details or status == "sent":
        answered = 200 if status == "sent" else details["http_status"]
        if made.status != answered:
            found.wrong(f"{what}, but FCM answered {made.status}")
        if details.get("message_id") not in (None, made.name):
            found.wrong(f"{what}, with another message's name")
        if made.accepted != (status == "sent"):
            found.wrong(f"{what}, but accepted was {made.accepted}")
    elif status != "unknown":
        found.wrong(f"{what}, but the request came, and its answer ({made.status}) is unknown to the log")
    elif made.silent:
        found.counts["answers that FCM kept back"] += 1
    else:
        found.counts["answers lost on the way"] += 1


def _doubles(
    evidence: Evidence,
    claims: Mapping[UUID, list[Claim]],
    requests: Mapping[Key, list[Exchange]],
    found: Findings,
) -> None:
    """A second copy needs a reason, and hides the first."""
    written = {
        (
            line["push_id"],
            line["details"]["attempt"],
            line["device_token"] or line["details"].get("topic") or line["details"].get("condition"),
        ): line
        for line in evidence.logs
    }
    dead = _deaths(evidence)
    by_target: dict[tuple[UUID, str], list[tuple[int, Exchange]]] = defaultdict(list)
    for (push_id, attempt, target), made in requests.items():
        by_target[push_id, target] += [(attempt, exchange) for exchange in made]
    for (push_id, target), all_made in by_target.items():
        all_made.sort(key=lambda pair: pair[1].began)
        fates = {claim.attempt: claim for claim in claims[push_id]}
        for (attempt, first), (later, second) in itertools.pairwise(all_made):
            # A worker that lost its claim may not know it yet, and its request may come long after.
            if {(push_id, attempt), (push_id, later)} & found.forgotten:
                continue
            held = fates[attempt].fate == "settled" and fates[later].fate in ("settled", "held")
            overlap = second.port != first.port and second.began < (first.ended or 1e99)
            if held and overlap and not _was_cut_off(evidence, first):
                found.wrong(f"{push_id} was in the hands of two workers at once")
        copies = sorted((pair for pair in all_made if pair[1].accepted), key=lambda pair: pair[0])
        if len({exchange.hiding for _, exchange in copies}) > 1:
            found.wrong(f"{push_id}: copies that do not hide each other")
        for attempt, _ in copies[:-1]:
            if (push_id, attempt) in found.forgotten:
                found.doubles["Postgres forgot the claim in a crash, and another worker claimed the row"] += 1
                continue
            claim = fates[attempt]
            line = written.get((push_id, attempt, target))
            name = evidence.workers[claim.worker]
            if line is None and name in dead:
                found.doubles["worker killed before it could write down the answer"] += 1
            elif claim.fate == "lease":
                found.doubles["lease over: worker stopped, or cut off from the database"] += 1
            elif claim.fate == "rescued":
                found.doubles["worker taken for dead: its connection had been lost"] += 1
            elif line is not None and line["status"] == "unknown":
                found.doubles[f"FCM's answer not known ({line['details'].get('code')})"] += 1
            else:
                found.wrong(f"{push_id}: accepted in claim {attempt} ({claim.fate}), and sent again")


def _timely(evidence: Evidence, requests: Mapping[Key, list[Exchange]], found: Findings) -> None:
    """Nothing before its time, nothing after its expiry."""
    # What is put back by hand is sent at once.
    due = {
        change["push_id"]: change["due"]
        for change in evidence.audit
        if change["old_status"] is None and change["push_id"] not in evidence.ledger.requeued
    }
    ports = {process.port: process for process in evidence.processes}
    for (push_id, _, _), made in requests.items():
        for exchange in made:
            if push_id in due and exchange.began < due[push_id] - _CLOCK:
                found.wrong(f"{push_id} was sent {due[push_id] - exchange.began:.3f} s before its time")
            row = evidence.rows.get(push_id)
            late = exchange.began - row["expires_at"] if row and row["expires_at"] is not None else 0.0
            if late > _FOR_THE_WAY and not _was_held_up(evidence, ports[exchange.port], exchange.began):
                found.wrong(f"{push_id} was sent {late:.3f} s after its expiry")
            elif late > 0:
                found.counts["arrived after expiry, sent before"] += 1


def _was_held_up(evidence: Evidence, process: Listener, when: float) -> bool:
    """Whether a request may have been long on its way."""
    stops: Collection[tuple[float, float]] = [
        *process.stops,
        *(
            (event.began, event.ended)
            for event in evidence.events
            if event.victim is process and event.fault.startswith("network to FCM")
        ),
    ]
    return any(began <= when <= ended + FCM_REQUEST_TIMEOUT for began, ended in stops)


def _was_cut_off(evidence: Evidence, exchange: Exchange) -> bool:
    """Whether FCM may not have heard that the worker had given up waiting for this answer."""
    return any(
        event.fault.startswith("network to FCM")
        and event.victim is not None
        and event.victim.port == exchange.port
        and event.began <= (exchange.ended or 1e99)
        and exchange.began <= event.ended + FCM_REQUEST_TIMEOUT
        for event in evidence.events
    )


def _deaths(evidence: Evidence) -> dict[str, float]:
    """When processes ended that could not write down everything."""
    return {
        process.name: process.killed or process.ended or 0.0
        for process in evidence.processes
        if process.killed is not None or process.gave_up
    }
