"""The record loop: works through the records of an op, each once, and stops between two of them."""

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

from dagster_tidegate.breaker import BreakerOpenError
from dagster_tidegate.fleet import UNREACHABLE, Fleet
from dagster_tidegate.holds import Hold, HoldSource, TargetKind
from dagster_tidegate.statuses import RecordStatus
from dagster_tidegate.store import ledger
from dagster_tidegate.store.ledger import Entry
from dagster_tidegate.store.runs import Attempt, CampaignRun

T = TypeVar("T")
R = TypeVar("R")

NAMESPACE = uuid.UUID("6a1b2f0e-5d6c-4a63-9c39-0f6a6c1c7d11")
FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
LONGEST_WAIT_S = 300.0
PROGRESS_EVERY_S = 1.0
LOG_EVERY_S = 10.0
MOST_REFUSALS = 60
FEWEST_TO_JUDGE = 10


class MissingKeyError(ValueError):
    """A record has no key; the message names its row."""


class TooManyFailedError(Exception):
    """More records failed than the author allows."""


class Record(Generic[T]):
    """One unit of work. Its `with` block is its boundary: what happens inside belongs to it.

    Attributes:
        value: The item that the loop was given; a row of a DataFrame is a dict.
        key: Its key within the op.
        idempotency_key: The same at every try and in every attempt; for services that take one.
        tries: How often the block has been entered, this time included.
        result: Set it inside the block; it must be something that JSON can hold.
    """

    def __init__(self, loop: "Records[T]", value: T, key: str) -> None:
        self._loop = loop
        self.value = value
        self.key = key
        self.idempotency_key = str(uuid.uuid5(NAMESPACE, f"{loop.run.name}/{loop.op}/{key}"))
        self.tries = 0
        self.result: Any = None

    def __enter__(self) -> "Record[T]":
        self.tries += 1
        return self

    def __exit__(self, _type: Any, error: BaseException | None, _traceback: Any) -> bool:
        return self._loop.settle(self, error)


@dataclass(frozen=True)
class Stop:
    """Why and where a loop stopped between two records."""

    holds: Sequence[Hold]
    done: int
    total: int | None


