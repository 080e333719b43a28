"""What users still hit, with the service, the local FCM and PostgreSQL. Each test fails."""

from __future__ import annotations

import random
from uuid import uuid4

import pytest

from listener.emulator import Emulator
from listener.limits.health import FcmHealth, PauseTimes
from tests.support.postgres import Database
from tests.support.service import Rows, serving, settings_for, with_arguments

pytestmark = pytest.mark.newest_postgres


async def test_an_iphone_stays_registered_when_its_live_activity_has_ended(
    rows: Rows, emulator: Emulator, database: Database
) -> None:
    """The user swipes a live activity away; the next update to it is answered with Apple's 410 for the token of the
    activity. ``push_devices.disabled_at`` is set, and the next chat message to the user dies with NO_RECIPIENTS.

    Right: the answer is about ``live_activity_token``, so the push is ``dead`` and the device stays.
    """
    emulator.add_fault("apns_error,reason=ExpiredToken,token=iphone,times=1")
    user = uuid4()
    await rows.device("iphone", user, "ios")
    aps = {"event": "update", "content-state": {"score": 1}, "timestamp": 1}
    options = {"apns": {"live_activity_token": "activity", "payload": {"aps": aps}}}
    async with serving(settings_for(database.dsn, emulator)):
        update = await rows.one_over(await rows.add(user_id=user, data={"k": "v"}, options=options))
        message = await rows.one_over(await rows.add(user_id=user, title="A message"))
    assert update["status"] == "dead"
    assert (message["status"], message["error_code"]) == ("sent", None)


async def test_test_builds_on_one_iphone_in_five_do_not_hold_back_the_others(
    rows: Rows, emulator: Emulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A staging project: one iPhone in five has a test build, the key is right. iOS is held again and again (here for
    half a second instead of a minute), and most good pushes are claimed several times before they are sent.

    Right: of 240 good pushes nearly all are sent with their first attempt, because FCM accepts four out of five.
    """
    with_arguments(monkeypatch, FcmHealth, times=PauseTimes(platform_first=0.5, platform_longest=5.0))
    emulator.add_fault("apns_error,reason=BadEnvironmentKeyInToken,token_prefix=test")
    chosen = random.Random(1)
    users = [("test" if chosen.random() < 0.2 else "good", uuid4()) for _ in range(300)]
    for n, (build, user) in enumerate(users):
        await rows.device(f"{build}-{n}", user, "ios")
    settings = settings_for(
        database.dsn, emulator, max_in_flight=4, max_tries=3, retry_min_delay=0.05, retry_max_delay=1
    )
    async with serving(settings):
        pushes = {await rows.add(user_id=user, title="t"): build for build, user in users}
        found = await rows.over(*pushes, patience=120.0)
    good = [row for push_id, row in found.items() if pushes[push_id] == "good"]
    assert {row["status"] for row in good} == {"sent"}
    assert sum(row["delivery_attempts"] > 1 for row in good) < 0.05 * len(good)
