"""The window of a breaker: what one process counts, and how the counts of a fleet add up."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from secrets import token_hex
from threading import Lock
from typing import NamedTuple

from dagster_tidegate.breaker.evidence import digest
from dagster_tidegate.breaker.policy import ServicePolicy

BUCKETS = 10
"""Number of buckets in a window."""
CLOCK_TOLERANCE_S = 5.0
"""Buckets further in the future were written before a clock was set back; they are ignored."""
COUNTS = ("ok", "slow", "failed", "throttled", "denied", "pending", "rejected", "ignored")
"""What is counted of calls: `ok` includes `slow`, the others are named like their verdicts."""
MAX_RECORDS = 8
"""How many of the records that failed in a row are known by their digest."""


def bucket_s(policy: ServicePolicy) -> float:
    """Return the length of a bucket, in seconds."""
    return policy.window_s / BUCKETS


def bucket_of(policy: ServicePolicy, at: datetime) -> datetime:
    """Return the start of the bucket that contains a time."""
    width = bucket_s(policy)
    return datetime.fromtimestamp(at.timestamp() // width * width, UTC)


def reach(policy: ServicePolicy, now: datetime) -> tuple[datetime, datetime]:
    """Return the range of the buckets that count: after the first time, up to the second."""
    since = now - timedelta(seconds=policy.window_s + bucket_s(policy))
    return since, now + timedelta(seconds=CLOCK_TOLERANCE_S)


@dataclass(frozen=True, slots=True)
class WindowDelta:
    """What a worker counted in one bucket since its last report; times are UTC.

    The counts of `COUNTS` are added to what the worker reported before; `failed_in_row`,
    `row_since` and `row_records` replace it, and count since the worker's last success, whatever
    the bucket; so does `p95_s`, of the worker's latest calls that succeeded; of the other times the
    later one is kept. The table `outcomes` has the same columns.
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
    row_records: str | None = None
    last_ok_at: datetime | None = None
    last_failed_at: datetime | None = None
    retry_at: datetime | None = None
    throttled: int = 0
    denied: int = 0
    pending: int = 0
    rejected: int = 0
    ignored: int = 0
    p95_s: float | None = None

    def added_to(self, former: "WindowDelta") -> "WindowDelta":
        """Return the sum of an earlier report of the same worker and bucket, and this one."""
        sums = {name: getattr(former, name) + getattr(self, name) for name in COUNTS}
        return replace(
            self,
            **sums,
            last_ok_at=_later(former.last_ok_at, self.last_ok_at),
            last_failed_at=_later(former.last_failed_at, self.last_failed_at),
            retry_at=_later(former.retry_at, self.retry_at),
        )


class Counts(NamedTuple):
    """A row of the table `outcomes`: see `WindowDelta`. Tuples, as there may be thousands."""

    worker: str
    bucket: datetime
    ok: int
    slow: int
    failed: int
    failed_in_row: int
    row_since: datetime | None
    row_records: str | None
    last_ok_at: datetime | None
    last_failed_at: datetime | None
    retry_at: datetime | None


def _later(former: datetime | None, present: datetime | None) -> datetime | None:
    # The later time wins even when a clock was set back.
    return max((at for at in (former, present) if at is not None), default=None)


@dataclass(frozen=True, slots=True)
class WindowStats:
    """The calls of the whole fleet to a service within the window, in one generation.

    Attributes:
        ok: Successful calls, including slow ones.
        slow: Successful calls that took too long.
        failed_in_row: Failures since the last known success.
        row_since: When the first of these failures happened.
        row_records: Number of records that had them, up to `MAX_RECORDS` of each worker; a call
            that belongs to no record counts as one.
        row_workers: Number of workers that had these failures.
        unflushed_ok_per_s: Recent successes per second of the workers that have not reported since
            `row_since`: they may have had successes that are not flushed yet.
        workers: Number of workers whose calls said something about the service.
        failing_workers: Number of workers that had failures or slow calls.
        slow_in_row: Slow calls of the worker that asks without another in between.
        last_ok_at: The last known success.
        retry_at: The service asked not to be called before.
    """

    ok: int = 0
    slow: int = 0
    failed: int = 0
    failed_in_row: int = 0
    row_since: datetime | None = None
    row_records: int = 0
    row_workers: int = 0
    unflushed_ok_per_s: float = 0.0
    workers: int = 0
    failing_workers: int = 0
    slow_in_row: int = 0
    last_ok_at: datetime | None = None
    retry_at: datetime | None = None


