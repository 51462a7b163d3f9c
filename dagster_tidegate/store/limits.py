"""What the fleet knows of the calls to a service that has limits: one row, changed under a lock."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

import sqlalchemy as sa

from dagster_tidegate.breaker import concurrency, limits
from dagster_tidegate.breaker.concurrency import SlotGrant, SlotRequest
from dagster_tidegate.breaker.limits import CallRequest, Grant, LimitState, Usage
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.store import locked_state
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection, Store


def lease(
    conn: Connection, store: Store, policy: ServicePolicy, worker: str, request: CallRequest
) -> Grant:
    """Settle a worker's last block of calls, and lease it the next one: see `limits.lease`."""
    priority = 0
    if request.campaign:
        mine = t.campaigns.c.name == request.campaign
        priority = conn.execute(sa.select(t.campaigns.c.priority).where(mine)).scalar() or 0
    with _locked(conn, policy.name) as state:
        now = store.now(conn)
        return limits.lease(state, policy.limits, now, worker, request, priority=priority)


def lease_slots(
    conn: Connection, store: Store, policy: ServicePolicy, worker: str, request: SlotRequest
) -> SlotGrant:
    """Renew a worker's slots, and lease it more: see `concurrency.lease_slots`."""
    assert policy.max_concurrency is not None
    with _locked(conn, policy.name) as state:
        now = store.now(conn).timestamp()
        return concurrency.lease_slots(state.slots, policy.max_concurrency, now, worker, request)


@contextmanager
def _locked(conn: Connection, service: str) -> Iterator[LimitState]:
    """Give the state of a service, and write it at the end.

    The time must be read within the block: it may have waited for the lock.
    """
    stored = locked_state.lock(conn, t.limits, service, LimitState().to_json)
    state = LimitState.from_json(stored)
    yield state
    locked_state.save(conn, t.limits, service, state.to_json())


def usage(conn: Connection, now: datetime) -> Mapping[str, Sequence[Usage]]:
    """Return how much of the limits of each service is used up, by its name."""
    return {
        row.service: limits.usage(LimitState.from_json(row.state), now)
        for row in conn.execute(sa.select(t.limits))
    }
