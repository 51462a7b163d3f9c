"""What the fleet knows of the calls to a service that has limits: one row, changed under a lock."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

import sqlalchemy as sa

from dagster_tidegate.breaker import concurrency, limits
from dagster_tidegate.breaker.concurrency import SlotGrant, SlotRequest
from dagster_tidegate.breaker.limits import Grant, LimitState, Request, Usage
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.store.upsert import insert


def lease(
    conn: Connection, store: Store, policy: ServicePolicy, worker: str, request: Request
) -> Grant:
    """Settle a worker's last block of calls, and lease it the next one: see `limits.lease`."""
    with _locked(conn, policy.name) as state:
        return limits.lease(state, policy.limits, store.now(conn), worker, request)


def lease_slots(
    conn: Connection, store: Store, policy: ServicePolicy, worker: str, request: SlotRequest
) -> SlotGrant:
    """Renew a worker's slots, and lease it more: see `concurrency.lease_slots`."""
    with _locked(conn, policy.name) as state:
        limit = policy.max_concurrency or request.in_use + request.wanted
        now = store.now(conn).timestamp()
        return concurrency.lease_slots(state.slots, limit, now, worker, request)


@contextmanager
def _locked(conn: Connection, service: str) -> Iterator[LimitState]:
    """Give the state of a service, and write it at the end.

    The time must be read within the block: it may have waited for the lock.
    """
    c = t.limits.c
    mine = sa.select(c.state).where(c.service == service).with_for_update()
    row = conn.execute(mine).one_or_none()
    if row is None:
        new = insert(conn, t.limits).values(service=service, state=LimitState().to_json())
        conn.execute(new.on_conflict_do_nothing())
        row = conn.execute(mine).one()
    state = LimitState.from_json(row.state)
    yield state
    conn.execute(t.limits.update().where(c.service == service).values(state=state.to_json()))


def usage(conn: Connection, now: datetime) -> Mapping[str, Sequence[Usage]]:
    """Return how much of the limits of each service is used up, by its name."""
    return {
        row.service: limits.usage(LimitState.from_json(row.state), now)
        for row in conn.execute(sa.select(t.limits))
    }
