"""The emulator's own HTTP API: it shows what the emulator has received, and sets which requests fail."""

from __future__ import annotations

import orjson
from aiohttp import web

from listener.emulator.faults import fault_from, parse_fault
from listener.emulator.received import Received
from listener.emulator.state import State

_FILTERS = ("token", "topic", "push_id", "outcome")

_INDEX = """FCM emulator for project {project}

POST   /v1/projects/PROJECT/messages:send  the FCM HTTP v1 API
POST   /v1/projects/PROJECT/registrations/TOKEN/topicSubscriptions, and DELETE: subscribe to a topic
POST   /iid/v1:batchAdd, /iid/v1:batchRemove: the same for older SDKs
POST   /token                              OAuth: JWT-bearer grant for the service account below
GET    /emulator/service-account.json      the key to use in place of one from the Firebase console
GET    /emulator/messages                  what was received; ?token= ?topic= ?push_id= ?outcome= ?limit=
DELETE /emulator/messages                  forget them, and the counts
GET    /emulator/faults                    the rules in force
POST   /emulator/faults                    add one: {{"fault": "unavailable", "token": "abc", "times": 2}}
DELETE /emulator/faults                    remove all rules; /emulator/faults/ID removes one
GET    /emulator/subscriptions             the registration tokens of each topic
DELETE /emulator/subscriptions             forget them
GET    /emulator/stats                     counts by answer, concurrency, connections

A registration token that starts with "dead-" is answered UNREGISTERED.
"""


async def serve(emulator: State, request: web.BaseRequest, path: str) -> web.Response | None:
    """Answers a request to the control API; None if the request is not one. ``path`` is without the query."""
    match request.method, path:
        case "GET", "/":
            return web.Response(text=_INDEX.format(project=emulator.project_id))
        case "GET", "/emulator/service-account.json":
            # The key must name the token server by the address at which this client reaches the emulator.
            return _json(emulator.service_account_at(f"http://{request.host}"))
        case "GET", "/emulator/messages":
            return _messages(emulator, request)
        case "DELETE", "/emulator/messages":
            emulator.clear()
            return web.Response(status=204)
        case "GET", "/emulator/subscriptions":
            return _json({"subscriptions": emulator.subscriptions.as_dict()})
        case "DELETE", "/emulator/subscriptions":
            emulator.subscriptions.clear()
            return web.Response(status=204)
        case "GET", "/emulator/stats":
            return _json(emulator.stats())
        case "GET", "/emulator/faults":
            return _json({"faults": [rule.as_dict() for rule in emulator.rules]})
        case "POST", "/emulator/faults":
            return await _add_rule(emulator, request)
        case "DELETE", "/emulator/faults":
            emulator.clear_faults()
            return web.Response(status=204)
        case "DELETE", _ if path.startswith("/emulator/faults/"):
            rule_id = path.removeprefix("/emulator/faults/")
            if rule_id.isdecimal() and emulator.remove_fault(int(rule_id)):
                return web.Response(status=204)
            return _json({"error": f"no rule {rule_id}"}, 404)
    return None


def _messages(emulator: State, request: web.BaseRequest) -> web.Response:
    query = dict(request.query)
    limit = query.pop("limit", None)
    if not set(query).issubset(_FILTERS) or not (limit is None or limit.isdecimal()):
        return _json({"error": f"filters are {', '.join(_FILTERS)} and limit (a number)"}, 400)
    found = [record for record in emulator.received if _matches(record, query)]
    newest = found if limit is None else found[len(found) - min(int(limit), len(found)) :]
    return _json(
        {
            "messages": [record.as_dict() for record in newest],
            "count": len(found),
            "forgotten": emulator.forgotten,
        }
    )


def _matches(record: Received, query: dict[str, str]) -> bool:
    is_device = record.kind in ("token", "fid")
    return (
        ("token" not in query or (is_device and record.target == query["token"]))
        and ("topic" not in query or (record.kind == "topic" and record.target == query["topic"]))
        and ("push_id" not in query or record.push_id == query["push_id"])
        and ("outcome" not in query or query["outcome"] in (record.outcome, record.error_code))
    )


async def _add_rule(emulator: State, request: web.BaseRequest) -> web.Response:
    try:
        body = orjson.loads(await request.read())
        if isinstance(body, str):
            fault = parse_fault(body)
        elif isinstance(body, dict):
            fault = fault_from(body)
        else:
            raise ValueError("a rule is an object, or its text as a string")
    except ValueError as error:
        return _json({"error": str(error)}, 400)
    added = emulator.add_fault(fault)
    return _json(next(rule for rule in emulator.rules if rule.id == added).as_dict(), 201)


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=orjson.dumps(value, option=orjson.OPT_INDENT_2),
        content_type="application/json",
    )
