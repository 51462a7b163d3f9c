"""A record loop's side of the ledger: what is written about its records, and when."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from dagster_tidegate.records.host import LoopHost
from dagster_tidegate.records.record import Record, Setback
from dagster_tidegate.records.retry import retry_while_unreachable
from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import ledger, runs
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.json_text import JsonText
from dagster_tidegate.store.ledger import AttemptOverError, Entry, Progress, Recorded
from dagster_tidegate.text import plural

R = TypeVar("R")

PROGRESS_INTERVAL_S = 1.0
LOG_INTERVAL_S = 10.0
SMOOTHING = 0.3  # weight of the latest second in the rate
MAX_SERVICE = 256
MIN_RATE = 0.001
"""A lower rate is shown as zero."""


@dataclass(frozen=True)
class Group:
    """How many records are written to the ledger in one transaction.

    For work that is safe to repeat: after a crash, up to one group of records is processed again.
    A group is written when it is full, when it is old enough, and when the loop stops.

    Attributes:
        records: Maximum number of records; at least 1.
        seconds: Maximum age, in seconds; checked between records.

    Raises:
        ValueError: If one of them is too small.
    """

    records: int = 100
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.records < 1 or self.seconds <= 0:
            raise ValueError(f"{self}: use at least 1 record and more than 0 seconds")


class Journal:
    """Writes what happens to the records of one loop, and counts them.

    Without a group, each record is written as started before its effect and as done or failed
    after it: either the ledger has it, or it is in doubt. With a group only the end is written.

    Attributes:
        writes_starts: Whether it has no group.
    """

    def __init__(self, host: LoopHost, op: str, *, group: Group | None, total: int | None) -> None:
        self._host, self.op = host, op
        self._group, self._total = group, total
        self.writes_starts = group is None
        self._entries: list[Entry] = []
        self._starts: list[Record] = []
        self._oldest_entry_at = 0.0
        self._started: dict[str, Record] = {}  # started in the ledger, and not finished
        self._reported_at = self._logged_at = time.monotonic()
        self._reported = 0
        self._rate: float | None = None
        self.begin()
        if self.done and host.continues:
            skipped = plural(self.done, "completed record")
            host.log.info("%s: skipping %s: %s", op, skipped, host.continues)

    def begin(self) -> None:
        """Read what earlier attempts, or another process of this one, have done."""
        self.resumed = retry_while_unreachable(self._begin, self._host.log)
        self.done, self.failed = self.resumed.done, self.resumed.failed

    def look_up(self, keys: Collection[str]) -> Mapping[str, Recorded]:
        """Return the ledger's entries of some records, by key."""
        self.flush()
        run = self._host.run
        return self._read(lambda conn: ledger.look_up(conn, run, self.op, keys))

    def is_fed(self) -> bool:
        """Return whether another loop of this series has done records, which may be new here."""
        run, series = self._host.run.id, self._host.series
        return self._read(lambda conn: ledger.has_done(conn, run, series, but=self.op))

    def was_completed(self) -> bool:
        """Return whether an attempt at the campaign run went through its whole input."""
        run = self._host.run
        attempts = self._read(lambda conn: runs.attempts(conn, run.id, since=run.first_attempt))
        return any(attempt.outcome is RunStatus.COMPLETED for attempt in attempts)

    def results(self) -> list[Any]:
        """Return the results of all records that are done, in the order of the input."""
        self.flush()
        run = self._host.run
        return self._read(lambda conn: ledger.results(conn, run, self.op))

    def start(self, records: Sequence[Record]) -> None:
        """Write that records are started, unless they are grouped or it is written already.

        Raises:
            AttemptOverError: If the campaign run has ended, or a newer attempt owns it.
        """
        if not self.writes_starts:
            return
        for record in records:
            self._add_start(record)
        if self._starts:
            self.flush()

    def finish(
        self,
        record: Record,
        status: RecordStatus,
        error: str | None = None,
        *,
        suspect: bool = False,
    ) -> None:
        """Add how a record ended; `commit` writes it."""
        result = _serialized(record) if status is RecordStatus.DONE else None
        self._add(
            Entry(
                record.key,
                record.position,
                status,
                result,
                error,
                record.tries,
                suspect=suspect,
                service=_service(record),
            )
        )
        self._started.pop(record.key, None)
        if status is RecordStatus.DONE:
            self.done += 1
        else:
            self.failed += 1

    def set_aside(self, record: Record) -> None:
        """Add that a record is to be tried again; `commit` writes it."""
        self._add(_left(record))
        self._started.pop(record.key, None)

    def remember(self, record: Record) -> None:
        """Write the steps of a record that are done. Called by any thread.

        Raises:
            AttemptOverError: If a newer attempt owns the campaign run.
        """
        waiting = RecordStatus.WAITING
        entry = Entry(record.key, record.position, waiting, service=_service(record))
        row, op, steps = self._host.row, self.op, dict(record.steps)
        self._write(lambda conn, now: ledger.remember(conn, now, row, op, entry, steps))

    def commit(self, upcoming: Sequence[Record] = ()) -> None:
        """Write how records ended, unless their group is neither full nor old enough.

        Args:
            upcoming: Records that start next, in the same transaction; none if they are grouped.

        Raises:
            AttemptOverError: If the campaign run has ended, or a newer attempt owns it.
        """
        group = self._group
        for record in upcoming:
            self._add_start(record)
        if (
            group is None
            or len(self._entries) >= group.records
            or time.monotonic() - self._oldest_entry_at >= group.seconds
        ):
            self.flush()

    def flush(self) -> None:
        """Write all entries.

        Raises:
            AttemptOverError: If a newer attempt owns the campaign run, or it has ended and the
                entries would continue it.
        """
        continues = not self.writes_starts or bool(self._starts)
        if not self._write_entries() and continues:
            row = self._host.row
            raise AttemptOverError(
                f"the campaign run of attempt {row.number} (Dagster run {row.dagster_run}) has "
                "ended: no further record is started"
            )

    def close(self, position: int, key: str | None, in_flight: Collection[str] = ()) -> None:
        """Write everything. Only records that may have had an effect stay in doubt.

        Args:
            position: Every record before this row is finished.
            key: Key of the record before it.
            in_flight: Keys of records that were cut off.
        """
        self._starts.clear()
        untouched: list[str] = []
        for record in self._started.values():
            if record.key in in_flight:
                continue
            # What is marked to be done again is found by its entry.
            if record.tries or record.in_doubt or record.steps or self._host.only_marked:
                self._entries.append(_left(record))
            else:
                untouched.append(record.key)
        self._write_entries()
        progress = self._progress(position, key, exact=True, rate=None)

        def write(conn: Connection, now: datetime) -> None:
            if untouched:
                ledger.abandon(conn, self._host.row, self.op, untouched)
            ledger.write_progress(conn, now, self._host.row, self.op, progress)

        self._write(write)
        self._started.clear()

    def report(self, mark: Callable[[], tuple[int, str | None]]) -> None:
        """Write progress to the store once a second, and to the log every 10 seconds.

        Args:
            mark: Returns the row before which every record is finished, and the key before it.
        """
        now = time.monotonic()
        elapsed = now - self._reported_at
        if elapsed < PROGRESS_INTERVAL_S:
            return
        finished = self.done + self.failed
        self._rate = smoothed(self._rate, (finished - self._reported) / elapsed)
        self._reported_at, self._reported = now, finished
        self.flush()
        progress = self._progress(*mark(), exact=False, rate=self._rate)
        self._write_progress(progress)
        if now - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = now
            self._host.log.info(describe(progress))

    def _write_entries(self) -> bool:
        """Write the entries, and return whether the campaign run is still processing."""
        # The latest entry of a record counts.
        added = {entry.key: entry for entry in (*self._entries, *map(_start, self._starts))}
        entries = list(added.values())
        if not entries:
            return True
        processing = self._write(
            lambda conn, now: ledger.write(conn, now, self._host.row, self.op, entries)
        )
        self._entries, self._starts = [], []  # only now: a write that was cut off is repeated
        return processing

    def _begin(self) -> Progress:
        run, series = self._host.run, self._host.series
        with self._host.store.read() as conn:
            progress = ledger.progress(conn, run.id, self.op) or Progress(exact=True)
            # Records that failed before this series are retried, wherever they are.
            same_series = progress.series == series or progress.failed == 0
            if self._host.only_marked:  # others stay failed, and the input is not read to its end
                same_series, failed_since = False, 0
            else:
                failed_since = series
            if not progress.exact or not same_series:
                counts = ledger.counts(conn, run, self.op, failed_since=failed_since)
                progress = replace(
                    progress,
                    done=counts.get(RecordStatus.DONE, 0),
                    failed=counts.get(RecordStatus.FAILED, 0),
                    position=progress.position if same_series else 0,
                    position_key=progress.position_key if same_series else None,
                )
        progress = replace(progress, total=self._total, series=series, exact=False, rate=None)
        self._write_progress(progress)
        self._reported = progress.done + progress.failed
        return progress

    def _progress(
        self, position: int, key: str | None, *, exact: bool, rate: float | None
    ) -> Progress:
        if self._host.only_marked:
            position, key = 0, None
        return Progress(
            self.done, self.failed, self._total, rate, position, key, self._host.series, exact
        )

    def _add_start(self, record: Record) -> None:
        if record.key not in self._started:
            self._started[record.key] = record
            self._starts.append(record)

    def _add(self, entry: Entry) -> None:
        if not self._entries:
            self._oldest_entry_at = time.monotonic()
        self._entries.append(entry)

    def _write_progress(self, progress: Progress) -> None:
        self._write(
            lambda conn, now: ledger.write_progress(conn, now, self._host.row, self.op, progress)
        )

    def _read(self, step: Callable[[Connection], R]) -> R:
        def read() -> R:
            with self._host.store.read() as conn:
                return step(conn)

        return retry_while_unreachable(read, self._host.log)

    def _write(self, step: Callable[[Connection, datetime], R]) -> R:
        now = self._host.fleet.now()  # the first call reads the store

        def write() -> R:
            # Idempotent, and each try is fenced against a newer attempt.
            with self._host.store.begin() as conn:
                return step(conn, now)

        return retry_while_unreachable(write, self._host.log)


