"""Reads the events as they come, in the order of their ids, each once and none missed.

PostgreSQL gives an event its id before the transaction commits, so a lower id may become visible
after a higher one. The ids between have no holes but where a transaction rolled back or is still
under way: at a hole the reader waits until all transactions that may fill it are over.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from dagster_tidegate.store import tables as t
from dagster_tidegate.store.history import Event

LONGEST_WAIT = timedelta(seconds=60)
"""A hole before an event that is older is passed, whoever is still at work: no transaction of a
store takes as long, but another database of the server may have one that takes hours."""

_SNAPSHOT = sa.text(
    "SELECT pg_snapshot_xmin(s)::text::bigint AS oldest, pg_snapshot_xmax(s)::text::bigint AS next "
    "FROM pg_current_snapshot() s"
)


class EventReader:
    """Reads what comes after an event. Keep one for as long as you read."""

    def __init__(self) -> None:
        # The highest id that was seen behind a hole, and the transaction that came next then.
        self._behind_hole: tuple[int, int] | None = None

    def read(
        self, conn: sa.Connection, now: datetime, *, after: int, limit: int
    ) -> Sequence[Event]:
        """Return the next events, the oldest first; the last one's id is the next `after`.

        Args:
            conn: A connection of the store that reads.
            now: The database's time, UTC.
            after: Id of the last event that was read.
            limit: How many at most.
        """
        final = self._final(conn)
        rows = conn.execute(
            sa.select(t.events).where(t.events.c.id > after).order_by(t.events.c.id).limit(limit)
        ).all()
        found = [Event(**row._mapping) for row in rows]
        if conn.dialect.name == "sqlite":  # one writer at a time: ids are in the order of commits
            return found
        last = after
        for place, event in enumerate(found):
            if event.id > max(last + 1, final) and event.at > now - LONGEST_WAIT:
                if self._behind_hole is None:
                    self._behind_hole = (found[-1].id, conn.execute(_SNAPSHOT).one().next)
                return found[:place]
            last = event.id
        return found

    def _final(self, conn: sa.Connection) -> int:
        """Up to which id nothing can come any more."""
        if self._behind_hole is None:
            return 0
        highest, next_then = self._behind_hole
        if conn.execute(_SNAPSHOT).one().oldest < next_then:
            return 0
        self._behind_hole = None
        return highest


def newest(conn: sa.Connection) -> int:
    """Return the id of the newest event, or 0 where there is none."""
    return conn.scalar(sa.select(sa.func.max(t.events.c.id))) or 0
