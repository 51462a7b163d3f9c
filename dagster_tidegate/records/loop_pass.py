"""One pass over the records of a loop."""

import heapq
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dagster_tidegate.breaker.answers import may_have_arrived
from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.holds import Hold, HoldSource, TargetKind
from dagster_tidegate.records.chunks import Chunk
from dagster_tidegate.records.host import LoopHost, StopLoop, StopReason
from dagster_tidegate.records.journal import Journal
from dagster_tidegate.records.lease import Lease
from dagster_tidegate.records.record import Record
from dagster_tidegate.records.retry import backoff_s
from dagster_tidegate.records.signals import SignalGuard
from dagster_tidegate.records.workers import Finished, Workers
from dagster_tidegate.records.worklist import LoopOptions, Worklist, storable
from dagster_tidegate.statuses import RecordStatus
from dagster_tidegate.store.ledger import AttemptOverError

T = TypeVar("T")

MAX_REFUSALS = 60
MIN_FINISHED = 10  # before the share of failed records counts
MAX_LOGGED = 10  # failed records that are logged one by one
MAX_ERROR = 2000
POLL_INTERVAL_S = 0.2  # for holds and signals, while waiting


class TooManyFailedError(Exception):
    """More records failed than `max_failed` allows."""


@dataclass(eq=False)
class LoopPass(Generic[T]):
    """Starts records, decides what follows from each try, and stops when it must.

    Used by one thread, the only one that writes the ledger. `one_by_one` serves `for` and
    `async for`, where the `with` block of a record calls `finish`; `at_once` serves `map`.
    """

    host: LoopHost
    journal: Journal
    options: LoopOptions
    signals: SignalGuard
    lease: Lease

    def __post_init__(self) -> None:
        self.worklist = Worklist[T](self.host, self.journal, self.options, self.finish)
        self._in_flight: dict[str, Record[T]] = {}
        self._retries: list[tuple[float, int, Record[T]]] = []  # of map: a heap by time
        self._retry_in_s = 0.0  # of a loop
        self._over: AttemptOverError | None = None
        self._failures = 0
        self._is_map = False
        self._left = False

    # --- for, async for --------------------------------------------------------------------------

    def one_by_one(self) -> Generator[Record[T]]:
        """Yield each upcoming record, as often as it has to be tried."""
        while self.worklist.upcoming:
            record = self.worklist.upcoming.popleft()
            while record.key in self.worklist.unfinished:
                yield from self._try_once(record)
            self._checkpoint()

    def _try_once(self, record: Record[T]) -> Iterator[Record[T]]:
        self._stop_if_needed()
        self.journal.start([record])
        self._in_flight[record.key] = record
        tries = record.tries
        try:
            yield record
        finally:
            if record.tries == tries:
                del self._in_flight[record.key]
        if record.tries == tries:
            raise RuntimeError(
                f"record {record.key} was not entered: use 'with record:' in the loop"
            )
        if self._retry_in_s:
            self._wait(self._retry_in_s)
        if self._over is not None:
            raise self._over

    def finish(self, record: Record[T], error: BaseException | None) -> bool:
        """Write the end of a try; called by the `with` block of a record.

        Returns:
            Whether the loop continues; False lets the error through.
        """
        if self._is_map:
            raise RuntimeError("map finishes its records: remove 'with record:' from its handler")
        if record.key not in self._in_flight:
            raise RuntimeError(f"record {record.key} is finished: enter it once per iteration")
        if error is not None and self._ends_loop(record, error):
            self.journal.flush()
            if self.signals.cut_off and not isinstance(error, Exception):
                self._stop(StopReason(*self._counts, signal=self.signals.received))
            return False
        self._retry_in_s = self._finish_try(record, error)
        if not self._retry_in_s:
            upcoming = self.worklist.upcoming
            starts = [upcoming[0]] if upcoming and not self.host.holds() else []
            try:
                self.journal.commit(starts)
            except AttemptOverError as over:
                self._over = over  # raised by the loop, which knows how the attempt ended
        return True

    # --- map -------------------------------------------------------------------------------------

    def at_once(self, chunks: Iterator[Chunk], workers: Workers, concurrency: int) -> None:
        """Keep up to `concurrency` records in flight until all are finished."""
        self._is_map = True
        try:
            self._work(chunks, workers, concurrency)
        except BaseException:
            if not self._left:
                try:
                    self._drain(workers)
                except Exception as error:  # noqa: BLE001 -- the first error is the one to raise
                    self.host.log.warning("Another error while stopping: %r", error)
            raise

    def _work(self, chunks: Iterator[Chunk], workers: Workers, concurrency: int) -> None:
        upcoming = self.worklist.upcoming
        while True:
            if self.signals.received or self.host.holds() or self.host.fleet.outdated:
                self._drain(workers)
                self._stop_if_needed()
            ready: list[Record[T]] = []
            while self._retries and self._retries[0][0] <= time.monotonic():
                ready.append(heapq.heappop(self._retries)[2])
            free = concurrency - len(self._in_flight) - len(self._retries) - len(ready)
            exhausted = False
            # One chunk at a time: a slow input does not delay the records already read.
            if free and not upcoming:
                if (chunk := next(chunks, None)) is not None:
                    self.worklist.add(chunk)
                exhausted = chunk is None
            while free and upcoming:
                ready.append(upcoming.popleft())
                free -= 1
            self.journal.start(ready)
            for record in ready:
                record.tries += 1
                self._in_flight[record.key] = record
                workers.submit(record)
            if exhausted and not self._in_flight and not self._retries:
                return
            self._collect(workers.finished(0.0 if free and not exhausted else POLL_INTERVAL_S))
            self._checkpoint()

    def _collect(self, finished: Sequence[Finished]) -> None:
        """Write the ends of tries in one transaction."""
        fatal: BaseException | None = None
        for record, error in finished:
            try:
                if error is not None and self._ends_loop(record, error):
                    raise error
                retry_in_s = self._finish_try(record, error)
            except BaseException as raised:  # noqa: BLE001 -- raised below, after the others
                fatal = fatal or raised
                continue
            if retry_in_s:
                retry_at = time.monotonic() + retry_in_s
                heapq.heappush(self._retries, (retry_at, record.position, record))
        self.journal.commit()
        if fatal is not None:
            raise fatal

    def _drain(self, workers: Workers) -> None:
        """Let the records in flight finish, for up to `drain_timeout_s`."""
        deadline = time.monotonic() + self.host.drain_timeout_s
        while workers.busy and (left := deadline - time.monotonic()) > 0:
            self._collect(workers.finished(min(left, POLL_INTERVAL_S)))

    # --- one try ---------------------------------------------------------------------------------

    def _finish_try(self, record: Record[T], error: BaseException | None) -> float:
        """Note how a try ended, and return the seconds until the next one; 0: it is finished."""
        if error is not None and self._is_retried(record, error):
            self._in_flight.pop(record.key, None)
            return backoff_s(record.tries)
        if error is None:
            self.journal.finish(record, RecordStatus.DONE)
        else:
            text = _text_of(error)
            self._failures += 1
            if self._failures <= MAX_LOGGED:
                self.host.log.warning("Record %s failed: %s", record.key, text)
            self.journal.finish(record, RecordStatus.FAILED, text)
        self._in_flight.pop(record.key, None)
        del self.worklist.unfinished[record.key]
        return 0.0

    def _ends_loop(self, record: Record[T], error: BaseException) -> bool:
        if isinstance(error, BreakerOpenError):
            # The hold of an open breaker stops the loop before the next try. While it is half
            # open and other processes have the trial calls, the record waits for their result.
            if record.tries < MAX_REFUSALS:
                return False
            self._in_flight.pop(record.key, None)
            return True
        # After anything but an Exception nobody knows how the record ended: it is in doubt.
        return not isinstance(error, Exception) or isinstance(error, AttemptOverError | StopLoop)

    def _is_retried(self, record: Record[T], error: BaseException) -> bool:
        refused = isinstance(error, BreakerOpenError)
        cause = error.__cause__ if refused else error
        if self._is_service_failure(cause):
            record.in_doubt = record.in_doubt or may_have_arrived(cause)
            return refused or record.tries < self.options.max_tries
        return refused

    def _is_service_failure(self, error: BaseException | None) -> bool:
        breakers = [self.host.fleet.breaker(name) for name in self.host.services]
        while error is not None:
            if any(breaker.is_system_error(error) for breaker in breakers):
                return True
            error = error.__cause__
        return False

    # --- stop ------------------------------------------------------------------------------------

    @property
    def _counts(self) -> tuple[int, int | None]:
        return self.journal.done, self.journal.resumed.total

    def _checkpoint(self) -> None:
        if self.lease.lost:
            raise AttemptOverError(
                "another process of this Dagster run took over the records: this one did not "
                "renew its lease in time"
            )
        self._check_failed_share(MIN_FINISHED)
        self.journal.report(self.worklist.mark)

    def _check_failed_share(self, min_finished: int) -> None:
        failed = self.journal.failed
        finished = self.journal.done + failed
        if finished >= min_finished and failed > self.options.max_failed * finished:
            raise TooManyFailedError(
                f"{failed} of {finished} records failed; max_failed allows "
                f"{self.options.max_failed:.0%}. Their errors are in the ledger"
            )

    def _stop_if_needed(self) -> None:
        holds = () if self.signals.received else self._linger()
        received = self.signals.received  # perhaps while it lingered
        outdated = self.host.fleet.outdated
        if received is None and not holds and outdated is None:
            return
        self.signals.handled = received is not None
        self._stop(StopReason(*self._counts, holds, outdated, received))

    def _stop(self, reason: StopReason) -> None:
        self.leave()
        self.host.stop(reason)

    def _linger(self) -> Sequence[Hold]:
        """Wait for breakers that may close soon; an operator's hold is not waited for."""
        fleet = self.host.fleet
        while (holds := self.host.holds()) and all(
            hold.source is HoldSource.BREAKER and hold.target.kind is TargetKind.SERVICE
            for hold in holds
        ):
            now = fleet.now()
            left_s = min(
                fleet.policies[hold.target.name].linger_s - (now - hold.placed_at).total_seconds()
                for hold in holds
            )
            if left_s <= 0 or self.signals.received:
                break
            self._wait(left_s)
        return holds

    def _wait(self, seconds: float) -> None:
        """Wait until a breaker or hold changes, a signal arrives, or the time is over."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self.signals.received:
            if self.host.fleet.wait_for_change(min(left, POLL_INTERVAL_S)):
                return

    def leave(self) -> None:
        """Write everything, once. Records in flight stay in doubt."""
        if self._left:
            return
        self._left = True
        if self._in_flight:
            keys = ", ".join(self._in_flight)
            self.host.log.warning("In doubt; retried by the next attempt: %s", keys)
        self.journal.close(*self.worklist.mark(), in_flight=self._in_flight)

    def complete(self) -> None:
        """Check and write everything once the input is read to its end."""
        if self.signals.received:  # during the last record, or while reading the next chunk
            self._stop_if_needed()
        self.worklist.close()
        if self._failures > MAX_LOGGED:
            self.host.log.warning("%d records failed; see 'tidegate runs show'", self._failures)
        self._check_failed_share(1)
        self.leave()


def _text_of(error: BaseException) -> str:
    try:
        text = repr(error)
    except Exception:  # noqa: BLE001 -- the author's own __repr__ may do anything
        text = type(error).__name__
    return storable(text[:MAX_ERROR])
