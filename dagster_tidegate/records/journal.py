"""A record loop's side of the ledger: what is written of its records, and when."""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.records.record import Record
from dagster_tidegate.records.retry import retry_while_unreachable
from dagster_tidegate.statuses import RecordStatus
from dagster_tidegate.store import ledger
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.store.json_text import JsonText
from dagster_tidegate.store.ledger import AttemptOverError, Entry, Progress, Recorded
from dagster_tidegate.store.runs import AttemptRow

R = TypeVar("R")

PROGRESS_EVERY_S = 1.0
LOG_EVERY_S = 10.0
SMOOTHING = 0.3  # of the rate: how much of it the last second is
LEAST_RATE = 0.001
"""What is less is nothing, to which the smoothed rate would not come by itself."""


@dataclass(frozen=True)
class Group:
    """Records that are written to the ledger together.

    For work that may be repeated without harm: after a crash up to a group of records is done
    again. A group is written when it is full, when it is old, and when the loop stops.

    Attributes:
        records: How many at most; at least 1.
        seconds: How old it may become before it is written, in seconds; looked at between records.

    Raises:
        ValueError: If one of them is too small.
    """

    records: int = 100
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.records < 1 or self.seconds <= 0:
            raise ValueError(
                f"{self}: a group has at least 1 record, and is older than 0 seconds when written"
            )