class Records(Generic[T]):
    """Iterates the records of an op that are not done yet, and stops between records when held.

    Made by `BreakerResource.records`. What the ledger has is skipped. A record whose block raises
    is written down as failed and the loop goes on, with two exceptions: refused by an open
    breaker it is not done, and the loop pauses; failed by the service (what the service's policy
    counts as a failure) it is tried again, until it succeeds, the breaker opens, or `max_tries`
    is reached.

    Args:
        fleet: Breakers, holds and the store.
        run: The campaign run.
        attempt: The attempt that works on it.
        op: Name of the op.
        items: A list, a DataFrame or any iterable.
        key: The field of an item that is its key, or a function that returns it.
        services: Names of the services that the op calls.
        failed_since: Records that failed in an attempt before this one are tried again.
        holds: Returns the live holds that cover this op now.
        on_stop: Ends the Dagster run as paused; never returns.
        max_tries: How often a record is tried that the service fails; at least 1.
        max_failed: Share of the handled records that may fail before the op fails, 0 to 1.
        log: Where progress is told.

    Raises:
        MissingKeyError: While iterating, if an item has no key.
        TooManyFailedError: While iterating, if more than `max_failed` of the records failed.
        AttemptOverError: While iterating, if another attempt has taken over.

    Example:
        ```python
        records = breakers.records(context, leads, key="email")
        for record in records:
            with record:
                record.result = client.send(record.value, record.idempotency_key)
        return records.results()
        ```
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        run: CampaignRun,
        attempt: Attempt,
        op: str,
        items: Iterable[T],
        key: str | Callable[[T], object],
        services: Sequence[str],
        failed_since: int,
        holds: Callable[[], Sequence[Hold]],
        on_stop: Callable[[Stop], NoReturn],
        max_tries: int = 10,
        max_failed: float = 0.5,
        log: logging.Logger,
    ) -> None:
        if max_tries < 1:
            raise ValueError(f"max_tries is {max_tries}; it must be at least 1")
        if not 0 <= max_failed <= 1:
            raise ValueError(f"max_failed is {max_failed}; it is a share, from 0 to 1")
        self.run, self.op = run, op
        self._fleet, self._attempt = fleet, attempt
        self._items = _rows(items)
        self._key = key
        self._services = services
        self._holds, self._on_stop = holds, on_stop
        self._max_tries, self._max_failed = max_tries, max_failed
        self._log = log
        self.total = len(self._items) if isinstance(self._items, Sized) else None
        self._known = patiently(lambda: self._read_known(failed_since), log)
        self.done = sum(status is RecordStatus.DONE for status in self._known.values())
        self.failed = sum(status is RecordStatus.FAILED for status in self._known.values())
        self._order: dict[str, None] = {}
        self._started: str | None = None  # the record that the ledger has as started
        self._next: Record[T] | None = None
        self._settled = True
        self._progress_at = self._log_at = 0.0

    def __iter__(self) -> Iterator[Record[T]]:
        todo = self._todo()
        looks_ahead = self.total is not None
        self._next = next(todo, None)
        try:
            while (record := self._next) is not None:
                # Only where the next item is there already: then the end of one record and the
                # start of the next are one commit.
                self._next = next(todo, None) if looks_ahead else None
                yield from self._tries(record)
                if not looks_ahead:
                    self._next = next(todo, None)
        except GeneratorExit:  # the author left the loop with `break`
            if self._settled:
                self._abandon()
            raise
        self._judge(1)
        self._write_progress()

    def results(self) -> list[Any]:
        """Return the results of all records that are done, in the order of the input.

        Those of earlier attempts are among them, so that a resumed op returns what an unbroken
        one would have returned. Records that failed have none.
        """
        found = patiently(self._read_results, self._log)
        return [found[key] for key in self._order if key in found]

    def settle(self, record: Record[T], error: BaseException | None) -> bool:
        """End a try of a record: write down what became of it. Called by its `with` block.

        Returns:
            Whether the error is dealt with; what does not end a record is raised.
        """
        if error is not None and not isinstance(error, Exception):
            return False  # the process is ending: the record stays started, in doubt
        if isinstance(error, ledger.AttemptOverError):
            return False
        if error is not None and self._to_be_tried_again(record, error):
            return True
        if error is None:
            self._write(Entry(record.key, RecordStatus.DONE, _checked(record)))
            self.done += 1
        else:
            self._log.warning("Record %s failed: %r", record.key, error)
            self._write(Entry(record.key, RecordStatus.FAILED, error=repr(error)))
            self.failed += 1
        self._settled = True
        return True

    def _tries(self, record: Record[T]) -> Iterator[Record[T]]:
        self._settled = False
        while not self._settled:
            self._stop_if_held()
            if self._started != record.key:
                self._commit([Entry(record.key, RecordStatus.STARTED)])
                self._started = record.key
            before = record.tries
            yield record
            if record.tries == before:
                raise RuntimeError(
                    f"record {record.key} was not entered: use 'with record:' in the loop"
                )
        self._judge(FEWEST_TO_JUDGE)
        self._tell()

    def _to_be_tried_again(self, record: Record[T], error: Exception) -> bool:
        if isinstance(error, BreakerOpenError):
            # The hold that an open breaker places stops the loop before the next try. Half open,
            # while others have the trial calls, this waits for what becomes of them.
            if record.tries >= MOST_REFUSALS:
                raise error
        elif record.tries >= self._max_tries or not self._is_service_failure(error):
            return False
        backoff = min(FIRST_BACKOFF_S * 2 ** (record.tries - 1), LONGEST_BACKOFF_S)
        self._fleet.wait_for_change(backoff)
        return True

    def _is_service_failure(self, error: BaseException | None) -> bool:
        while error is not None:
            if any(self._fleet.breaker(name).is_system_error(error) for name in self._services):
                return True
            error = error.__cause__
        return False

    def _stop_if_held(self) -> None:
        held = self._holds()
        if not held:
            return
        held = self._linger(held)
        if not held:
            return
        self._abandon()
        self._write_progress()
        self._on_stop(Stop(held, self.done, self.total))

    def _linger(self, held: Sequence[Hold]) -> Sequence[Hold]:
        """Wait in place for breakers that may close soon; a person's hold is not waited out."""
        while held and all(
            hold.source is HoldSource.BREAKER and hold.target.kind is TargetKind.SERVICE
            for hold in held
        ):
            now = self._fleet.now()
            left = min(
                self._fleet.policies[hold.target.name].linger_s
                - (now - hold.placed_at).total_seconds()
                for hold in held
            )
            if left <= 0:
                return held
            self._fleet.wait_for_change(left)
            held = self._holds()
        return held

    def _todo(self) -> Iterator[Record[T]]:
        seen: set[str] = set()
        for row, item in enumerate(self._items):
            key = self._key_of(row, item)
            if key in seen:
                self._log.warning("Row %d repeats the key %s; it is handled once", row, key)
                continue
            seen.add(key)
            self._order.setdefault(key)
            if self._known.get(key) not in (RecordStatus.DONE, RecordStatus.FAILED):
                yield Record(self, item, key)

    def _key_of(self, row: int, item: T) -> str:
        found: Any = None
        if callable(self._key):
            found = self._key(item)
        elif isinstance(item, dict):
            found = item.get(self._key)
        else:
            found = getattr(item, self._key, None)
        if found is None or found == "" or found != found:  # the last: NaN
            raise MissingKeyError(f"row {row} has no key ({self._key!r}): {item!r:.200}")
        return str(found)

    def _write(self, entry: Entry) -> None:
        entries = [entry]
        upcoming = self._next
        if upcoming is not None and not self._holds():
            entries.append(Entry(upcoming.key, RecordStatus.STARTED))
            self._started = upcoming.key
        else:
            self._started = None
        self._commit(entries)
        self._known[entry.key] = entry.status

    def _commit(self, entries: Sequence[Entry]) -> None:
        def write() -> None:
            # Twice is the same as once, and a newer attempt is looked for each time.
            with self._fleet.store.begin() as conn:
                ledger.write(conn, self._fleet.now(), self._attempt, self.op, entries)

        patiently(write, self._log)

    def _abandon(self) -> None:
        def abandon() -> None:
            with self._fleet.store.begin() as conn:
                ledger.abandon(conn, self._attempt, self.op)

        patiently(abandon, self._log)
        self._started = None

    def _write_progress(self) -> None:
        def write() -> None:
            with self._fleet.store.begin() as conn:
                ledger.write_progress(
                    conn,
                    self._fleet.now(),
                    self._attempt,
                    self.op,
                    done=self.done,
                    failed=self.failed,
                    total=self.total,
                )

        patiently(write, self._log)

    def _read_known(self, failed_since: int) -> dict[str, RecordStatus]:
        with self._fleet.store.read() as conn:
            return dict(ledger.statuses(conn, self.run.id, self.op, failed_since=failed_since))

    def _read_results(self) -> Mapping[str, Any]:
        with self._fleet.store.read() as conn:
            return ledger.results(conn, self.run.id, self.op)

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._progress_at >= PROGRESS_EVERY_S:
            self._progress_at = now
            self._write_progress()
        if now - self._log_at >= LOG_EVERY_S:
            self._log_at = now
            self._log.info("%d/%s records done, %d failed", self.done, self.total, self.failed)

    def _judge(self, fewest: int) -> None:
        handled = self.done + self.failed
        if handled >= fewest and self.failed > self._max_failed * handled:
            raise TooManyFailedError(
                f"{self.failed} of {handled} records failed; max_failed allows "
                f"{self._max_failed:.0%}. Their errors are in the ledger"
            )


