"""Reads the events as they come, in the order of their ids, each once and none missed.

PostgreSQL gives an event its id before the transaction commits, so that of two transactions the
one with the lower id may commit last. Who inserts an event locks the table, in a mode that lets
others insert too, before the event gets its id, and until it commits. So the newest id that can be
seen is final as soon as everybody is over who had that lock when it was seen. Nobody waits for a
reader, and who only reads, for hours perhaps, holds nothing back. On SQLite one writes at a time.
"""

from collections.abc import Sequence

import sqlalchemy as sa

from dagster_tidegate.store import history
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.history import Event

_NEWEST = sa.select(sa.func.coalesce(sa.func.max(t.events.c.id), 0))
_WRITERS = sa.text(
    "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND relation = CAST(:table AS regclass) AND mode = 'RowExclusiveLock'"
).bindparams(table=t.events.name)


class EventReader:
    """Reads what comes after an event. Keep one for as long as you read."""

    def __init__(self) -> None:
        self._final = 0
        self._newest = 0  # seen at the look before,
        self._writers: frozenset[str] = frozenset()  # while these were writing

    def read(self, conn: sa.Connection, *, after: int, limit: int) -> Sequence[Event]:
        """Return the next events, the oldest first; the last one's id is the next `after`.

        Args:
            conn: A connection of the store that reads.
            after: Id of the last event that was read.
            limit: How many at most.
        """
        return history.between(conn, after, self.final(conn), limit=limit)

    def final(self, conn: sa.Connection) -> int:
        """Return the id up to which nothing can come any more; the events are there to be read.

        Args:
            conn: A connection of the store that reads.
        """
        if conn.dialect.name == "sqlite":
            return newest(conn)
        if self._writers.isdisjoint(_writing(conn)):
            self._final = max(self._final, self._newest)
            # In this order: who has a lower id, and has not committed, was writing before.
            self._newest = newest(conn)
            self._writers = _writing(conn)
            if not self._writers:
                self._final = max(self._final, self._newest)
        return self._final


def newest(conn: sa.Connection) -> int:
    """Return the id of the newest event, or 0 where there is none."""
    return conn.scalar(_NEWEST) or 0


def _writing(conn: sa.Connection) -> frozenset[str]:
    return frozenset(conn.scalars(_WRITERS))
