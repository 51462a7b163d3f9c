"""Missed ticks: recorded once, and resolved once."""

from dataclasses import replace

import sqlalchemy as sa

from dagster_tidegate.store import missed_ticks
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.missed_ticks import MissedTick, TickOutcome
from tests.support.clock import Clock


def test_a_missed_tick_is_written_down_once_and_settled_once(store: Store, clock: Clock):
    tick = MissedTick("letters", "hourly", clock())
    skipped = MissedTick("letters", "hourly", clock.advance(60), TickOutcome.SKIPPED, "none")
    with store.begin() as conn:
        missed_ticks.record(conn, clock(), [tick, skipped])
        missed_ticks.record(conn, clock(), [replace(tick, outcome=TickOutcome.SKIPPED)])
        assert missed_ticks.waiting(conn) == [tick]
        missed_ticks.resolve(conn, clock(), tick, TickOutcome.LAUNCHED)
        missed_ticks.resolve(conn, clock(), tick, TickOutcome.FAILED, "too late")
        assert missed_ticks.waiting(conn) == []
        rows = conn.execute(sa.select(t.missed_ticks).order_by(t.missed_ticks.c.tick_at)).all()
    assert [(row.outcome, row.reason) for row in rows] == [
        ("launched", None),
        ("skipped", "none"),
    ]
