"""``push-listener send``."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import click
import orjson

from listener import interrupts
from listener.cli.shared import note, print_json


@click.command()
@click.option("--user", type=click.UUID, help="User whose registered devices get it.")
@click.option("--token", help="Registration token of the one device that gets it.")
@click.option("--fid", help="Firebase installation id of the one device that gets it.")
@click.option("--topic", help="Topic whose subscribers get it.")
@click.option("--condition", help="Condition on topics, such as 'news' in topics && 'sport' in topics.")
@click.option("--title", help="Title of the notification.")
@click.option("--body", help="Text of the notification.")
@click.option("--data", metavar="JSON", help="Data for the app, as a JSON object.")
@click.option("--priority", type=click.Choice(["normal", "high"]), help="Priority, normal by default.")
@click.option("--channel", help="Android notification channel.")
@click.option("--delay", type=click.FloatRange(0), help="Seconds from now until it is sent.")
@click.option(
    "--expires-in",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds from now after which it is no longer sent.",
)
@click.option(
    "--idempotency-key", help="Key under which it is added only once, however often you repeat this."
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    help="Maximum seconds to wait for the outcome; the exit code is 1 unless FCM accepts it in that time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def command(
    user: UUID | None,
    token: str | None,
    fid: str | None,
    topic: str | None,
    condition: str | None,
    title: str | None,
    body: str | None,
    data: str | None,
    priority: str | None,
    channel: str | None,
    delay: float | None,
    expires_in: float | None,
    idempotency_key: str | None,
    wait: float | None,
    as_json: bool,
) -> None:
    """Add one push to the queue.

    The running service sends it. With --wait, the command prints what became of it.
    """
    targets = sum(target is not None for target in (token, fid, topic, condition))
    if targets > 1 or (targets == 0 and user is None):
        raise click.UsageError("give one of --token, --fid, --topic and --condition, or --user")
    if title is None and data is None:
        raise click.UsageError("give --title (and --body), or --data for a push without a notification")
    payload = None if data is None else _parse_data(data)

    with interrupts.importing():
        import psycopg

        from listener import client, config
        from listener.postgres.connect import ENCODING

    dsn = config.load_database().database_url.get_secret_value()
    with psycopg.connect(
        dsn, autocommit=True, connect_timeout=10, prepare_threshold=None, client_encoding=ENCODING
    ) as conn:
        push_id = client.enqueue(
            conn,
            user_id=user,
            device_token=token,
            fid=fid,
            topic=topic,
            condition=condition,
            title=title,
            body=body,
            data=payload,
            priority=priority,
            channel=channel,
            idempotency_key=idempotency_key,
            send_at=None if delay is None else client.database_time(conn, ahead=delay),
            expires_at=None if expires_in is None else client.database_time(conn, ahead=expires_in),
        )
        if wait is not None:
            note(f"added {push_id}")  # so that it can be found, or cancelled, after Ctrl-C
        outcome = client.wait_for(conn, push_id, wait or 0.0)
    if as_json:
        print_json(outcome)
    else:
        trouble = f" ({outcome.error_code}: {outcome.last_error})" if outcome.error_code else ""
        click.echo(f"{push_id} {outcome.status}{trouble}")
    if wait is not None and delay is None and outcome.status == "pending":
        note(
            "it still waits; does push-listener run? push-listener doctor says what keeps pushes from going out"
        )
    if wait is not None and outcome.status not in client.ACCEPTED:
        raise SystemExit(1)


def _parse_data(text: str) -> dict[str, Any]:
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise click.UsageError("--data is not JSON") from None
    if not isinstance(data, dict):
        raise click.UsageError("--data is not a JSON object")
    return data
