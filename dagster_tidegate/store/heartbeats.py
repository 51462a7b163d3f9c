"""Heartbeats: when each part of the gate last completed a tick."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.upsert import insert

BREAKER = "breaker"
PAUSE = "pause"
RESUME = "resume"
PARTS = (BREAKER, PAUSE, RESUME)
"""The parts of the gate of a code location."""
DETACHED = "detached"
"""The summary of a gate that was detached; its next tick writes another."""


@dataclass(frozen=True)
class Heartbeat:
    """When a part of the gate last completed a tick. Times are UTC.

    Attributes:
        cursor: Up to when Dagster's run changes were read; only the pause part has one.
        summary: What it did, for people.
    """

    location: str
    part: str
    at: datetime
    cursor: datetime | None
    summary: str


def beat(
    conn: Connection,
    now: datetime,
    *,
    location: str,
    part: str,
    summary: str,
    cursor: datetime | None = None,
) -> None:
    """Record that a part of the gate has completed a tick; None keeps the former `cursor`."""
    values = {"at": now, "summary": summary}
    if cursor is not None:
        values["cursor"] = cursor
    conn.execute(
        insert(conn, t.heartbeats)
        .values(location=location, part=part, **values)
        .on_conflict_do_update(index_elements=["location", "part"], set_=values)
    )


def detach(conn: Connection, location: str) -> None:
    """Record that the gate of a code location was detached. Its next tick attaches it again."""
    beat = t.heartbeats
    conn.execute(beat.update().where(beat.c.location == location).values(summary=DETACHED))


def detached(conn: Connection) -> bool:
    """Return whether there were gates, and all of them are detached."""
    summaries = set(conn.scalars(sa.select(t.heartbeats.c.summary).distinct()))
    return summaries == {DETACHED}


def read(conn: Connection) -> Sequence[Heartbeat]:
    """Return the latest heartbeat of each part of each code location."""
    beat = t.heartbeats.c
    query = sa.select(t.heartbeats).order_by(beat.location, beat.part)
    return [Heartbeat(**row) for row in conn.execute(query).mappings()]