def smoothed(rate: float | None, latest: float) -> float:
    """Return a rate that follows the latest one slowly.

    Example:
        >>> smoothed(None, 2.0), smoothed(2.0, 0.0), smoothed(0.001, 0.0)
        (2.0, 1.4, 0.0)
    """
    average = latest if rate is None else rate + SMOOTHING * (latest - rate)
    return 0.0 if average < MIN_RATE else average


def describe(progress: Progress) -> str:
    """Return the progress of a loop as text.

    Example:
        >>> describe(Progress(done=120, failed=2, total=5000, rate=14.2))
        '120/5000 records done, 2 failed, 14.2 a second, about 6 min left'
    """
    of = "" if progress.total is None else f"/{progress.total}"
    parts = [f"{progress.done}{of} records done", f"{progress.failed} failed"]
    if progress.rate is not None:
        parts.append(f"{progress.rate:.1f} a second")
        if (left := progress.seconds_left()) is not None:
            parts.append(f"about {left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
    return ", ".join(parts)


def _start(record: Record) -> Entry:
    """The entry of a record whose next try begins; should its process die, the try counts."""
    error = None if record.setback is None else record.setback.error
    tries = record.tries + 1
    return Entry(
        record.key,
        record.position,
        RecordStatus.STARTED,
        error=error,
        tries=tries,
        suspect=record.setback is not None and record.setback.own_fault,
        service=_service(record),
    )


def _left(record: Record) -> Entry:
    """The entry of a record that was tried and has no result."""
    setback = record.setback or Setback()
    return Entry(
        record.key,
        record.position,
        RecordStatus.STARTED if record.in_doubt else RecordStatus.WAITING,
        error=setback.error,
        tries=record.tries,
        retry_at=setback.retry_at,
        suspect=setback.own_fault,
        service=_service(record),
    )


def _service(record: Record) -> str | None:
    return "+".join(record.served_by)[:MAX_SERVICE] or None


def _serialized(record: Record) -> JsonText | None:
    if record.result is None:
        return None
    try:
        return JsonText.of(record.result)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"the result of record {record.key} can't be kept in the ledger: {error}. Set it to a "
            "value that JSON can represent"
        ) from error
