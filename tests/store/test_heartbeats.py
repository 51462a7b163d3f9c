"""Heartbeats: the latest of each part of a gate."""

from datetime import datetime

from dagster_tidegate.store import heartbeats
from dagster_tidegate.store.database import Store
from tests.support.clock import Clock


def test_a_heartbeat_keeps_its_cursor_until_it_gets_another(store: Store, clock: Clock):
    def beat(summary: str, cursor: datetime | None = None) -> None:
        with store.begin() as conn:
            heartbeats.beat(
                conn, clock(), location="here", part="pause", summary=summary, cursor=cursor
            )

    start = clock()
    beat("one", start)
    clock.advance(5)
    beat("two")
    with store.read() as conn:
        [found] = heartbeats.read(conn)
    assert (found.at, found.cursor, found.summary) == (clock(), start, "two")
