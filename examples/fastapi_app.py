"""A shop's kitchen says that an order is ready, and the customer gets a push, in one transaction with the order.

psql "$DATABASE_URL" -f sql/orders.sql
uvicorn fastapi_app:app
curl -X POST -H "Authorization: Bearer $KITCHEN_TOKEN" localhost:8000/orders/1/ready

Environment: DATABASE_URL, of the owner of the tables or of a role with the rights of service_role; KITCHEN_TOKEN, a
secret of the kitchen's.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypedDict

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from listener.client import AsyncTelemetryService, Direct, Notification, Push, PushClient


class State(TypedDict):
    """What lives as long as the application. A handler finds it in ``request.state``."""

    pool: AsyncConnectionPool[AsyncConnection[Any]]
    pushes: PushClient
    telemetry: AsyncTelemetryService
    kitchen_token: bytes


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[State]:
    async with AsyncConnectionPool(os.environ["DATABASE_URL"], open=False) as pool:
        database = Direct(pool)
        async with AsyncTelemetryService(database) as telemetry:  # sends what waits before it closes
            yield State(
                pool=pool,
                pushes=PushClient(database),
                telemetry=telemetry,
                kitchen_token=os.environ["KITCHEN_TOKEN"].encode(),
            )


app = FastAPI(lifespan=lifespan)


async def kitchen(
    request: Request, given: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]
) -> None:
    """The place of your application's own authentication: a caller causes pushes."""
    if not secrets.compare_digest(given.credentials.encode(), request.state.kitchen_token):
        raise HTTPException(401, "wrong token", headers={"WWW-Authenticate": "Bearer"})


async def transaction(request: Request) -> AsyncIterator[AsyncConnection[Any]]:
    """Commits when the handler returns, and rolls back when it raises."""
    async with request.state.pool.connection() as conn:
        yield conn


# "function": the commit comes before the answer. FastAPI's default is to end dependencies after it, and then the
# kitchen would be told of success even if the commit fails.
Transaction = Annotated[AsyncConnection[Any], Depends(transaction, scope="function")]


@app.post("/orders/{order_id}/ready", dependencies=[Depends(kitchen)])  # before the transaction begins
async def ready(order_id: int, conn: Transaction, request: Request) -> dict[str, str]:
    changed = await conn.execute(
        "update orders set status = 'ready' where id = %s and status = 'cooking' returning customer_id",
        (order_id,),
    )
    row = await changed.fetchone()
    if row is None:
        raise HTTPException(404, "no such order is cooking")
    push_id = await request.state.pushes.enqueue(
        Push(
            user_id=row[0],
            notification=Notification(title="Your order is ready", body="A courier is on the way to us"),
            data={"order": str(order_id)},
            priority="high",
            expires_at=datetime.now(UTC) + timedelta(hours=1),
            idempotency_key=f"order-{order_id}-ready",
        ),
        conn=conn,
    )
    await call_courier(conn, order_id)  # if this raises, the order is still cooking and there is no push
    # Telemetry is not part of the transaction: it never waits, and never makes the request fail.
    request.state.telemetry.batch_log("order", "ready", metadata={"order": order_id})
    return {"push": str(push_id)}


async def call_courier(conn: AsyncConnection[Any], order_id: int) -> None:
    called = await conn.execute(
        """
        with called as (
          update couriers set is_free = false
            where id = (select id from couriers where is_free limit 1 for update skip locked)
            returning id
        )
        update orders set courier_id = called.id from called where orders.id = %s
        """,
        (order_id,),
    )
    if called.rowcount == 0:
        raise HTTPException(503, "no courier is free")
