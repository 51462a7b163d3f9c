"""What one process saw of a service, counted so that a success costs next to nothing."""

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock

from dagster_tidegate.breaker.policy import ServicePolicy

BUCKETS = 10
"""A window is counted in so many buckets."""
CLOCK_TOLERANCE_S = 5.0
"""What is further in the future than this was written before a clock was set back."""
MAX_ROW = 1000


def bucket_s(policy: ServicePolicy) -> float:
    """Return the length of a bucket of a service's window, in seconds."""
    return policy.window_s / BUCKETS


def bucket_of(policy: ServicePolicy, at: datetime) -> datetime:
    """Return the beginning of the bucket that a time is in."""
    width = bucket_s(policy)
    return datetime.fromtimestamp(at.timestamp() // width * width, UTC)


@dataclass(frozen=True, slots=True)
class WindowDelta:
    """What a worker saw of a service since it last told the fleet; times are UTC.

    `ok`, `slow` and `failed` are added to what the worker told before; the others replace it.
    See the table `outcomes` for their meaning.
    """

    service: str
    generation: int
    worker: str
    bucket: datetime
    at: datetime
    ok: int = 0
    slow: int = 0
    failed: int = 0
    failed_in_row: int = 0
    row_since: datetime | None = None
    last_ok_at: datetime | None = None
    last_failed_at: datetime | None = None
    retry_at: datetime | None = None


class LocalWindow:
    """The counters of one process, for a service in one generation of its breaker.

    `ok()` and `last_ok` are all that a success touches; both are atomic, so that it takes no lock.

    Args:
        service: Name of the service.
        generation: Generation of its breaker.
        worker: Name of this process.
        ticks: A clock that never jumps, in seconds.
    """

    __slots__ = (
        "_last_failed_at",
        "_lock",
        "_ok_at_failure",
        "_ok_reads",
        "_retry_at",
        "_row",
        "_told",
        "failed",
        "generation",
        "last_ok",
        "ok",
        "service",
        "slow",
        "ticks",
        "worker",
    )

    def __init__(
        self, service: str, generation: int, worker: str, ticks: Callable[[], float]
    ) -> None:
        self.service = service
        self.generation = generation
        self.worker = worker
        self.ticks = ticks
        self.ok = itertools.count().__next__
        self.last_ok: float | None = None
        self.slow = 0
        self.failed = 0
        self._ok_reads = 0
        self._lock = Lock()
        self._row: deque[datetime] = deque(maxlen=MAX_ROW)
        self._ok_at_failure = 0
        self._last_failed_at: datetime | None = None
        self._retry_at: datetime | None = None
        self._told = (0, 0, 0)

    def fail(self, at: datetime, retry_at: datetime | None) -> None:
        """Count a failure."""
        with self._lock:
            self._break_row()
            self._row.append(at)
            self.failed += 1
            self._last_failed_at = at
            if retry_at is not None:
                self._retry_at = max(retry_at, self._retry_at or retry_at)

    def count_slow(self) -> None:
        """Count a success, counted as such already, as slow too."""
        with self._lock:
            self.slow += 1

    def succeeded_until(self, at: datetime) -> None:
        """Forget failures in a row that are older than a success that another worker had."""
        with self._lock:
            while self._row and self._row[0] < at:
                self._row.popleft()

    def totals(self) -> tuple[int, int, int]:
        """Return how many calls succeeded, were slow, and failed, ever."""
        with self._lock:
            return self._ok_total(), self.slow, self.failed

    def untold(self, policy: ServicePolicy, now: datetime) -> WindowDelta | None:
        """Return what is to be told, or None; `told` says that it was."""
        with self._lock:
            self._break_row()
            ok, slow, failed = self._ok_total(), self.slow, self.failed
            if (ok, slow, failed) == self._told:
                return None
            bucket = bucket_of(policy, now)
            row = [at for at in self._row if at >= bucket]
            last_failed_at, last_ok_at = self._last_failed_at, None
            if last_failed_at is not None and last_failed_at < bucket:
                last_failed_at = None
            if self.last_ok is not None:
                age = max(0.0, self.ticks() - self.last_ok)
                last_ok_at = datetime.fromtimestamp(now.timestamp() - age, UTC)
            return WindowDelta(
                service=self.service,
                generation=self.generation,
                worker=self.worker,
                bucket=bucket,
                at=now,
                ok=ok - self._told[0],
                slow=slow - self._told[1],
                failed=failed - self._told[2],
                failed_in_row=len(row),
                row_since=row[0] if row else None,
                last_ok_at=last_ok_at,
                last_failed_at=last_failed_at,
                retry_at=self._retry_at,
            )

    def told(self, seen: WindowDelta) -> None:
        """Note that what `untold` gave is known to the fleet."""
        ok, slow, failed = self._told
        self._told = (ok + seen.ok, slow + seen.slow, failed + seen.failed)

    def _ok_total(self) -> int:
        # Reading a count moves it on by one; the reads are taken off again.
        total = self.ok() - self._ok_reads
        self._ok_reads += 1
        return total

    def _break_row(self) -> None:
        ok = self._ok_total()
        if ok != self._ok_at_failure:
            self._row.clear()
            self._ok_at_failure = ok