def patiently(step: Callable[[], R], log: logging.Logger) -> R:
    """Do a step in the store; while it can't be reached, wait for it instead of failing.

    Args:
        step: What is to be done; it may be done twice.
        log: Where the wait is told.

    Returns:
        What the step returns.

    Raises:
        sqlalchemy.exc.DBAPIError: If the store was away for longer than `LONGEST_WAIT_S`.
    """
    waits_until = None
    backoff = FIRST_BACKOFF_S
    while True:
        try:
            return step()
        except UNREACHABLE as error:
            now = time.monotonic()
            if waits_until is None:
                waits_until = now + LONGEST_WAIT_S
                log.warning(
                    "No record goes on without the ledger; waiting for the store: %s", error
                )
            if now >= waits_until or "no such table" in str(error):
                raise
        time.sleep(backoff)
        backoff = min(backoff * 2, LONGEST_BACKOFF_S)


def _rows(items: Any) -> Any:
    if type(items).__module__.partition(".")[0] == "pandas" and hasattr(items, "itertuples"):
        return items.astype(object).where(items.notna(), None).to_dict("records")
    return items


def _checked(record: Record) -> Any:
    try:
        json.dumps(record.result, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the result of record {record.key} can't be kept in the ledger: {error}. Set it to "
            "something that JSON can hold"
        ) from error
    return record.result
