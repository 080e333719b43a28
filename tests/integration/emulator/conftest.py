"""Clients of the emulator: one of our own, and Google's libraries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import firebase_admin
import pytest
from firebase_admin import messaging
from google.oauth2 import service_account
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from listener.emulator import Emulator
from tests.support.fcm_client import SCOPE, Client

Credentials: Any = service_account.Credentials  # google-auth claims to be typed, but this is not.


@pytest.fixture
async def client(emulator: Emulator) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        client = Client(emulator, session)
        await client.authorize()
        yield client


@pytest.fixture
def credentials(emulator: Emulator) -> Any:
    return Credentials.from_service_account_info(emulator.service_account, scopes=[SCOPE])


@pytest.fixture
def firebase(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[firebase_admin.App]:
    """The Firebase SDK with the emulator's key. It has no settings for addresses, only constants."""
    monkeypatch.setattr(messaging._MessagingService, "IID_URL", emulator.endpoint)
    monkeypatch.setattr(
        messaging._MessagingService,
        "FCM_URL",
        emulator.endpoint + "/v1/projects/{0}/messages:send",
    )
    certificate = firebase_admin.credentials.Certificate(emulator.service_account)
    app = firebase_admin.initialize_app(certificate, name=emulator.endpoint)
    # Retries as always, but without the pauses.
    service = messaging._get_messaging_service(app)
    service._fcm_topic_url = f"{emulator.endpoint}/v1/projects/{app.project_id}/registrations"
    session = service._client.session
    retry = Retry(connect=1, read=1, status=4, status_forcelist=[500, 503], raise_on_status=False)
    retry.allowed_methods = None
    session.mount("http://", HTTPAdapter(max_retries=retry))
    yield app
    session.close()
    firebase_admin.delete_app(app)
