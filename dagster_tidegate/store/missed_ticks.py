"""Schedule ticks missed while the schedule was stopped, and what happened to each."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa

from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.upsert import insert


class TickOutcome(StrEnum):
    """What happened to a missed tick."""

    LAUNCHED = "launched"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True)
class MissedTick:
    """A tick that a schedule missed. Times are UTC.

    Attributes:
        outcome: What happened to it; None while it waits.
    """

    campaign: str
    schedule: str
    tick_at: datetime
    outcome: TickOutcome | None = None
    reason: str | None = None


def record(conn: Connection, now: datetime, ticks: Collection[MissedTick]) -> None:
    """Record missed ticks; those recorded before keep their outcome."""
    for tick in ticks:
        conn.execute(
            insert(conn, t.missed_ticks)
            .values(
                campaign=tick.campaign,
                schedule=tick.schedule,
                tick_at=tick.tick_at,
                recorded_at=now,
                settled_at=None if tick.outcome is None else now,
                outcome=tick.outcome,
                reason=tick.reason,
            )
            .on_conflict_do_nothing()
        )


def waiting(conn: Connection) -> Sequence[MissedTick]:
    """Return the ticks that are yet to be launched, the oldest first."""
    c = t.missed_ticks.c
    key = (c.tick_at, c.campaign, c.schedule)
    query = sa.select(*key).where(c.outcome.is_(None)).order_by(*key)
    return [MissedTick(**row) for row in conn.execute(query).mappings()]


def resolve(
    conn: Connection,
    now: datetime,
    tick: MissedTick,
    outcome: TickOutcome,
    reason: str | None = None,
) -> None:
    """Record what happened to a waiting tick; one with an outcome keeps it."""
    conn.execute(
        t.missed_ticks.update()
        .where(
            t.missed_ticks.c.campaign == tick.campaign,
            t.missed_ticks.c.schedule == tick.schedule,
            t.missed_ticks.c.tick_at == tick.tick_at,
            t.missed_ticks.c.outcome.is_(None),
        )
        .values(outcome=outcome, reason=reason, settled_at=now)
    )
