"""Counts what the fleet does from when the process began, of what the store keeps for a while."""

from collections import Counter, defaultdict
from datetime import datetime

import sqlalchemy as sa

from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.event_reader import EventReader, newest

MAX_EVENTS = 2000
MAX_BATCHES = 10


class Counters:
    """Sums that only grow. Read often: outcomes of calls are kept for about two windows.

    Attributes:
        calls: Calls, by service and outcome: `ok`, `slow`, `failed`.
        trips: Trips, by service.
    """

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.trips: Counter[str] = Counter()
        self._known: dict[tuple[str, datetime], dict[str, int]] | None = None
        self._reader = EventReader()
        self._last: int | None = None
        self._open_s: defaultdict[str, float] = defaultdict(float)
        self._open_since: dict[str, datetime] = {}

    def read(self, conn: sa.Connection, now: datetime) -> None:
        """Count what happened since the last time; the first time only looks what is there.

        Args:
            conn: A connection of the store that reads.
            now: The database's time, UTC.
        """
        self._count_calls(conn)
        self._count_trips(conn, now)

    def open_seconds(self, service: str, now: datetime) -> float:
        """Return for how long a breaker was not closed, in seconds.

        Args:
            service: Name of the service.
            now: The database's time, UTC.
        """
        since = self._open_since.get(service)
        lasts_s = 0.0 if since is None else max(0.0, (now - since).total_seconds())
        return self._open_s.get(service, 0.0) + lasts_s

    def _count_calls(self, conn: sa.Connection) -> None:
        o = t.outcomes.c
        rows = conn.execute(
            sa.select(
                o.service,
                o.bucket,
                sa.func.sum(o.ok).label("ok"),
                sa.func.sum(o.slow).label("slow"),
                sa.func.sum(o.failed).label("failed"),
            ).group_by(o.service, o.bucket)
        )
        found = {
            (row.service, row.bucket): {"ok": row.ok, "slow": row.slow, "failed": row.failed}
            for row in rows
        }
        if self._known is not None:
            for (service, bucket), counts in found.items():
                before = self._known.get((service, bucket), {})
                for outcome, count in counts.items():
                    # A bucket that is being deleted shrinks, worker by worker.
                    self.calls[service, outcome] += max(0, count - before.get(outcome, 0))
        self._known = found

    def _count_trips(self, conn: sa.Connection, now: datetime) -> None:
        if self._last is None:
            self._last = newest(conn)
            s = t.services.c
            not_closed = sa.select(s.name).where(s.state != BreakerState.CLOSED)
            self._open_since = dict.fromkeys(conn.scalars(not_closed), now)
            return
        for _ in range(MAX_BATCHES):
            events = self._reader.read(conn, after=self._last, limit=MAX_EVENTS)
            for event in events:
                self._last = event.id
                if event.closed:
                    if since := self._open_since.pop(event.name, None):
                        self._open_s[event.name] += max(0.0, (event.at - since).total_seconds())
                elif event.opened:
                    self.trips[event.name] += 1
                    self._open_since[event.name] = event.at
            if len(events) < MAX_EVENTS:
                return
