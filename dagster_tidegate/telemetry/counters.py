"""Counters of the fleet since this process started, from what the store keeps for a while."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import datetime

from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import breakers, service_stats
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.event_reader import EventReader, newest

BATCH_SIZE = 2000
MAX_BATCHES = 10


class Counters:
    """Sums that only grow. Read often: outcomes of calls are kept for about two windows.

    Attributes:
        calls: Calls, by service and outcome: `ok`, `slow`, `failed`.
    """

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.trips: Counter[str] = Counter()
        self._calls_by_bucket: Mapping[tuple[str, datetime], Mapping[str, int]] | None = None
        self._events = EventReader()
        self._last_event: int | None = None
        self._open_s: defaultdict[str, float] = defaultdict(float)
        self._open_since: dict[str, datetime] = {}

    def read(self, conn: Connection, now: datetime) -> None:
        """Count what has happened since the previous read. The first read sets the baseline."""
        self._count_calls(conn)
        self._count_trips(conn, now)

    def open_seconds(self, service: str, now: datetime) -> float:
        """Return how long the breaker of a service was not closed, in seconds."""
        since = self._open_since.get(service)
        current_s = 0.0 if since is None else max(0.0, (now - since).total_seconds())
        return self._open_s.get(service, 0.0) + current_s

    def _count_calls(self, conn: Connection) -> None:
        before, after = self._calls_by_bucket, service_stats.calls_by_bucket(conn)
        self._calls_by_bucket = after
        if before is None:
            return
        for (service, bucket), counts in after.items():
            counts_before = before.get((service, bucket), {})
            for outcome, count in counts.items():
                # A bucket shrinks while it is pruned.
                self.calls[service, outcome] += max(0, count - counts_before.get(outcome, 0))

    def _count_trips(self, conn: Connection, now: datetime) -> None:
        if self._last_event is None:
            self._last_event = newest(conn)
            for service, breaker in breakers.read(conn).items():
                if breaker.state is not BreakerState.CLOSED:
                    self._open_since[service] = now
            return
        for _ in range(MAX_BATCHES):
            events = self._events.read(conn, after=self._last_event, limit=BATCH_SIZE)
            for event in events:
                self._last_event = event.id
                if event.closed:
                    if since := self._open_since.pop(event.name, None):
                        self._open_s[event.name] += max(0.0, (event.at - since).total_seconds())
                elif event.opened:
                    self.trips[event.name] += 1
                    self._open_since[event.name] = event.at
            if len(events) < BATCH_SIZE:
                return
