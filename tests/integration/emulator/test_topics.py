"""Topic subscriptions in the emulator, made by the real SDK and by hand, and the devices that a message reaches."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import firebase_admin
import pytest
from firebase_admin import messaging
from hypothesis import given
from hypothesis import strategies as st

from listener.emulator import Emulator, checks
from listener.emulator.topics import Subscriptions
from tests.support.fcm_client import Client, Reply

ODD_TOKEN = "cJug2GoHzEfcshCE_OLL24:APA91b/Ha8+x%2F"


async def subscribe(client: Client, token: str, topic: str, **options: Any) -> Reply:
    path = f"/v1/projects/demo-project/registrations/{quote(token, safe='')}/topicSubscriptions"
    headers = {"Authorization": f"Bearer {client.token}"}
    return await client.request(
        "POST", path, **{"params": {"topic_name": topic}, "headers": headers, "json": {}, **options}
    )


async def unsubscribe(client: Client, token: str, topic: str, query: str = "") -> Reply:
    path = f"/v1/projects/demo-project/registrations/{quote(token, safe='')}/topicSubscriptions/"
    headers = {"Authorization": f"Bearer {client.token}"}
    return await client.request("DELETE", f"{path}{quote(topic, safe='')}{query}", headers=headers)


# --- the real SDK --------------------------------------------------------------------------------------


async def test_the_sdk_subscribes_and_unsubscribes(emulator: Emulator, firebase: firebase_admin.App) -> None:
    tokens = ["a", ODD_TOKEN, "dead-1"]
    answer = await asyncio.to_thread(messaging.subscribe_to_topic, tokens, "news%2F", app=firebase)
    assert (answer.success_count, answer.failure_count) == (2, 1)
    assert [(error.index, error.reason) for error in answer.errors] == [(2, "UNREGISTERED")]
    again = await asyncio.to_thread(messaging.subscribe_to_topic, "a", "/topics/news%2F", app=firebase)
    assert (again.success_count, again.failure_count) == (1, 0)
    assert emulator.subscriptions.as_dict() == {"news%2F": ["a", ODD_TOKEN]}

    await asyncio.to_thread(messaging.send, messaging.Message(topic="news%2F"), app=firebase)
    answer = await asyncio.to_thread(messaging.unsubscribe_from_topic, ["a", "b"], "news%2F", app=firebase)
    assert (answer.success_count, answer.failure_count) == (2, 0)
    await asyncio.to_thread(messaging.send, messaging.Message(topic="news%2F"), app=firebase)
    await asyncio.to_thread(messaging.send, messaging.Message(topic="other"), app=firebase)
    assert [record.recipients for record in emulator.accepted] == [("a", ODD_TOKEN), (ODD_TOKEN,), ()]


async def test_the_sdk_subscribes_asynchronously(emulator: Emulator, firebase: firebase_admin.App) -> None:
    tokens = [f"device-{i:03}" for i in range(30)]

    async def scenario() -> None:
        answer = await messaging.subscribe_to_topic_async(tokens, "news", app=firebase)
        assert (answer.success_count, answer.failure_count) == (30, 0)
        await messaging.unsubscribe_from_topic_async(tokens[20:], "news", app=firebase)
        # The SDK itself closes its connections in another loop, which fails.
        await messaging._get_messaging_service(firebase)._async_client.aclose()

    # In a loop of its own: the SDK blocks its loop while it waits for an access token.
    await asyncio.to_thread(asyncio.run, scenario())
    assert emulator.subscriptions.recipients("topic", "news") == tuple(tokens[:20])


@pytest.mark.filterwarnings("ignore:.*_legacy is deprecated:DeprecationWarning")
async def test_the_sdk_subscribes_through_the_instance_id_api(
    emulator: Emulator, firebase: firebase_admin.App
) -> None:
    tokens = ["a", "dead-1", "a b", ODD_TOKEN]
    answer = await asyncio.to_thread(messaging.subscribe_to_topic_legacy, tokens, "news", app=firebase)
    assert (answer.success_count, answer.failure_count) == (2, 2)
    assert [(error.index, error.reason) for error in answer.errors] == [
        (1, "NOT_FOUND"),
        (2, "INVALID_ARGUMENT"),
    ]
    assert emulator.subscriptions.as_dict() == {"news": ["a", ODD_TOKEN]}
    answer = await asyncio.to_thread(
        messaging.unsubscribe_from_topic_legacy, ["a", "x"], "news", app=firebase
    )
    assert (answer.success_count, answer.failure_count) == (2, 0)
    assert emulator.subscriptions.as_dict() == {"news": [ODD_TOKEN]}
    with pytest.raises(firebase_admin.exceptions.InvalidArgumentError, match="InvalidTopicName"):
        await asyncio.to_thread(messaging.subscribe_to_topic_legacy, ["a"], "a b", app=firebase)


# --- by hand -------------------------------------------------------------------------------------------


async def test_a_subscription_is_created_once(client: Client) -> None:
    reply = await subscribe(client, "a", "news")
    assert reply.status == 200
    assert reply.json["name"] == "projects/demo-project/registrations/a/topicSubscriptions/news"
    assert reply.json["topic_name"] == "news"
    reply = await subscribe(client, "a", "news")
    assert (reply.status, reply.error["status"]) == (409, "ALREADY_EXISTS")
    reply = await subscribe(client, "a", "", params={"topicName": "sport"})
    assert reply.status == 200


async def test_only_a_subscription_that_exists_is_deleted(client: Client) -> None:
    await subscribe(client, "a", "news")
    assert (await unsubscribe(client, "a", "news")).json == {}
    reply = await unsubscribe(client, "a", "news")
    assert (reply.status, reply.error["status"], reply.fcm_code) == (404, "NOT_FOUND", None)
    assert (await unsubscribe(client, "a", "news", "?allow_missing=true")).status == 200
    assert (await unsubscribe(client, "a", "news", "?allow_missing=false")).status == 404
    reply = await unsubscribe(client, "dead-1", "news", "?allow_missing=true")
    assert (reply.status, reply.fcm_code) == (404, "UNREGISTERED")


@pytest.mark.parametrize(
    ("token", "topic", "field"),
    [
        ("a b", "news", "parent"),
        ("a", "", "topic_name"),
        ("a", "a b", "topic_name"),
        ("a", "x" * 901, "topic_name"),
        ("a", "/topics/a", "topic_name"),
    ],
)
async def test_impossible_subscriptions(client: Client, token: str, topic: str, field: str) -> None:
    reply = await subscribe(client, token, topic)
    assert (reply.status, reply.fcm_code, reply.violations) == (400, "INVALID_ARGUMENT", [field])
    assert client.emulator.subscriptions.as_dict() == {}


async def test_subscriptions_need_an_access_token_for_the_project(client: Client) -> None:
    reply = await subscribe(client, "a", "news", headers={})
    assert (reply.status, reply.error["status"]) == (401, "UNAUTHENTICATED")
    client.emulator.expire_access_tokens()
    assert (await subscribe(client, "a", "news")).status == 401
    await client.authorize()
    headers = {"Authorization": f"Bearer {client.token}"}
    path = "/v1/projects/other/registrations/a/topicSubscriptions"
    reply = await client.request("POST", f"{path}?topic_name=news", headers=headers, json={})
    assert (reply.status, reply.error["status"]) == (403, "PERMISSION_DENIED")
    assert "cloudmessaging.topicSubscriptions.create" in reply.error["message"]


@pytest.mark.parametrize(
    ("method", "tail"), [("GET", ""), ("GET", "/news"), ("PATCH", "/news"), ("DELETE", ""), ("POST", "/news")]
)
async def test_other_methods_are_unknown(client: Client, method: str, tail: str) -> None:
    path = f"/v1/projects/demo-project/registrations/a/topicSubscriptions{tail}?topic_name=news"
    reply = await client.request(method, path, headers={"Authorization": f"Bearer {client.token}"})
    assert (reply.status, reply.headers["Content-Type"]) == (404, "text/html; charset=UTF-8")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "InvalidTopicName"),
        (b"[]", "InvalidTopicName"),
        (b'{"registration_tokens": ["a"]}', "InvalidTopicName"),
        (b'{"to": "/topics/a", "registration_tokens": []}', "InvalidArgument"),
        (b'{"to": "/topics/a", "registration_tokens": "a"}', "InvalidArgument"),
        (b'{"to": "/topics/a", "registration_tokens": [' + b'"a",' * 1000 + b'"a"]}', "InvalidArgument"),
    ],
)
async def test_impossible_batches(client: Client, body: bytes, code: str) -> None:
    headers = {"Authorization": f"Bearer {client.token}", "access_token_auth": "true"}
    reply = await client.request("POST", "/iid/v1:batchAdd", data=body, headers=headers)
    assert (reply.status, reply.json) == (400, {"error": code})


@pytest.mark.parametrize("headers", [{}, {"Authorization": "key=AAAA"}, {"access_token_auth": "true"}])
async def test_batches_need_an_access_token(client: Client, headers: dict[str, str]) -> None:
    body = {"to": "/topics/a", "registration_tokens": ["a"]}
    reply = await client.request("POST", "/iid/v1:batchAdd", json=body, headers=headers)
    assert (reply.status, reply.json) == (401, {"error": "Unauthorized"})
    headers = {"Authorization": f"Bearer {client.token}"}
    assert (await client.request("POST", "/iid/v1:batchAdd", json=body, headers=headers)).status == 401


async def test_subscriptions_over_http(client: Client) -> None:
    client.emulator.subscriptions.add("a", "news")
    await subscribe(client, "b", "news")
    reply = await client.request("GET", "/emulator/subscriptions")
    assert reply.json == {"subscriptions": {"news": ["a", "b"]}}
    await client.send(topic="news")
    await client.send(token="a")
    messages = (await client.request("GET", "/emulator/messages")).json["messages"]
    assert [message["recipients"] for message in messages] == [["a", "b"], []]
    client.emulator.clear()
    assert client.emulator.subscriptions.as_dict() == {"news": ["a", "b"]}
    assert (await client.request("DELETE", "/emulator/subscriptions")).status == 204
    assert (await client.request("GET", "/emulator/subscriptions")).json == {"subscriptions": {}}
    await client.send(topic="news")
    assert client.emulator.received[-1].recipients == ()


async def test_only_an_accepted_message_has_recipients(client: Client) -> None:
    client.emulator.subscriptions.add("a", "news")
    client.emulator.add_fault("unavailable", times=1)
    await client.send(topic="news")
    await client.post({"message": {"topic": "news"}, "validate_only": True})
    assert [record.recipients for record in client.emulator.received] == [(), ()]


# --- conditions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "reached"),
    [
        ("'a' in topics", "1 4"),
        ("'a' in topics && \"b\" in topics", "4"),
        ("'a' in topics || 'c' in topics", "1 3 4"),
        ("!('a' in topics)", "2 3 5"),
        ("!'a' in topics", "2 3 5"),
        ("'x' in topics", ""),
        # From left to right: (a || b) && c, where && would otherwise come first.
        ("'a' in topics || 'b' in topics && 'c' in topics", ""),
        ("'a' in topics || ('b' in topics && 'c' in topics)", "1 4"),
        ("!!('a' in topics && ('b' in topics))", "4"),
    ],
)
async def test_a_condition_reaches_those_that_satisfy_it(
    client: Client, condition: str, reached: str
) -> None:
    for token, topic in [("1", "a"), ("2", "b"), ("3", "c"), ("4", "a"), ("4", "b"), ("5", "d")]:
        client.emulator.subscriptions.add(token, topic)
    client.emulator.subscriptions.remove("5", "d")
    reply = await client.send(condition=condition)
    assert reply.status == 200
    assert client.emulator.received[-1].recipients == tuple(reached.split())


_CONDITIONS = st.recursive(
    st.sampled_from(["'a' in topics", "'b'  in  topics", '"c" in topics']),
    lambda inner: (
        inner.map("!({})".format)
        | inner.map("({})".format)
        | inner.map("! {}".format)
        | st.tuples(inner, st.sampled_from(["&&", " || "]), inner).map("".join)
    ),
    max_leaves=5,
)


@given(_CONDITIONS, st.sets(st.sampled_from("abc"), min_size=1))
def test_every_condition_that_fcm_accepts_can_be_evaluated(condition: str, topics: set[str]) -> None:
    assert checks.check({"condition": condition}) is None
    subscriptions = Subscriptions()
    for topic in topics:
        subscriptions.add("me", topic)
    opposite = subscriptions.recipients("condition", f"!({condition})")
    assert {subscriptions.recipients("condition", condition), opposite} == {("me",), ()}
