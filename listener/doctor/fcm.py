"""Whether FCM accepts the key, the project and a message. FCM only validates the message, and does not send it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from listener.config import Settings
from listener.doctor.findings import Finding, Group
from listener.doctor.limits import Deadline, Limits, within
from listener.doctor.reaching import Resolve
from listener.fcm.fault import AuthFault
from listener.fcm.message import is_installation_id, prepare, targets
from listener.fcm.outcome import Disposition, Outcome
from listener.fcm.transports.proxy import is_proxied
from listener.push import BadPush, Push

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

_GROUP = Group("FCM")
_NO_KEY = "FCM_SERVICE_ACCOUNT_JSON / GOOGLE_APPLICATION_CREDENTIALS"
_MAKE_KEY = "make a new key (Firebase console: Project settings, Service accounts, Generate new private key)"
_INSTEAD = "or remove FCM_ENDPOINT, which leads to an emulator (http://), to send to phones"


class Remedies(NamedTuple):
    """The remedies that differ between FCM and an emulator."""

    first_key: str
    new_key: str
    reach_token_endpoint: str
    reach_fcm: str


OF_FCM = Remedies(
    f"{_MAKE_KEY}, and set FCM_SERVICE_ACCOUNT_JSON to it, or GOOGLE_APPLICATION_CREDENTIALS to its path",
    f"{_MAKE_KEY}, and set it in place of this one",
    "let this machine reach the token endpoint (oauth2.googleapis.com, port 443), directly or through HTTPS_PROXY",
    "let this machine reach FCM_ENDPOINT (fcm.googleapis.com, port 443), directly or through HTTPS_PROXY",
)
_KEY_OF_EMULATOR = (
    "set GOOGLE_APPLICATION_CREDENTIALS to the key that the emulator writes (push-listener emulator --credentials "
    f"FILE); {_INSTEAD}"
)
_START_EMULATOR = f"start the emulator (push-listener emulator) at FCM_ENDPOINT; {_INSTEAD}"
OF_EMULATOR = Remedies(_KEY_OF_EMULATOR, _KEY_OF_EMULATOR, _START_EMULATOR, _START_EMULATOR)

_ENABLE = (
    "enable the Firebase Cloud Messaging API of the project: "
    "https://console.cloud.google.com/apis/library/fcm.googleapis.com"
)
_SET_PROJECT = "set FCM_PROJECT_ID to the id that the Firebase console shows under Project settings, General"
_TOPIC = "push-listener"

_WITHOUT_DEVICE = (
    "a message to a topic does not show whether Apple accepts FCM's APNs key; one to an iPhone does: push-listener "
    "doctor --device TOKEN"
)


def examine(settings: Settings, device: str | None, limits: Limits, resolver: Resolve) -> Iterator[Finding]:
    """Each step needs the result of the one before. A finding names the steps that were left out.

    Args:
        settings: the key, the project, the endpoint and the transport.
        device: a registration token or installation id for which FCM validates a message; None: for a topic.
        limits: how long the checks may take.
        resolver: finds the addresses of hosts.
    """
    deadline = Deadline(limits.fcm)
    remedies = remedies_for(settings)
    try:
        credentials, project = within(deadline.left(limits.fcm / 2), lambda: _load(settings))
    except TimeoutError:
        yield _GROUP.wrong_setting(
            f"{_NO_KEY}: neither is set, and the metadata server of this machine does not answer",
            remedies.first_key,
        )
        yield _GROUP.skipped("access token and message: there is no key")
        return
    except ValueError as error:
        is_set = settings.fcm_service_account_json or settings.google_application_credentials
        yield _GROUP.wrong_setting(f"{_NO_KEY}: {error}", remedies.new_key if is_set else remedies.first_key)
        yield _GROUP.skipped("access token and message: there is no usable key")
        return
    yield _GROUP.ok("the key can be read")
    if project is None:
        yield _GROUP.wrong_setting(
            "FCM_PROJECT_ID is not set, and the credentials do not name a project", _SET_PROJECT
        )
        yield _GROUP.skipped("access token and message: the project is not known")
        return
    yield _GROUP.ok(f"the project is {project}")
    hosts = _hosts(settings, credentials)
    for host in hosts:
        try:
            within(deadline.left(limits.resolve), partial(resolver, host))
        except (OSError, TimeoutError):
            yield _GROUP.fault(
                f"the name {host} cannot be resolved, or no name server answers",
                "check the name servers of this machine, and FCM_ENDPOINT; behind a proxy set HTTPS_PROXY",
            )
            yield _GROUP.skipped("access token and message: the name of a server is not known")
            return
    left = deadline.left(limits.fcm)
    try:
        yield from within(
            left + 1.0, lambda: asyncio.run(_exchange(settings, credentials, project, device, left))
        )
    except BadPush as bad:
        yield _GROUP.fault(f"--device: {bad}")


def remedies_for(settings: Settings) -> Remedies:
    """The remedies for FCM or for an emulator. The endpoint tells which: only an emulator is reached without TLS."""
    return OF_EMULATOR if settings.fcm_endpoint.scheme == "http" else OF_FCM


def _load(settings: Settings) -> tuple[Credentials, str | None]:
    from listener.fcm.credentials import load_credentials  # slow to import

    credentials, project = load_credentials(settings.fcm_service_account_json)
    return credentials, settings.fcm_project_id or project


def _hosts(settings: Settings, credentials: Credentials) -> list[str]:
    """The hosts whose names this process has to resolve. A proxy resolves the names of the hosts behind it."""
    urls = [str(getattr(credentials, "_token_uri", "")), str(settings.fcm_endpoint)]
    found = [(urlsplit(url).hostname, is_proxied(url)) for url in urls if url]
    return list(dict.fromkeys(host for host, proxied in found if host and not proxied))


async def _exchange(
    settings: Settings, credentials: Credentials, project: str, device: str | None, seconds: float
) -> list[Finding]:
    # Slow to import, as aiohttp and google-auth are.
    from listener.fcm.auth import AccessTokens
    from listener.fcm.sender import Sender, messages_url
    from listener.fcm.transports.base import Outgoing
    from listener.fcm.transports.choose import make_transport

    half, remedies = seconds / 2, remedies_for(settings)
    tokens = AccessTokens(credentials, timeout=half)
    transport = make_transport(
        settings.transport,
        messages_url(str(settings.fcm_endpoint), project),
        connect_timeout=half / 2,
        timeout=half,
    )
    try:
        began = time.perf_counter()
        try:
            await tokens.get()
        except AuthFault as fault:
            return [judge_no_token(fault, remedies), _GROUP.skipped("a message: there is no access token")]
        took = 1000 * (time.perf_counter() - began)
        found = [_GROUP.ok(f"an access token was obtained after {took:.0f} ms")]
        body = _body(device)
        began = time.perf_counter()
        outcome = await Sender(transport, tokens).send(Outgoing(lambda: body))
        took = 1000 * (time.perf_counter() - began)
        return [*found, *judge_outcome(outcome, took, remedies, to_device=device is not None)]
    finally:
        await transport.close()
        await tokens.close()


def _body(device: str | None) -> bytes:
    """A message like that of a push, which FCM only validates. Raises BadPush."""
    is_fid = device is not None and is_installation_id(device)
    push = Push(
        id=UUID(int=0),
        attempt=1,
        retry_count=0,
        lost_claims=0,
        device_token=None if is_fid else device,
        fid=device if is_fid else None,
        topic=None if device else _TOPIC,
        condition=None,
        user_id=None,
        recipients=[],
        accepted_before=0,
        title="push-listener doctor",
        body="This message is validated, and not sent.",
        data=None,
        channel=None,
        priority="normal",
        image=None,
        options=None,
        collapse_key=None,
        expires_at=None,
        expires_in=None,
        waited=0.0,
        oversized=None,
    )
    (target,) = targets(push)
    return prepare(push).encode(target, None, validate_only=True)


def judge_no_token(fault: AuthFault, remedies: Remedies) -> Finding:
    """Why there is no access token. Pure."""
    match fault.code:
        case "OAUTH_INVALID_GRANT":
            return _GROUP.fault(
                "the key was revoked, or its service account disabled, or this machine's clock is wrong: "
                + fault.reason.partition(";")[0],
                f"{remedies.new_key}; if the check of the clock finds a difference, correct that first",
            )
        case "OAUTH_CONNECT" | "OAUTH_TIMEOUT" | "OAUTH_UNAVAILABLE" | "OAUTH_PROTOCOL":
            return _GROUP.fault(
                f"no access token: {fault.reason}",
                remedies.reach_token_endpoint,
            )
        case _:
            return _GROUP.fault(f"no access token: {fault.reason}", remedies.new_key)


def judge_outcome(
    outcome: Outcome, milliseconds: float, remedies: Remedies, *, to_device: bool
) -> Iterator[Finding]:
    """Judges FCM's answer to the message that it validated. Pure."""
    match outcome.disposition:
        case Disposition.ACCEPTED:
            where = "that device" if to_device else "a topic"
            yield _GROUP.ok(
                f"FCM accepts a message to {where} (validated, not sent), after {milliseconds:.0f} ms"
            )
            if not to_device:
                yield _GROUP.skipped(_WITHOUT_DEVICE)
        case Disposition.DROP_TARGET:
            yield _GROUP.fault(
                f"--device: {outcome.reason}", "let the app on that device give you its current token"
            )
        case Disposition.PAUSE_PLATFORM | Disposition.MISFIT:
            yield _GROUP.fault(
                f"{outcome.reason}",
                "upload the APNs key of the app's team (Firebase console: Project settings, Cloud Messaging)",
            )
        case Disposition.PAUSE:
            yield _GROUP.fault(*_refusal(outcome, remedies))
        case _:
            yield _GROUP.fault(
                f"FCM did not accept a message: {outcome.code}: {outcome.reason}", _by_code(outcome, remedies)
            )


