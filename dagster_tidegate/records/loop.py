"""`Records`: the loop over the records of an op."""

import asyncio
import heapq
import logging
import time
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass
from signal import Signals
from typing import Any, Generic, NoReturn, TypeVar

from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.verdicts import may_have_arrived
from dagster_tidegate.holds import Hold, HoldSource, TargetKind
from dagster_tidegate.records import input
from dagster_tidegate.records.journal import Group, Journal
from dagster_tidegate.records.lease import Lease
from dagster_tidegate.records.record import Record
from dagster_tidegate.records.retry import backoff_s, retry_while_unreachable
from dagster_tidegate.records.signals import SignalGuard
from dagster_tidegate.records.workers import Finished, Handler, Workers
from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.ledger import AttemptOverError, Recorded
from dagster_tidegate.store.runs import AttemptRow, CampaignRun

T = TypeVar("T")

MAX_REFUSALS = 60
FEWEST_TO_JUDGE = 10
MAX_TOLD = 10  # repeated keys, and failed records, that are told one by one
MAX_ERROR = 2000
STOP_S = 4.0  # for the rest, where a signal stops records at once and their time is over
LOOK_EVERY_S = 0.2  # while it waits, the loop looks for holds and signals so often
MAX_KEY = 512


class MissingKeyError(ValueError):
    """A record has no key, or none that can be kept; the message names its row."""


class InputChangedError(ValueError):
    """An input that only grows at its end, as the author says, is another one than before."""


class TooManyFailedError(Exception):
    """More records failed than the author allows."""


class Stopping:
    """What `on_stop` raises is one of these: it ends the loops around, and no record of theirs."""


@dataclass(frozen=True)
class Stop:
    """Why and where a loop stopped between two records.

    Attributes:
        done: How many records are done.
        total: How many there are, where that is known.
        holds: It stopped for these holds,
        outdated: or because the store has moved on, and this version may not: why,
        signal: or for this signal,
        ended: or because its attempt was ended already, by another op or in Dagster, as this.
    """

    done: int
    total: int | None
    holds: Sequence[Hold] = ()
    signal: Signals | None = None
    outdated: str | None = None
    ended: RunStatus | None = None


