"""The records of an input that are left to do."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dagster_tidegate.records.chunks import Chunk
from dagster_tidegate.records.host import LoopHost
from dagster_tidegate.records.journal import Journal
from dagster_tidegate.records.record import Record, Setback
from dagster_tidegate.records.schedule import Schedule
from dagster_tidegate.statuses import RecordStatus
from dagster_tidegate.store.ledger import Recorded

T = TypeVar("T")

MAX_LOGGED = 10  # duplicate keys that are logged one by one
MAX_KEY = 512

Mark = tuple[int, str | None]
"""A row before which every record is finished, and the key of the row before it."""


class MissingKeyError(ValueError):
    """A record has no key, or an invalid one; the message names its row."""


class InputChangedError(ValueError):
    """An input declared as `append_only` differs from that of an earlier attempt."""


@dataclass(frozen=True)
class LoopOptions:
    """The options of a record loop; see `BreakerResource.records`.

    Raises:
        ValueError: If `max_tries` or `max_failed` is out of range.
    """

    op: str
    key: str | Callable[[Any], object]
    max_tries: int = 10
    max_failed: float = 0.5
    append_only: bool = False

    def __post_init__(self) -> None:
        if self.max_tries < 1:
            raise ValueError(f"max_tries is {self.max_tries}; it must be at least 1")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"max_failed is {self.max_failed}; it must be between 0 and 1")


class Worklist(Generic[T]):
    """The records that are left to do, and how far the input is finished.

    Args:
        journal: Has the ledger's entries.
        finish: Called by the `with` block of a record.

    Attributes:
        schedule: Records that were read, and are not being tried.
        unfinished: Records that were read, and not finished, by key.
        untried: How many rows were left out because they are neither marked nor new.
    """

    def __init__(
        self,
        host: LoopHost,
        journal: Journal,
        options: LoopOptions,
        finish: Callable[[Record[T], BaseException | None], bool],
    ) -> None:
        self._host, self._journal, self._options = host, journal, options
        self._finish = finish
        self._scope = f"{host.run.logical_name}/{options.op}"
        self._start = journal.resumed.position if options.append_only else 0
        self._takes_new = not host.only_marked or journal.is_fed()
        self._end: Mark = (0, None)  # of what was read
        # The begin of each chunk that may have unfinished records.
        self._marks: deque[Mark] = deque()
        self._duplicates = 0
        self.untried = 0
        self.schedule = Schedule[Record[T]]()
        self.unfinished: dict[str, Record[T]] = {}

    @property
    def first_row(self) -> int:
        """The first row to read: the one before the first to do, whose key is compared."""
        return max(0, self._start - 1)

    def add(self, chunk: Chunk) -> None:
        """Add the records of a chunk that are left to do.

        Raises:
            MissingKeyError: If a row has no valid key.
            InputChangedError: If an append-only input has other keys than before.
        """
        begin = end = self._end
        rows: dict[str, tuple[int, Any]] = {}
        for row, item in chunk:
            key = key_of(row, item, self._options.key)
            end = (row + 1, key)
            if row < self._start:
                self._check_unchanged(row, key)
                begin = end
            elif key in rows or key in self.unfinished:
                self._skip_duplicate(row, key)
            else:
                rows[key] = (row, item)
        entries = self._journal.look_up(rows)
        for key, (row, item) in rows.items():
            entry = entries.get(key)
            if entry is None and not self._takes_new:
                self.untried += 1
                continue
            if entry is None:
                record = self._record(item, key, row)
                self.schedule.add(record)
                self.unfinished[key] = record
            elif self._is_left(entry):
                self.unfinished[key] = self._again(item, key, row, entry)
            elif entry.attempt == self._host.row.number and entry.position != row:
                self._skip_duplicate(row, key)
        # Only now: if reading the chunk failed, none of it is finished.
        self._marks.append(begin)
        self._end = end

    def _record(self, item: Any, key: str, row: int) -> Record[T]:
        return Record(
            item,
            key,
            row,
            scope=self._scope,
            finish=self._finish,
            remember=self._journal.remember,
        )

    def mark(self) -> Mark:
        """Return up to where the input is finished."""
        first = next(iter(self.unfinished.values()), None)
        if first is None:
            self._marks.clear()
            return self._end
        while len(self._marks) > 1 and self._marks[1][0] <= first.position:
            self._marks.popleft()
        return self._marks[0]

    def close(self) -> None:
        """Check the input once it is read to its end.

        Raises:
            InputChangedError: If an append-only input is shorter than before.
        """
        if self._end[0] < self._start:
            raise InputChangedError(
                f"the input has {self._end[0]} rows and had at least {self._start} in an earlier "
                "attempt. Use append_only=False for an input that changes"
            )
        if self._duplicates > MAX_LOGGED:
            self._host.log.warning("Skipped %d rows with a duplicate key", self._duplicates)

    def _is_left(self, entry: Recorded) -> bool:
        return entry.status in (RecordStatus.STARTED, RecordStatus.WAITING) or (
            entry.status is RecordStatus.FAILED
            and entry.attempt < self._host.series
            and not self._host.only_marked
        )

    def _again(self, item: Any, key: str, row: int, entry: Recorded) -> Record[T]:
        """Schedule a record that an earlier attempt, or pass, has begun with."""
        record = self._record(item, key, row)
        record.in_doubt = entry.status is RecordStatus.STARTED
        record.steps.update(entry.steps or {})
        record.served_by = entry.service.split("+") if entry.service else []
        if entry.status is RecordStatus.FAILED:  # in an earlier series: it starts over
            self.schedule.add(record)
            return record
        record.tries = entry.tries
        if entry.error is None:  # it was cut off, or is to be done again
            self.schedule.add(record)
            return record
        has_failed = entry.tries > 0  # or the service had no answer yet
        record.setback = Setback(
            entry.error,
            entry.retry_at,
            successes=0 if has_failed else None,
            own_fault=entry.suspect,
            never_arrived=has_failed and not record.in_doubt,
        )
        wait_s = 0.0
        if entry.retry_at is not None:
            wait_s = max(0.0, (entry.retry_at - self._host.fleet.now()).total_seconds())
        self.schedule.set_aside(record, time.monotonic() + wait_s, failed=has_failed)
        return record

    def _skip_duplicate(self, row: int, key: str) -> None:
        self._duplicates += 1
        if self._duplicates <= MAX_LOGGED:
            self._host.log.warning("Skipped row %d: duplicate key %s", row, key)

    def _check_unchanged(self, row: int, key: str) -> None:
        if key != (before := self._journal.resumed.position_key):
            raise InputChangedError(
                f"row {row} has the key {key!r} and had {before!r} in an earlier attempt. Use "
                "append_only=False for an input that changes"
            )


def key_of(row: int, item: Any, field: str | Callable[[Any], object]) -> str:
    """Return the key of an item.

    Raises:
        MissingKeyError: If it has none, or one that the ledger can't keep.
    """
    value: Any = None
    if callable(field):
        try:
            value = field(item)
        except Exception as error:
            raise MissingKeyError(
                f"row {row} has no key: {error!r} of {_start_of(item)}"
            ) from error
    elif isinstance(item, Mapping):
        value = item.get(field)
    else:
        value = getattr(item, field, None)
    if _is_missing(value):
        raise MissingKeyError(f"row {row} has no key ({field!r}): {_start_of(item)}")
    try:
        key = str(value)
    except Exception as error:
        raise MissingKeyError(f"row {row} has an invalid key: {error!r}") from error
    if len(key) > MAX_KEY or storable(key) != key:
        raise MissingKeyError(
            f"row {row} has an invalid key of {len(key)} characters: {key!r:.80}. Use at most "
            f"{MAX_KEY} characters of valid Unicode without NUL"
        )
    return key


def storable(text: str) -> str:
    """Escape what not every database can store."""
    return text.replace("\0", "\\0").encode(errors="backslashreplace").decode()


def _is_missing(value: Any) -> bool:
    kind = type(value)
    if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
        return True  # its text is its address in memory, which differs in the next attempt
    try:
        return value is None or bool(value == "") or bool(value != value)  # the last: NaN
    except Exception:  # noqa: BLE001 -- pandas' NA, an array, a signalling NaN
        return True


def _start_of(item: Any) -> str:
    try:
        return f"{item!r:.200}"
    except Exception:  # noqa: BLE001 -- a __repr__ may do anything
        return type(item).__name__