def _refusal(outcome: Outcome, remedies: Remedies) -> tuple[str, str]:
    """Text and remedy if FCM refuses the project, the key or the request. Pure."""
    reason = outcome.reason
    if "has not been used in project" in reason or "it is disabled" in reason:
        return (
            f"the Firebase Cloud Messaging API is disabled in this project ({outcome.code}: {reason})",
            _ENABLE,
        )
    if outcome.http_status == 403:
        return (
            f"the key may not send for this project: the project is not the key's, or the service account lacks the "
            f"role ({outcome.code}: {reason})",
            "set FCM_PROJECT_ID to the project of the key, or remove it; or grant the service account the role "
            "Firebase Cloud Messaging API Admin in that project",
        )
    if outcome.http_status == 404:
        return (
            f"FCM knows no such project ({outcome.code}: {reason})",
            _SET_PROJECT,
        )
    return f"FCM refuses the request ({outcome.code}: {reason})", remedies.new_key


def _by_code(outcome: Outcome, remedies: Remedies) -> str | None:
    match outcome.code:
        case "DNS" | "CONNECT" | "TLS" | "PROXY" | "TIMEOUT" | "RESET" | "PROTOCOL":
            return remedies.reach_fcm
        case _ if outcome.disposition is Disposition.RETRY:
            return (
                "try again in some minutes; https://status.firebase.google.com says whether FCM has a problem"
            )
        case _:
            return None