class Journal:
    """Writes what becomes of the records of one loop, and knows how far it is.

    Without a group each record is written as started before its effect, and as done or failed
    after it: the ledger has it, or it is in doubt. With one, only the end is written.

    Args:
        store: The store.
        fleet: Has its clock.
        attempt: The attempt that works.
        op: Name of the loop.
        series: The attempt with which the work began that this attempt resumes.
        group: How records are written together; None: each for itself.
        total: How many records there are, where that is known.
        log: Where progress is told.
    """

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        attempt: AttemptRow,
        op: str,
        *,
        series: int,
        group: Group | None,
        total: int | None,
        log: logging.Logger,
    ) -> None:
        self._store, self._fleet, self._attempt, self._op = store, fleet, attempt, op
        self._series, self._group, self._total = series, group, total
        self._log = log
        self._entries: list[Entry] = []
        self._since = 0.0  # when the oldest of them was made
        self._started: dict[str, Record] = {}  # in the ledger as started, and not settled
        self._told_at = self._logged_at = time.monotonic()
        self._told = 0
        self._rate: float | None = None
        self.begin()

    def begin(self) -> None:
        """Find out what earlier attempts, or another process of this one, have done."""
        self.found = retry_while_unreachable(self._begin, self._log)
        self.done, self.failed = self.found.done, self.found.failed

    def look_up(self, keys: Collection[str]) -> Mapping[str, Recorded]:
        """Return what the ledger has of some records, by key; what was settled is written first."""
        self.flush()
        return self._reading(
            lambda conn: ledger.look_up(conn, self._attempt.campaign_run, self._op, keys)
        )

    def results(self) -> list[Any]:
        """Return the results of all records that are done, in the order of the input."""
        self.flush()
        return self._reading(
            lambda conn: ledger.results(conn, self._attempt.campaign_run, self._op)
        )

    def start(self, records: Sequence[Record]) -> None:
        """Write that records are started, where that is not written yet, and what is to be written.

        Raises:
            AttemptOverError: If the campaign run has ended, or a newer attempt owns it.
        """
        if self._group is not None:
            return
        for record in records:
            self._note_start(record)
        if self._entries:
            self.flush()

    def settle(self, record: Record, status: RecordStatus, error: str | None = None) -> None:
        """Note how a record ended; `end` writes it."""
        result = _kept(record) if status is RecordStatus.DONE else None
        if not self._entries:
            self._since = time.monotonic()
        self._entries.append(Entry(record.key, record.position, status, result, error))
        self._started.pop(record.key, None)
        if status is RecordStatus.DONE:
            self.done += 1
        else:
            self.failed += 1

    def end(self, upcoming: Sequence[Record] = ()) -> None:
        """Write how records ended, if their group is full or old enough.

        Args:
            upcoming: Records that are begun next: one transaction for both.

        Raises:
            AttemptOverError: If a newer attempt owns the campaign run.
        """
        group = self._group
        if group is None:
            for record in upcoming:
                self._note_start(record)
        elif len(self._entries) < group.records and time.monotonic() - self._since < group.seconds:
            return
        self.flush()

    def flush(self) -> None:
        """Write everything that is to be written.

        Raises:
            AttemptOverError: If the campaign run has ended and the loop would go on, or if a newer
                attempt owns it.
        """
        starts = any(entry.status is RecordStatus.STARTED for entry in self._entries)
        if not self._write_entries() and (starts or self._group is not None):
            raise AttemptOverError(
                f"the campaign run of attempt {self._attempt.number} (Dagster run "
                f"{self._attempt.dagster_run}) has ended: no further record is begun"
            )

    def stop(self, position: int, key: str | None, unfinished: Collection[str] = ()) -> None:
        """Write all there is, and leave no record in doubt but those that are.

        Args:
            position: Every record before this row is settled.
            key: Key of the record before it.
            unfinished: Keys of records whose work has not come to an end.
        """
        self._entries = [e for e in self._entries if e.status is not RecordStatus.STARTED]
        self._write_entries()
        untouched = [
            record.key
            for record in self._started.values()
            if not record.in_doubt and record.key not in unfinished
        ]
        progress = self._progress(position, key, exact=True, rate=None)

        def leave(conn: Connection, now: datetime) -> None:
            if untouched:
                ledger.abandon(conn, self._attempt, self._op, untouched)
            ledger.write_progress(conn, now, self._attempt, self._op, progress)

        self._writing(leave)
        self._started.clear()

    def tell(self, mark: Callable[[], tuple[int, str | None]]) -> None:
        """Write progress to the store once a second, and to the log now and then.

        Args:
            mark: Returns up to which row all is settled, and the key before it.
        """
        now = time.monotonic()
        passed = now - self._told_at
        if passed < PROGRESS_EVERY_S:
            return
        handled = self.done + self.failed
        rate = (handled - self._told) / passed
        self._rate = smoothed(self._rate, rate)
        self._told_at, self._told = now, handled
        self.flush()
        progress = self._progress(*mark(), exact=False, rate=self._rate)
        self._write_progress(progress)
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            self._log.info(describe(progress))

    def _write_entries(self) -> bool:
        """Write the entries, and return whether the campaign run goes on."""
        if not self._entries:
            return True
        entries = self._entries
        goes_on = self._writing(
            lambda conn, now: ledger.write(conn, now, self._attempt, self._op, entries)
        )
        self._entries = []  # not before they are written: what is cut off is written once more
        return goes_on

    def _begin(self) -> Progress:
        run = self._attempt.campaign_run
        with self._store.read() as conn:
            found = ledger.progress(conn, run, self._op) or Progress(exact=True)
            # Those that failed before this series are tried again, wherever they are.
            whole = found.series == self._series or found.failed == 0
            if not found.exact or not whole:
                counts = ledger.counts(conn, run, self._op, failed_since=self._series)
                found = replace(
                    found,
                    done=counts.get(RecordStatus.DONE, 0),
                    failed=counts.get(RecordStatus.FAILED, 0),
                    position=found.position if whole else 0,
                    position_key=found.position_key if whole else None,
                )
        found = replace(found, total=self._total, series=self._series, exact=False, rate=None)
        self._write_progress(found)
        self._told = found.done + found.failed
        return found

    def _progress(
        self, position: int, key: str | None, *, exact: bool, rate: float | None
    ) -> Progress:
        return Progress(
            self.done, self.failed, self._total, rate, position, key, self._series, exact
        )

    def _note_start(self, record: Record) -> None:
        if record.key not in self._started:
            self._started[record.key] = record
            self._entries.append(Entry(record.key, record.position, RecordStatus.STARTED))

    def _reading(self, step: Callable[[Connection], R]) -> R:
        def read() -> R:
            with self._store.read() as conn:
                return step(conn)

        return retry_while_unreachable(read, self._log)

    def _write_progress(self, progress: Progress) -> None:
        self._writing(
            lambda conn, now: ledger.write_progress(conn, now, self._attempt, self._op, progress)
        )

    def _writing(self, step: Callable[[Connection, datetime], R]) -> R:
        now = self._fleet.now()  # may read the store itself, the first time

        def write() -> R:
            # Twice is the same as once, and a newer attempt is looked for each time.
            with self._store.begin() as conn:
                return step(conn, now)

        return retry_while_unreachable(write, self._log)


def smoothed(rate: float | None, latest: float) -> float:
    """Return a rate that follows the latest one slowly.

    Example:
        >>> smoothed(None, 2.0), smoothed(2.0, 0.0), smoothed(0.001, 0.0)
        (2.0, 1.4, 0.0)
    """
    found = latest if rate is None else rate + SMOOTHING * (latest - rate)
    return 0.0 if found < LEAST_RATE else found


def describe(progress: Progress) -> str:
    """Return how far a loop is, for people.

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


def _kept(record: Record) -> JsonText | None:
    if record.result is None:
        return None
    try:
        return JsonText.of(record.result)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the result of record {record.key} can't be kept in the ledger: {error}. Set it to "
            "something that JSON can hold"
        ) from error
