"""One pass over the records of a loop."""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.policy import MIN_WAIT_S, ServicePolicy, wait_in_place_s
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.holds import Hold, HoldSource, TargetKind
from dagster_tidegate.records.chunks import Chunk
from dagster_tidegate.records.host import LoopHost, StopLoop, StopReason
from dagster_tidegate.records.journal import Journal
from dagster_tidegate.records.judgement import judge
from dagster_tidegate.records.lease import Lease
from dagster_tidegate.records.pace import Pace
from dagster_tidegate.records.record import Record
from dagster_tidegate.records.signals import SignalGuard
from dagster_tidegate.records.tries import Tries
from dagster_tidegate.records.workers import Finished, Workers
from dagster_tidegate.records.worklist import LoopOptions, Worklist
from dagster_tidegate.store.ledger import AttemptOverError
from dagster_tidegate.text import most_frequent

T = TypeVar("T")

MIN_FINISHED = 10  # before the share of failed records counts
HOPELESS = 0.5  # a loop that allows no failure does all records, unless more than this share fails
POLL_INTERVAL_S = 0.2  # for holds and signals, while waiting
MAX_WAIT_S = 60.0  # for a record that the service has no answer for yet


class TooManyFailedError(Exception):
    """More records failed than `max_failed` allows."""


class UntriedRecordsError(Exception):
    """The marked records are done, and the input has others that no attempt has tried yet."""


