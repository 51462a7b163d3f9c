"""Ticks that a schedule missed while it was stopped, and what became of each."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa

from dagster_tidegate.store import tables as t
from dagster_tidegate.store.upsert import insert


class TickOutcome(StrEnum):
    """What became of a missed tick."""

    LAUNCHED = "launched"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True)
class MissedTick:
    """A tick that a schedule missed. Times are UTC.

    Attributes:
        campaign: Name of the campaign.
        schedule: Name of the schedule.
        tick_at: When it was due.
        outcome: What became of it; None while it waits.
        reason: Why it was skipped or failed.
    """

    campaign: str
    schedule: str
    tick_at: datetime
    outcome: TickOutcome | None = None
    reason: str | None = None


def record(conn: sa.Connection, now: datetime, ticks: Collection[MissedTick]) -> None:
    """Write down missed ticks; those that are known already keep their outcome."""
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


def waiting(conn: sa.Connection) -> Sequence[MissedTick]:
    """Return the ticks that are yet to be launched, the oldest first."""
    c = t.missed_ticks.c
    key = (c.tick_at, c.campaign, c.schedule)
    rows = conn.execute(sa.select(*key).where(c.outcome.is_(None)).order_by(*key))
    return [MissedTick(**row._mapping) for row in rows]


def resolve(
    conn: sa.Connection,
    now: datetime,
    tick: MissedTick,
    outcome: TickOutcome,
    reason: str | None = None,
) -> None:
    """Record the outcome of a waiting tick; a resolved one stays as it is."""
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