def outlives_window(row: Counts | WindowDelta, last_ok_at: datetime | None) -> bool:
    """Return whether a row counts for the failures in a row, however old it is.

    Args:
        last_ok_at: The last success of all workers.
    """
    if last_ok_at is None:
        return row.failed_in_row > 0
    failed_since = row.last_failed_at is not None and row.last_failed_at > last_ok_at
    return row.last_ok_at == last_ok_at or (row.failed_in_row > 0 and failed_since)


def last_success(rows: Iterable[Counts | WindowDelta], until: datetime) -> datetime | None:
    """Return the last success of all workers; None if there is none.

    Args:
        until: What a worker with a fast clock reports for later does not count yet.
    """
    known = [row.last_ok_at for row in rows if row.bucket <= until and row.last_ok_at is not None]
    return max((at for at in known if at <= until), default=None)


def window_stats(
    rows: Sequence[Counts | WindowDelta], policy: ServicePolicy, now: datetime, worker: str
) -> WindowStats:
    """Add up the counts of all workers.

    Args:
        rows: The counts per worker and bucket of the breaker's generation; those outside of
            `reach` count only for the failures in a row.
        worker: The worker that asks; it has just reported all its calls.
    """
    width = bucket_s(policy)
    since, until = reach(policy, now)
    rows = [row for row in rows if row.bucket <= until]
    last_ok_at = last_success(rows, until)
    rows = [row for row in rows if row.bucket > since or outlives_window(row, last_ok_at)]
    floor = last_ok_at or datetime.min.replace(tzinfo=UTC)
    latest: dict[str, Counts | WindowDelta] = {}
    for row in rows:
        if row.worker not in latest or latest[row.worker].bucket < row.bucket:
            latest[row.worker] = row
    in_row = 0
    row_since: list[datetime] = []
    records: set[str] = set()
    failing: set[str] = set()
    for row in latest.values():
        if row.row_since is not None and row.row_since >= floor:
            in_row += row.failed_in_row
            row_since.append(row.row_since)
        elif row.last_failed_at is not None and row.last_failed_at > floor:
            in_row += 1
            row_since.append(row.last_failed_at)
        else:
            continue
        failing.add(row.worker)
        if row.row_records is not None:
            records.update(row.row_records.split(","))
        else:  # of a version that does not name them
            records.update(f"{row.worker}:{n}" for n in range(min(row.failed_in_row, MAX_RECORDS)))
    rows = [row for row in rows if row.bucket > since]
    recent = now - timedelta(seconds=2 * width)
    up_to_date = {*failing, worker}
    unflushed = sum(r.ok for r in rows if r.bucket > recent and r.worker not in up_to_date)
    return WindowStats(
        ok=sum(row.ok for row in rows),
        slow=sum(row.slow for row in rows),
        failed=sum(row.failed for row in rows),
        failed_in_row=in_row,
        row_since=min(row_since, default=None),
        row_records=len(records),
        row_workers=len(failing),
        unflushed_ok_per_s=unflushed / (2 * width),
        workers=len({row.worker for row in rows if row.ok or row.slow or row.failed}),
        failing_workers=len({row.worker for row in rows if row.failed or row.slow}),
        last_ok_at=last_ok_at,
        retry_at=max((row.retry_at for row in rows if row.retry_at is not None), default=None),
    )


