"""Follows the events in the order of their ids, each exactly once.

On PostgreSQL an event gets its id before its transaction commits, so a lower id may commit after a
higher one. But an INSERT locks the table, in a mode that does not exclude other inserts, before it
takes an id, and until it commits. So the newest visible id is final once every transaction is over
that had the lock when the id was read. Writers never wait for readers, and long readers hold
nothing back. SQLite has one writer at a time, and the newest id is always final.
"""

from collections.abc import Sequence

import sqlalchemy as sa

from dagster_tidegate.store import history
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.history import Event

_NEWEST = sa.select(sa.func.coalesce(sa.func.max(t.events.c.id), 0))
_WRITERS = sa.text(
    "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND relation = CAST(:table AS regclass) AND mode = 'RowExclusiveLock'"
).bindparams(table=t.events.name)


class EventReader:
    """Reads the events that follow an event. Keep one instance for as long as you read."""

    def __init__(self) -> None:
        self._final = 0
        self._newest = 0  # final when the transactions of _writers are over
        self._writers: frozenset[str] = frozenset()

    def read(self, conn: Connection, *, after: int, limit: int) -> Sequence[Event]:
        """Return the events after an id, the oldest first; the last id is the next `after`."""
        return history.between(conn, after, self.final(conn), limit=limit)

    def final(self, conn: Connection) -> int:
        """Return the id up to which all events are visible; no lower id can appear later."""
        if conn.dialect.name == "sqlite":
            return newest(conn)
        if self._writers.isdisjoint(_writing(conn)):
            self._final = max(self._final, self._newest)
            # In this order: a lower id that is not visible yet belongs to a current writer.
            self._newest = newest(conn)
            self._writers = _writing(conn)
            if not self._writers:
                self._final = max(self._final, self._newest)
        return self._final


def newest(conn: Connection) -> int:
    """Return the id of the newest event, or 0 if there is none."""
    return conn.scalar(_NEWEST) or 0


def _writing(conn: Connection) -> frozenset[str]:
    return frozenset(conn.scalars(_WRITERS))