class PendingRecordsError(Exception):
    """The service has no answer yet for the records that are left, and none soon."""


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
        self._schedule = self.worklist.schedule
        self._tries = Tries[T](self.host, self.journal, self.options, self.worklist)
        self._in_flight: dict[str, Record[T]] = {}
        self._next: Record[T] | None = None  # of a loop: written as started already
        self._over: AttemptOverError | None = None
        self._is_map = False
        self._pace = Pace(1)
        self._began: dict[str, float] = {}  # of map's records in flight
        self._left = False

    # --- for, async for --------------------------------------------------------------------------

    def one_by_one(self, *, is_last: bool = False) -> Generator[Record[T]]:
        """Yield each record to try, until the next part of the input is to be read.

        Args:
            is_last: Whether the input is read to its end: yield all that are left.
        """
        schedule = self._schedule
        schedule.is_open = not is_last
        while self._next is not None or (len(schedule) and not schedule.wants_input):
            if self._may_have_to_stop:
                self._stop_if_needed()
            record, self._next = self._next or schedule.next(time.monotonic()), None
            if record is not None:
                yield from self._try_once(record)
            elif not schedule.wants_input and self._wait(self._seconds_to_next()):
                schedule.end_pause()
            self._checkpoint()

    def _try_once(self, record: Record[T]) -> Iterator[Record[T]]:
        self._tries.begin(record)
        self.journal.start([record])
        self._in_flight[record.key] = record
        try:
            yield record
        finally:
            if not record.is_entered:
                del self._in_flight[record.key]
        if not record.is_entered:
            raise RuntimeError(
                f"record {record.key} was not entered: use 'with record:' in the loop"
            )
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
        error = self._tries.as_refusal(error)
        if error is not None and self._ends_loop(record, error):
            self.journal.flush()
            if self.signals.cut_off and not isinstance(error, Exception):
                self._stop(StopReason(*self._counts, signal=self.signals.received))
            return False
        self._end_try(record, error)
        if self.journal.writes_starts and not self.host.holds():
            self._next = self._schedule.next(time.monotonic())
        try:
            self.journal.commit(() if self._next is None else (self._next,))
        except AttemptOverError as over:
            self._over = over  # raised by the loop, which knows how the attempt ended
        return True

    # --- map -------------------------------------------------------------------------------------

    def at_once(self, chunks: Iterator[Chunk], workers: Workers, concurrency: int) -> None:
        """Keep up to `concurrency` records in flight until all are finished."""
        self._is_map = True
        self._pace = Pace(concurrency)
        try:
            self._work(chunks, workers)
        except BaseException:
            if not self._left:
                try:
                    self._drain(workers)
                except Exception as error:  # noqa: BLE001 -- the first error is the one to raise
                    self.host.log.warning("Another error while stopping: %r", error)
            raise

    def _work(self, chunks: Iterator[Chunk], workers: Workers) -> None:
        schedule = self._schedule
        while True:
            if self._may_have_to_stop:
                self._drain(workers)
                self._stop_if_needed()
            free = max(0, self._pace.limit - len(self._in_flight))
            # One chunk at a time: a slow input does not delay the records already read.
            if free and schedule.wants_input:
                if (chunk := next(chunks, None)) is not None:
                    self.worklist.add(chunk)
                schedule.is_open = chunk is not None
            started = self._start(workers, free)
            if not (self._in_flight or schedule.is_open or len(schedule)):
                return
            wait_s = POLL_INTERVAL_S
            if started < free:
                wait_s = 0.0 if schedule.wants_input else min(wait_s, self._seconds_to_next())
            self._collect(workers.finished(wait_s))
            self._checkpoint()

    def _start(self, workers: Workers, free: int) -> int:
        """Start up to `free` records that can be tried now, and return how many."""
        ready: list[Record[T]] = []
        while len(ready) < free and (record := self._schedule.next(time.monotonic())) is not None:
            self._tries.begin(record)
            ready.append(record)
        self.journal.start(ready)
        began = time.monotonic()
        for record in ready:
            self._began[record.key] = began
            record.tries += 1
            self._in_flight[record.key] = record
            workers.submit(record)
        return len(ready)

    def _collect(self, finished: Sequence[Finished]) -> None:
        """Write the ends of tries in one transaction."""
        fatal: BaseException | None = None
        now = time.monotonic()
        for record, error in finished:
            self._adapt(self._began.pop(record.key, now), now, error)
            try:
                error = self._tries.as_refusal(error)
                if error is not None and self._ends_loop(record, error):
                    raise error
                self._end_try(record, error)
            except BaseException as raised:  # noqa: BLE001 -- raised below, after the others
                fatal = fatal or raised
        self.journal.commit()
        if fatal is not None:
            raise fatal

    def _adapt(self, began: float, now: float, error: BaseException | None) -> None:
        """Let more or fewer records be in flight from now on."""
        if isinstance(error, BreakerOpenError):
            error = error.__cause__
            if error is None:
                return  # refused without a call, which says nothing
        kind = None if error is None else judge(error, self.host.fleet, self.host.services).kind
        self._pace.ended(
            began=began,
            now=now,
            failed=kind is VerdictKind.FAILURE,
            throttled=kind is VerdictKind.THROTTLED,
        )

    def _drain(self, workers: Workers) -> None:
        """Let the records in flight finish, for up to `drain_timeout_s`."""
        deadline = time.monotonic() + self.host.drain_timeout_s
        while workers.busy and (left := deadline - time.monotonic()) > 0:
            self._collect(workers.finished(min(left, POLL_INTERVAL_S)))

    # --- one try ---------------------------------------------------------------------------------

    def _end_try(self, record: Record[T], error: BaseException | None) -> None:
        self._tries.end(record, error)
        self._in_flight.pop(record.key, None)

    def _ends_loop(self, record: Record[T], error: BaseException) -> bool:
        if isinstance(error, BreakerOpenError):
            self.host.refused(error.service)
            # The hold of an open breaker stops the loop before the next try. While it is half
            # open and other processes have the trial calls, the record waits for their result.
            if not self._tries.was_refused_too_often(record):
                return False
            self._in_flight.pop(record.key, None)
            return True
        # After anything but an Exception nobody knows how the record ended: it is in doubt.
        return not isinstance(error, Exception) or isinstance(error, AttemptOverError | StopLoop)

    def _seconds_to_next(self) -> float:
        """How long no record can be tried.

        Raises:
            PendingRecordsError: If that is too long to wait for.
        """
        wait_s = max(0.0, self._schedule.next_at() - time.monotonic())
        if wait_s > MAX_WAIT_S and len(self._schedule) and not self._in_flight:
            at = self.host.fleet.now() + timedelta(seconds=wait_s)
            count = len(self._schedule)
            are = "1 record is pending" if count == 1 else f"{count} records are pending, the first"
            raise PendingRecordsError(
                f"{are} until {at:%Y-%m-%d %H:%M:%S} UTC: then re-execute the run from failure"
            )
        return wait_s

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
        if not self.host.only_marked:  # most may have failed before, until these are done
            self._check_failed_share(MIN_FINISHED, self.options.max_failed or HOPELESS)
        self.journal.report(self.worklist.mark)

    def _check_failed_share(self, min_finished: int, max_failed: float) -> None:
        failed = self.journal.failed
        finished = self.journal.done + failed
        if finished >= min_finished and failed > max_failed * finished:
            said = most_frequent(self._tries.errors)
            run = self.host.run.name
            raise TooManyFailedError(
                f"{failed} of {finished} records failed; max_failed allows "
                f"{self.options.max_failed:.0%}{f': {said}' if said else ''}. "
                f"'tidegate records list {run} --failed' lists them, and 'tidegate records retry "
                f"{run}' retries them"
            )

    @property
    def _may_have_to_stop(self) -> bool:
        return bool(self.signals.received or self.host.holds() or self.host.fleet.outdated)

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
        self.host.stop(replace(reason, op=self.journal.op))

    def _linger(self) -> Sequence[Hold]:
        """Wait for breakers that may close soon; an operator's hold is not waited for.

        Returns:
            The holds to stop for. None if a service that was throttled may be tried again.
        """
        fleet, started = self.host.fleet, time.monotonic()
        while (holds := self.host.holds()) and all(
            hold.source is HoldSource.BREAKER and hold.target.kind is TargetKind.SERVICE
            for hold in holds
        ):
            now, breakers = fleet.now(), fleet.snapshot().services
            lefts = [
                left_to_wait_s(hold, breakers[name], fleet.policies[name], now)
                for hold in holds
                for name in (hold.target.name,)
            ]
            waits = [left_s for left_s in lefts if left_s is not None]
            if not waits:
                return ()
            longest_s = max(fleet.policies[hold.target.name].linger_s for hold in holds)
            is_over = time.monotonic() - started > longest_s + MIN_WAIT_S  # a clock may stand still
            if min(waits) <= 0 or is_over or self.signals.received:
                break
            self._wait(min(waits))
        return holds

    def _wait(self, seconds: float) -> bool:
        """Wait until a breaker or hold changes, a signal arrives, or the time is over.

        Returns:
            Whether one changed.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self.signals.received:
            if self.host.fleet.wait_for_change(min(left, POLL_INTERVAL_S)):
                return True
        return False

    def leave(self) -> None:
        """Write everything, once. Records in flight stay in doubt."""
        if self._left:
            return
        self._left = True
        if self._in_flight:
            keys = ", ".join(self._in_flight)
            self.host.log.warning("In doubt; retried by the next attempt: %s", keys)
        self.journal.close(*self.worklist.mark(), in_flight=self._in_flight)
        self.host.report_failed(self.journal.failed)

    def complete(self) -> None:
        """Check and write everything once the input is read to its end."""
        if self.signals.received:  # during the last record, or while reading the next chunk
            self._stop_if_needed()
        self.worklist.close()
        self._check_failed_share(1, self.options.max_failed)
        if self.worklist.untried and not self.journal.was_completed():
            raise UntriedRecordsError(
                f"the marked records are finished, but {self.worklist.untried} records of the "
                f"input were never tried: 'tidegate start {self.host.run.name}' processes them"
            )
        if failed := self.journal.failed:
            said = most_frequent(self._tries.errors)
            self.host.log.warning(
                "%s completed, %d of %d records failed%s. For all of them: tidegate records %s "
                "--failed",
                self.options.op,
                failed,
                failed + self.journal.done,
                said and f": {said}",
                self.host.run.name,
            )
        self.leave()


def left_to_wait_s(
    hold: Hold, breaker: BreakerStatus, policy: ServicePolicy, now: datetime
) -> float | None:
    """Return how many seconds more to wait for a breaker; at most 0: pause the run. Pure.

    Not to wait for a throttle of a few seconds, but to pause, would take longer.

    Args:
        hold: That of the breaker.

    Returns:
        None if the next call may try the service, whose time has come.
    """
    patience = timedelta(seconds=wait_in_place_s(policy))
    left_s = (hold.placed_at + timedelta(seconds=policy.linger_s) - now).total_seconds()
    if breaker.cause is not VerdictKind.THROTTLED:
        return left_s
    until = breaker.throttled_until or hold.placed_at
    if until > hold.placed_at + patience or now > until + patience:
        return left_s
    if breaker.throttled_until is None:  # another run tries it
        return (until + patience - now).total_seconds()
    return None if now >= until else (until - now).total_seconds()
