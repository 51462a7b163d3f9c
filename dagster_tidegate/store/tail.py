"""Follows the events as they are written, in the order of their ids and without leaving one out."""

import threading

import sqlalchemy as sa

from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store

_NEWEST = sa.select(sa.func.coalesce(sa.func.max(t.events.c.id), 0))
# Who inserts an event has this lock before the event gets its id, and until it commits.
_WRITERS = sa.text(
    "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND relation = CAST(:table AS regclass) AND mode = 'RowExclusiveLock'"
).bindparams(table=t.events.name)


class Tail:
    """Knows up to which id every event is there that there will ever be.

    On PostgreSQL an event has its id before its transaction commits, so that of two transactions
    the one with the lower id may commit last. The newest id that can be seen is therefore safe
    only when everybody has finished who was writing an event when it was seen. On SQLite one
    writes at a time.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._safe = 0
        self._newest = 0  # seen at the look before,
        self._writers: frozenset[str] = frozenset()  # while these were writing

    def look(self) -> int:
        """Return the id up to which the events are complete; they can be read from now on."""
        with self._lock, self._store.read() as conn:
            if self._store.is_sqlite:
                return conn.scalar(_NEWEST) or 0
            if self._writers.isdisjoint(self._now_writing(conn)):
                self._safe = max(self._safe, self._newest)
                # In this order: who writes an event up to this id began before it was seen.
                self._newest = conn.scalar(_NEWEST) or 0
                self._writers = self._now_writing(conn)
                if not self._writers:
                    self._safe = max(self._safe, self._newest)
            return self._safe

    @staticmethod
    def _now_writing(conn: sa.Connection) -> frozenset[str]:
        return frozenset(conn.scalars(_WRITERS))
