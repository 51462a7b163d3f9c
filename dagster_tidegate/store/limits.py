"""What the fleet knows of the calls to a service that has limits: one row, changed under a lock."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa

from dagster_tidegate.breaker import limits
from dagster_tidegate.breaker.limits import Grant, LimitState, Request, Usage
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.store.upsert import insert


def lease(
    conn: Connection, store: Store, policy: ServicePolicy, worker: str, request: Request
) -> Grant:
    """Settle a worker's last block of calls, and lease it the next one: see `limits.lease`."""
    c = t.limits.c
    mine = sa.select(c.state).where(c.service == policy.name).with_for_update()
    row = conn.execute(mine).one_or_none()
    if row is None:
        new = insert(conn, t.limits).values(service=policy.name, state=LimitState().to_json())
        conn.execute(new.on_conflict_do_nothing())
        row = conn.execute(mine).one()
    state = LimitState.from_json(row.state)
    # Only now: it may have waited for the lock.
    grant = limits.lease(state, policy.limits, store.now(conn), worker, request)
    conn.execute(t.limits.update().where(c.service == policy.name).values(state=state.to_json()))
    return grant


def usage(conn: Connection, now: datetime) -> Mapping[str, Sequence[Usage]]:
    """Return how much of the limits of each service is used up, by its name."""
    return {
        row.service: limits.usage(LimitState.from_json(row.state), now)
        for row in conn.execute(sa.select(t.limits))
    }