class LocalWindow:
    """The counters of one process for one service, in one generation of its breaker.

    A success touches only `ok()` and `last_ok`. Both are atomic, so it takes no lock.
    """

    def __init__(
        self,
        service: str,
        generation: int,
        worker: str,
        monotonic: Callable[[], float],
        max_in_row: int = 1000,
    ) -> None:
        self.service = service
        self.generation = generation
        self.worker = worker
        self.monotonic = monotonic
        self.ok = itertools.count().__next__
        self.last_ok: float | None = None
        self.slow = self.slow_in_row = 0
        self._ok_at_slow = 0
        self._slow_since = 0.0  # when the first slow call in a row ended
        self.failed = 0
        self._ok_reads = 0
        self._lock = Lock()
        # The failures in a row: when, and the digest of the record.
        self._row: deque[tuple[datetime, str]] = deque(maxlen=max_in_row)
        self._ok_at_failure = 0
        self._last_failed_at: datetime | None = None
        self._retry_at: datetime | None = None
        self._flushed = (0, 0, 0)

    def fail(self, at: datetime, retry_at: datetime | None, record: str | None = None) -> None:
        """Count a failure; `record` is the path of the record, None if it belongs to none."""
        with self._lock:
            self._end_row_after_success()
            self._row.append((at, digest(record) if record else token_hex(4)))
            self.failed += 1
            self._last_failed_at = at
            if retry_at is not None:
                self._retry_at = max(retry_at, self._retry_at or retry_at)

    def count_slow(self, started: float) -> None:
        """Count a success, already counted by `ok()`, as slow too.

        Args:
            started: When the call began, by `monotonic`. Calls that were all under way at one
                moment are slow together if this process stood still: they count as one in a row.
        """
        with self._lock:
            self.slow += 1
            ok = self._ok_total()
            if ok != self._ok_at_slow + 1:
                self.slow_in_row, self._slow_since = 1, self.monotonic()
            elif started >= self._slow_since:
                self.slow_in_row += 1
            self._ok_at_slow = ok

    def succeeded_until(self, at: datetime) -> None:
        """Forget failures in a row that are older than another worker's success."""
        with self._lock:
            while self._row and self._row[0][0] < at:
                self._row.popleft()

    def totals(self) -> tuple[int, int, int]:
        """Return how many calls succeeded, were slow, and failed in all."""
        with self._lock:
            return self._ok_total(), self.slow, self.failed

    def pending(
        self,
        policy: ServicePolicy,
        now: datetime,
        others: Mapping[str, int] | None = None,
        p95_s: float | None = None,
    ) -> WindowDelta | None:
        """Return what is to be reported, or None. Call `flushed` once it is written.

        Args:
            others: Counts of other verdicts to report with it.
            p95_s: The 95th percentile of the latest calls that succeeded, in seconds.
        """
        with self._lock:
            self._end_row_after_success()
            ok, slow, failed = self._ok_total(), self.slow, self.failed
            if (ok, slow, failed) == self._flushed and not others:
                return None
            bucket = bucket_of(policy, now)
            records = dict.fromkeys(record for _, record in self._row)
            last_ok_at = None
            if self.last_ok is not None:
                age = max(0.0, self.monotonic() - self.last_ok)
                last_ok_at = datetime.fromtimestamp(now.timestamp() - age, UTC)
            return WindowDelta(
                service=self.service,
                generation=self.generation,
                worker=self.worker,
                bucket=bucket,
                at=now,
                ok=ok - self._flushed[0],
                slow=slow - self._flushed[1],
                failed=failed - self._flushed[2],
                failed_in_row=len(self._row),
                row_since=self._row[0][0] if self._row else None,
                row_records=",".join(islice(records, MAX_RECORDS)) or None,
                last_ok_at=last_ok_at,
                last_failed_at=self._last_failed_at,
                retry_at=self._retry_at,
                p95_s=p95_s,
                **(others or {}),
            )

    def flushed(self, delta: WindowDelta) -> None:
        """Note that a delta from `pending` is written."""
        ok, slow, failed = self._flushed
        self._flushed = (ok + delta.ok, slow + delta.slow, failed + delta.failed)

    def _ok_total(self) -> int:
        # Reading a counter advances it by one; the reads are subtracted.
        total = self.ok() - self._ok_reads
        self._ok_reads += 1
        return total

    def _end_row_after_success(self) -> None:
        ok = self._ok_total()
        if ok != self._ok_at_failure:
            self._row.clear()
            self._ok_at_failure = ok