class Records(Generic[T]):
    """Goes through the records of an op that are not done yet, and stops between records when held.

    Made by `BreakerResource.records`. Used as a `for` loop, as an `async for` loop, or with `map`.
    What the ledger has is skipped. A record whose block raises is written down as failed and the
    loop goes on, with two exceptions: refused by an open breaker it is not done, and the loop
    pauses; failed by the service (what the service's policy counts as a failure) it is tried
    again, until it succeeds, the breaker opens, or `max_tries` is reached.

    SIGTERM and SIGINT stop the loop too: after the records in flight, or after `drain_timeout_s`.

    Args:
        store: The store.
        fleet: The breakers and holds.
        run: The campaign run.
        attempt: The attempt that works on it.
        op: Name of the op.
        items: A list or another sequence, a DataFrame, or any iterable of items or DataFrames; for
            `async for` also an asynchronous one.
        key: The field of an item that is its key, or a function that returns it.
        services: Names of the services that the op calls.
        failed_since: Records that failed in an attempt before this one are tried again.
        holds: Returns the live holds that cover this op now.
        on_stop: Ends the Dagster run as paused or cancelled; never returns.
        max_tries: How often a record is tried that the service fails; at least 1.
        max_failed: Share of the handled records that may fail before the op fails, 0 to 1.
        group: Write the ends of records together; None: each for itself, as it happens.
        append_only: The author's word that the input only ever grows at its end, so that what is
            settled is not looked at again.
        drain_timeout_s: How long records in flight may go on when the loop stops, in seconds.
        log: Where progress is told.

    Raises:
        MissingKeyError: While iterating, if an item has no key.
        InputChangedError: While iterating, if an `append_only` input has other keys than before.
        TooManyFailedError: While iterating, if more than `max_failed` of the records failed.
        AttemptOverError: While iterating, if the campaign run has ended, or another attempt has
            taken over.

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
        store: Store,
        fleet: Fleet,
        run: CampaignRun,
        attempt: AttemptRow,
        op: str,
        items: Iterable[T] | AsyncIterable[T],
        key: str | Callable[[T], object],
        services: Sequence[str],
        failed_since: int,
        holds: Callable[[], Sequence[Hold]],
        on_stop: Callable[[Stop], NoReturn],
        max_tries: int = 10,
        max_failed: float = 0.5,
        group: Group | None = None,
        append_only: bool = False,
        drain_timeout_s: float = 25.0,
        log: logging.Logger,
    ) -> None:
        if max_tries < 1:
            raise ValueError(f"max_tries is {max_tries}; it must be at least 1")
        if not 0 <= max_failed <= 1:
            raise ValueError(f"max_failed is {max_failed}; it is a share, from 0 to 1")
        self.run, self.op = run, op
        self.total = input.total(items)
        self._store, self._fleet, self._attempt = store, fleet, attempt
        self._items = items
        self._key = key
        self._services = services
        self._failed_since = failed_since
        self._holds, self._on_stop = holds, on_stop
        self._max_tries, self._max_failed = max_tries, max_failed
        self._drain_timeout_s = drain_timeout_s
        self._log = log
        self._scope = f"{run.name}/{op}"
        self._journal = Journal(
            store, fleet, attempt, op, series=failed_since, group=group, total=self.total, log=log
        )
        self._append_only = append_only
        self._at_work = False
        self._told: SignalGuard | None = None
        self._used_up = False  # an iterator that has been gone through
        self._begin()

    def _begin(self) -> None:
        self._start = self._journal.found.position if self._append_only else 0
        self._upcoming: deque[Record[T]] = deque()  # read, and not begun
        self._flying: dict[str, Record[T]] = {}  # begun, and not known how it ends
        self._open: dict[str, Record[T]] = {}  # read, and not settled
        # Where each chunk begins that may have an open record, and the key before it.
        self._marks: deque[tuple[int, str | None]] = deque()
        self._end: tuple[int, str | None] = (0, None)  # the same, of what was not read yet
        self._repeated = 0
        self._failed_here = 0
        self._over: AttemptOverError | None = None
        self._left = False
        self._mapping = False
        self._wait_s = 0.0  # before the next try of a record

    @property
    def done(self) -> int:
        """How many records are done, those of earlier attempts included."""
        return self._journal.done

    @property
    def failed(self) -> int:
        """How many records failed."""
        return self._journal.failed

    def __iter__(self) -> Iterator[Record[T]]:
        with self._working() as interrupts:
            for chunk in self._chunks():
                self._take(chunk)
                yield from self._in_turn(interrupts)
            self._finish(interrupts)

    async def __aiter__(self) -> AsyncIterator[Record[T]]:
        with self._working() as interrupts:
            async for chunk in self._async_chunks():
                await asyncio.to_thread(self._take, chunk)
                work = self._in_turn(interrupts)
                try:
                    # What waits for the store or a service does not hold up the event loop.
                    while (record := await asyncio.to_thread(next, work, None)) is not None:
                        yield record
                finally:
                    work.close()
            await asyncio.to_thread(self._finish, interrupts)

    def map(self, handler: Handler, *, concurrency: int = 8) -> list[Any]:
        """Work on several records at once.

        Args:
            handler: Takes a `Record` and returns its result. A function is called in threads, an
                `async` function on an event loop in a thread of its own.
            concurrency: How many records at once; so many can be in doubt after a crash.

        Returns:
            What `results` returns.

        Raises:
            ValueError: If `concurrency` is less than 1.

        Example:
            ```python
            records = breakers.records(context, leads, key="email")
            return records.map(lambda record: verify(record.value), concurrency=32)
            ```
        """
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be at least 1")
        with self._working(STOP_S) as interrupts, Workers(handler, concurrency) as workers:
            self._mapping = True
            try:
                self._at_once(workers, concurrency, interrupts)
            except BaseException:
                self._drain(workers)
                raise
            self._finish(interrupts)
        return self.results()

    def results(self) -> list[Any]:
        """Return the results of all records that are done, in the order of the input.

        Those of earlier attempts are among them, so that a resumed op returns what an unbroken
        one would have returned. Records that failed have none.
        """
        return self._journal.results()

    # --- one after the other ---------------------------------------------------------------------

    def _in_turn(self, interrupts: SignalGuard) -> Generator[Record[T]]:
        while self._upcoming:
            yield from self._tries(self._upcoming.popleft(), interrupts)

    def _tries(self, record: Record[T], interrupts: SignalGuard) -> Iterator[Record[T]]:
        while record.key in self._open:
            self._stop_if_told(interrupts)
            self._journal.start([record])
            self._flying[record.key] = record
            before = record.tries
            try:
                yield record
            finally:
                if record.tries == before:
                    del self._flying[record.key]
            if record.tries == before:
                raise RuntimeError(
                    f"record {record.key} was not entered: use 'with record:' in the loop"
                )
            if self._wait_s:
                self._wait(self._wait_s, interrupts)
            if self._over is not None:
                raise self._over
        self._look_back()

    def _settle(self, record: Record[T], error: BaseException | None) -> bool:
        """Write down what became of a try. Called by the `with` block of a record."""
        if self._mapping:
            raise RuntimeError("map ends its records itself: no 'with record:' in its handler")
        if record.key not in self._flying:
            raise RuntimeError(f"record {record.key} has ended: enter it once each time it comes")
        if error is not None and self._ends_the_loop(record, error):
            self._journal.flush()
            if self._told is not None and self._told.cut_off and not isinstance(error, Exception):
                self._leave()
                self._on_stop(Stop(self.done, self.total, signal=self._told.received))
            return False
        self._wait_s = self._judge_try(record, error)
        if not self._wait_s:
            upcoming = self._upcoming[0] if self._upcoming and not self._holds() else None
            try:
                self._journal.end([] if upcoming is None else [upcoming])
            except AttemptOverError as over:
                self._over = over  # raised by the loop, which knows how the attempt ended
        return True

    # --- several at once -------------------------------------------------------------------------

    def _at_once(self, workers: Workers, concurrency: int, interrupts: SignalGuard) -> None:
        """Keep so many records in flight. This thread alone writes the ledger."""
        chunks = self._chunks()
        again: list[tuple[float, int, Record[T]]] = []  # a heap: when, and what
        while True:
            if interrupts.received or self._holds() or self._fleet.outdated:
                self._land(workers, again, self._drain_timeout_s)
                self._stop_if_told(interrupts)
            ready = []
            while again and again[0][0] <= time.monotonic():
                ready.append(heapq.heappop(again)[2])
            room = concurrency - len(self._flying) - len(again) - len(ready)
            # One chunk a turn: a slow input keeps nobody from what is there already.
            if room and not self._upcoming and (chunk := next(chunks, None)) is not None:
                self._take(chunk)
                more = True
            else:
                more = bool(self._upcoming)
            while room and self._upcoming:
                ready.append(self._upcoming.popleft())
                room -= 1
            self._journal.start(ready)
            for record in ready:
                record.tries += 1
                self._flying[record.key] = record
                workers.submit(record)
            if not self._flying and not again and not more:
                return
            self._collect(workers.finished(0.0 if room and more else LOOK_EVERY_S), again)
            self._look_back()

    def _collect(
        self, finished: Sequence[Finished], again: list[tuple[float, int, Record[T]]]
    ) -> None:
        """Write down what became of tries, all in one transaction."""
        fatal: BaseException | None = None
        for record, error in finished:
            try:
                if error is not None and self._ends_the_loop(record, error):
                    raise error
                wait_s = self._judge_try(record, error)
            except BaseException as raised:  # noqa: BLE001 -- raised below, after the others
                fatal = fatal or raised
                continue
            if wait_s:
                heapq.heappush(again, (time.monotonic() + wait_s, record.position, record))
        self._journal.end()
        if fatal is not None:
            raise fatal

    def _land(
        self, workers: Workers, again: list[tuple[float, int, Record[T]]], timeout_s: float
    ) -> None:
        """Let the records in flight come to their end, within bounds."""
        until = time.monotonic() + timeout_s
        while workers.busy and (left := until - time.monotonic()) > 0:
            self._collect(workers.finished(min(left, LOOK_EVERY_S)), again)

    def _drain(self, workers: Workers) -> None:
        """Land what is in flight when an error ends the loop; the error is what is told."""
        if self._left:
            return
        try:
            self._land(workers, [], self._drain_timeout_s)
        except Exception as error:  # noqa: BLE001 -- the first error is on its way already
            self._log.warning("Also: %r", error)

    # --- one record ------------------------------------------------------------------------------

    def _judge_try(self, record: Record[T], error: BaseException | None) -> float:
        """Note how a try of a record ended.

        Returns:
            After how many seconds it is tried again; 0: it is settled.
        """
        if error is not None and self._to_be_tried_again(record, error):
            self._flying.pop(record.key, None)
            return backoff_s(record.tries)
        if error is None:
            self._journal.settle(record, RecordStatus.DONE)
        else:
            text = _as_text(error)
            self._failed_here += 1
            if self._failed_here <= MAX_TOLD:
                self._log.warning("Record %s failed: %s", record.key, text)
            self._journal.settle(record, RecordStatus.FAILED, text)
        self._flying.pop(record.key, None)
        del self._open[record.key]
        return 0.0

    def _ends_the_loop(self, record: Record[T], error: BaseException) -> bool:
        if isinstance(error, BreakerOpenError):
            # The hold that an open breaker places stops the loop before the next try. Half open,
            # while others have the trial calls, it waits for what becomes of them.
            if record.tries < MAX_REFUSALS:
                return False
            self._flying.pop(record.key, None)
            return True
        # Nothing outside Exception says how the record ended: it stays in doubt.
        return not isinstance(error, Exception) or isinstance(error, AttemptOverError | Stopping)

    def _to_be_tried_again(self, record: Record[T], error: BaseException) -> bool:
        refused = isinstance(error, BreakerOpenError)
        cause = error.__cause__ if refused else error  # what a refusal came from
        if self._is_service_failure(cause):
            record.in_doubt = record.in_doubt or may_have_arrived(cause)
            return refused or record.tries < self._max_tries
        return refused

    def _is_service_failure(self, error: BaseException | None) -> bool:
        while error is not None:
            if any(self._fleet.breaker(name).is_system_error(error) for name in self._services):
                return True
            error = error.__cause__
        return False

    # --- the input -------------------------------------------------------------------------------

    def _chunks(self) -> Iterator[input.Chunk]:
        if isinstance(self._items, AsyncIterable):
            raise TypeError("the input is asynchronous: use 'async for record in records'")
        self._use_up(isinstance(self._items, Iterator))
        return input.chunks(self._items, self._first_row())

    async def _async_chunks(self) -> AsyncIterator[input.Chunk]:
        if isinstance(self._items, AsyncIterable):
            self._use_up(isinstance(self._items, AsyncIterator))
            async for chunk in input.async_chunks(self._items, self._first_row()):
                yield chunk
        else:
            for chunk in self._chunks():
                yield chunk

    def _use_up(self, at_once: bool) -> None:
        if self._used_up:
            raise RuntimeError("the input is an iterator and has been gone through already")
        self._used_up = at_once

    def _first_row(self) -> int:
        # One more than needed: its key shows whether it is still the same input.
        return max(0, self._start - 1)

    def _take(self, chunk: input.Chunk) -> None:
        """Find the records of a chunk that are to be done."""
        begin = end = self._end
        found: dict[str, tuple[int, Any]] = {}
        for row, item in chunk:
            key = self._key_of(row, item)
            end = (row + 1, key)
            if row < self._start:
                self._check_input(row, key)
                begin = end
            elif key in found or key in self._open:
                self._repeats(row, key)
            else:
                found[key] = (row, item)
        known = self._journal.look_up(found)
        for key, (row, item) in found.items():
            entry = known.get(key)
            if entry is None or self._is_to_be_done(entry):
                record = Record(
                    item,
                    key,
                    row,
                    scope=self._scope,
                    settle=self._settle,
                    in_doubt=_is_in_doubt(entry),
                )
                self._upcoming.append(record)
                self._open[key] = record
            elif entry.attempt == self._attempt.number and entry.position != row:
                self._repeats(row, key)
        # Only now: who stops before has settled nothing of this chunk.
        self._marks.append(begin)
        self._end = end

    def _is_to_be_done(self, entry: Recorded) -> bool:
        return entry.status is RecordStatus.STARTED or (
            entry.status is RecordStatus.FAILED and entry.attempt < self._failed_since
        )

    def _key_of(self, row: int, item: Any) -> str:
        found: Any = None
        if callable(self._key):
            try:
                found = self._key(item)
            except (LookupError, AttributeError) as error:
                raise MissingKeyError(
                    f"row {row} has no key: {error!r} of {item!r:.200}"
                ) from error
        elif isinstance(item, Mapping):
            found = item.get(self._key)
        else:
            found = getattr(item, self._key, None)
        if _is_no_key(found):
            raise MissingKeyError(f"row {row} has no key ({self._key!r}): {item!r:.200}")
        key = str(found)
        if len(key) > MAX_KEY or _as_kept(key) != key:
            raise MissingKeyError(
                f"row {row} has a key that can't be kept, of {len(key)} characters: {key!r:.80}. "
                f"It can have {MAX_KEY}, no NUL, and must be valid Unicode"
            )
        return key

    def _repeats(self, row: int, key: str) -> None:
        self._repeated += 1
        if self._repeated <= MAX_TOLD:
            self._log.warning("Row %d repeats the key %s; it is handled once", row, key)

    def _check_input(self, row: int, key: str) -> None:
        if key != (before := self._journal.found.position_key):
            raise InputChangedError(
                f"row {row} is {key!r} and was {before!r} in an earlier attempt, so the input did "
                "not only grow at its end: without append_only=True each row is looked up"
            )

    def _mark(self) -> tuple[int, str | None]:
        """Return up to which row all is settled, and the key of the row before it."""
        lowest = next(iter(self._open.values()), None)
        if lowest is None:
            self._marks.clear()
            return self._end
        while len(self._marks) > 1 and self._marks[1][0] <= lowest.position:
            self._marks.popleft()
        return self._marks[0]

    # --- begin, look back, stop ------------------------------------------------------------------

    @contextmanager
    def _working(self, extra_s: float = 0.0) -> Iterator[SignalGuard]:
        if self._at_work:
            raise RuntimeError("these records are being gone through already")
        grace_s = self._drain_timeout_s + extra_s
        with SignalGuard(grace_s, self._log) as told:
            try:
                with Lease(
                    self._store,
                    self._fleet,
                    self._attempt,
                    self.op,
                    self._log,
                    lambda: bool(told.received),
                ) as lease:
                    if lease.waited:
                        self._journal.begin()
                    self._begin()
                    self._lease, self._told = lease, told
                    with self._entered(told):
                        yield told
            except AttemptOverError:
                self._say_how_it_ended()
                raise  # nothing may be written any more

    @contextmanager
    def _entered(self, told: SignalGuard) -> Iterator[None]:
        self._at_work = True
        try:
            yield
        except AttemptOverError:
            raise
        except BaseException as error:
            told.left_early = isinstance(error, GeneratorExit)
            if not self._left:
                self._leave()
            raise
        finally:
            self._at_work = False

    def _say_how_it_ended(self) -> None:
        def read() -> AttemptRow | None:
            with self._store.read() as conn:
                return runs.latest_attempt(conn, self.run.id)

        newest = retry_while_unreachable(read, self._log)
        if newest is None or newest.number != self._attempt.number:
            return
        if newest.outcome in (RunStatus.PAUSED, RunStatus.CANCELLED):
            self._on_stop(Stop(self.done, self.total, ended=newest.outcome))

    def _look_back(self) -> None:
        if self._lease.lost:
            raise AttemptOverError(
                "another process of this Dagster run has taken the records over: this one gave no "
                "sign of life for too long"
            )
        self._judge(FEWEST_TO_JUDGE)
        self._journal.tell(self._mark)

    def _judge(self, fewest: int) -> None:
        handled = self.done + self.failed
        if handled >= fewest and self.failed > self._max_failed * handled:
            raise TooManyFailedError(
                f"{self.failed} of {handled} records failed; max_failed allows "
                f"{self._max_failed:.0%}. Their errors are in the ledger"
            )

    def _stop_if_told(self, interrupts: SignalGuard) -> None:
        held = () if interrupts.received else self._linger(interrupts)
        number = interrupts.received  # it may have come meanwhile
        outdated = self._fleet.outdated
        if number is None and not held and outdated is None:
            return
        interrupts.handled = number is not None
        self._leave()
        self._on_stop(Stop(self.done, self.total, held, number, outdated))

    def _linger(self, interrupts: SignalGuard) -> Sequence[Hold]:
        """Wait in place for breakers that may close soon; a person's hold is not waited out."""
        while (held := self._holds()) and all(
            hold.source is HoldSource.BREAKER and hold.target.kind is TargetKind.SERVICE
            for hold in held
        ):
            now = self._fleet.now()
            left_s = min(
                self._fleet.policies[hold.target.name].linger_s
                - (now - hold.placed_at).total_seconds()
                for hold in held
            )
            if left_s <= 0 or interrupts.received:
                break
            self._wait(left_s, interrupts)
        return held

    def _wait(self, seconds: float, interrupts: SignalGuard) -> None:
        """Wait until something changes, or a signal comes, or the time is over."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not interrupts.received:
            if self._fleet.wait_for_change(min(left, LOOK_EVERY_S)):
                return

    def _leave(self) -> None:
        """Write all there is; in doubt stays what is in flight."""
        self._left = True
        if self._flying:
            self._log.warning("In doubt, and sent again next time: %s", ", ".join(self._flying))
        self._journal.stop(*self._mark(), unfinished=self._flying)

    def _finish(self, interrupts: SignalGuard) -> None:
        if interrupts.received:  # at the last record, or while it was looked for another
            self._stop_if_told(interrupts)
        if self._end[0] < self._start:
            raise InputChangedError(
                f"the input has {self._end[0]} rows and had at least {self._start} in an earlier "
                "attempt: without append_only=True each row is looked up"
            )
        if self._failed_here > MAX_TOLD:
            self._log.warning("%d records failed; see 'tidegate runs show'", self._failed_here)
        if self._repeated > MAX_TOLD:
            self._log.warning("%d rows repeat a key; each is handled once", self._repeated)
        self._judge(1)
        self._leave()


def _is_in_doubt(entry: Recorded | None) -> bool:
    return entry is not None and entry.status is RecordStatus.STARTED


def _is_no_key(found: Any) -> bool:
    kind = type(found)
    if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
        return True  # as text it is its place in memory, another one in the next attempt
    try:
        return found is None or bool(found == "") or bool(found != found)  # the last: NaN
    except (TypeError, ValueError):  # pandas' NA, an array
        return True


def _as_text(error: BaseException) -> str:
    try:
        text = repr(error)
    except Exception:  # noqa: BLE001 -- the author's own __repr__ may do anything
        text = type(error).__name__
    return _as_kept(text[:MAX_ERROR])


def _as_kept(text: str) -> str:
    """Text as every database can keep it."""
    return text.replace("\0", "\\0").encode(errors="backslashreplace").decode()
