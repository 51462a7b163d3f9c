"""What follows from each try of a record."""

import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import Generic, TypeVar

from dagster_tidegate.breaker.answers import may_have_arrived
from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.evidence import NO_EVIDENCE
from dagster_tidegate.breaker.excerpts import said_with
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind
from dagster_tidegate.pools import whole_of
from dagster_tidegate.records.host import LoopHost
from dagster_tidegate.records.journal import Journal
from dagster_tidegate.records.judgement import judge
from dagster_tidegate.records.record import Record, Setback
from dagster_tidegate.records.retry import backoff_s, retry_while_unreachable
from dagster_tidegate.records.worklist import LoopOptions, Worklist, storable
from dagster_tidegate.statuses import BreakerState, RecordStatus
from dagster_tidegate.store import service_stats
from dagster_tidegate.text import alike

T = TypeVar("T")

MAX_REFUSALS = 60
MAX_PENDINGS = 100
PATIENT_PENDINGS = 10  # so often it waits as short as the service asks for
PENDING_BACKOFF_S = 1.0
MAX_PENDING_BACKOFF_S = 60.0
MAX_ASKED_WAIT_S = 60.0  # as the service asks, where its breaker does not open
MAX_LOGGED = 10  # failed records that are logged one by one
MAX_ERROR = 2000
MAX_ERRORS = 1000  # different ones that are counted
PATIENCE = 10  # so many times `max_tries`, while it is the service that fails
TRIED_AGAIN = frozenset({VerdictKind.FAILURE, VerdictKind.THROTTLED})


class Tries(Generic[T]):
    """Says what a try may count as, and writes and schedules what follows from it.

    Attributes:
        failures: How many records failed in this pass.
        errors: How often each error was met among them, without what differs between records.
    """

    def __init__(
        self, host: LoopHost, journal: Journal, options: LoopOptions, worklist: Worklist[T]
    ) -> None:
        self._host, self._journal, self._options = host, journal, options
        self._worklist, self._schedule = worklist, worklist.schedule
        self._done_before = journal.done
        self._recovered_at = _recovered_at(host)
        self._answered_at = _answered_at(host, self._recovered_at)
        self.failures = 0
        self.errors: Counter[str] = Counter()

    def begin(self, record: Record[T]) -> None:
        """Set what a failure of the next try counts as."""
        record.is_entered = False
        successes = record.successes = self._journal.done - self._done_before
        if self._is_own_fault(record.setback, successes):
            record.evidence = NO_EVIDENCE
        elif self._are_too_few and each_failure_counts(
            successes=successes,
            others_fail_too=self._others_fail_too,
            never_arrived=record.setback is not None and record.setback.never_arrived,
            failing=self._failing,
        ):
            record.evidence = None
        else:
            record.evidence = record.path

    def end(self, record: Record[T], error: BaseException | None) -> None:
        """Write how a try ended, and schedule the next one if there is one."""
        if error is None:
            self._journal.finish(record, RecordStatus.DONE)
            self._forget(record, succeeded=True)
            return
        refused = isinstance(error, BreakerOpenError)
        cause = error.__cause__ if refused else error
        verdict = judge(cause, self._host.fleet, self._host.services)
        if refused and verdict.kind is not VerdictKind.FAILURE:
            self._put_back(record)
        elif verdict.kind is VerdictKind.DENIED:  # and the breaker passes: no waiting heals it
            self._fail(record, text_of(error))
        elif verdict.kind in TRIED_AGAIN:
            self._try_again(record, error, cause, verdict, refused=refused)
        elif verdict.kind is VerdictKind.PENDING:
            self._wait_for(record, error, verdict)
        elif verdict.kind is VerdictKind.REJECTED and verdict.answer:
            self._fail(record, storable(f"{verdict.reason}: {verdict.answer}"[:MAX_ERROR]))
        else:
            self._fail(record, text_of(error))

    def as_refusal(self, error: BaseException | None) -> BaseException | None:
        """Return the error of a block as if a breaker had guarded what raised it.

        A client may say `Throttled` or `Denied` outside of the call that the breaker guards. If
        the op has one service, it is meant: its breaker opens, and the record is not done.
        """
        if not isinstance(error, Exception) or isinstance(error, BreakerOpenError):
            return error
        services = self._host.services
        verdict = judge(error, self._host.fleet, services)
        if verdict.kind not in (VerdictKind.THROTTLED, VerdictKind.DENIED):
            return error
        wholes = {whole_of(name) for name in services if "/" in name}
        meant = [name for name in services if name not in wholes]
        if len(meant) != 1:
            return error
        return self._host.fleet.breaker(meant[0]).refusal_after(error) or error

    def was_refused_too_often(self, record: Record[T]) -> bool:
        """Return whether one more refusal of a record ends the loop."""
        return record.setback is not None and record.setback.refusals >= MAX_REFUSALS - 1

    def _is_own_fault(self, setback: Setback | None, successes: int) -> bool:
        """Whether others have succeeded since a record failed; remembered once they have."""
        if setback is None or setback.successes is None:
            return False
        # It failed in an earlier attempt, and the service has recovered since.
        at = setback.retry_at
        well_at = self._answered_at if setback.never_arrived else self._recovered_at
        recovered = at is not None and well_at is not None and at < well_at
        if successes > setback.successes or recovered:
            setback.own_fault = True
        return setback.own_fault

    @property
    def _others_fail_too(self) -> bool:
        """Whether other processes have failures too, and nobody a success since."""
        fleet = self._host.fleet
        return any(fleet.breaker(name).engine.others_fail_too for name in self._host.services)

    @property
    def _are_too_few(self) -> bool:
        """Whether fewer records are left than must fail before a breaker trips."""
        if self._schedule.is_open:
            return False
        policies = [self._host.fleet.policies[name] for name in self._host.services]
        min_records = max((policy.min_records for policy in policies), default=0)
        return len(list(islice(self._suspicious, min_records))) < min_records

    @property
    def _failing(self) -> int:
        """How many of these have failed."""
        setbacks = (record.setback for record in self._suspicious)
        return sum(setback is not None and setback.successes is not None for setback in setbacks)

    @property
    def _suspicious(self) -> Iterator[Record[T]]:
        """The records that are left, without those that fail while others succeed."""
        successes = self._journal.done - self._done_before
        for record in self._worklist.unfinished.values():
            if not self._is_own_fault(record.setback, successes):
                yield record

    def _put_back(self, record: Record[T]) -> None:
        """Try a record again whose call was refused, once the breaker may admit it."""
        record.tries -= 1
        setback = record.setback = record.setback or Setback()
        setback.refusals += 1
        now = time.monotonic()
        if setback.successes is None:
            self._schedule.put_back(record)
        else:
            self._schedule.set_aside(record, now)
        self._schedule.pause(now + backoff_s(setback.refusals))

    def _try_again(
        self,
        record: Record[T],
        error: BaseException,
        cause: BaseException | None,
        verdict: Verdict,
        *,
        refused: bool,
    ) -> None:
        """Set a record aside for which the service failed, or fail it if it is used up."""
        arrived = may_have_arrived(cause)
        record.in_doubt = record.in_doubt or arrived
        text, others = text_of(cause or error), self._journal.done
        own_fault = self._is_own_fault(record.setback, others - self._done_before)
        is_of_service = refused and not (own_fault and others)
        if is_used_up(record.tries, self._options.max_tries, is_of_service=is_of_service):
            text = suspicion(verdict.reason, others, text) if others else text
            self._fail(record, text, suspect=others > 0)
            return
        setback = record.setback = record.setback or Setback()
        if setback.successes is None:
            setback.successes = record.successes
        setback.never_arrived = not arrived
        backoff = backoff_s(record.tries)
        if verdict.until is not None and not refused:
            asked_s = (verdict.until - self._host.fleet.now()).total_seconds()
            backoff = max(backoff, min(asked_s, MAX_ASKED_WAIT_S))
        self._set_aside(record, text, backoff, failed=True)
        self._schedule.note(succeeded=False)

    def _wait_for(self, record: Record[T], error: BaseException, verdict: Verdict) -> None:
        """Set a record aside that the service has no answer for yet."""
        record.tries -= 1
        setback = record.setback = record.setback or Setback()
        setback.pendings += 1
        if setback.pendings >= MAX_PENDINGS:
            self._fail(record, f"still pending after {MAX_PENDINGS} answers: {text_of(error)}")
            return
        asked_s = None
        if verdict.until is not None:
            asked_s = (verdict.until - self._host.fleet.now()).total_seconds()
        backoff = pending_backoff_s(setback.pendings, asked_s)
        self._set_aside(record, text_of(error), backoff, failed=False)
        self._schedule.note(succeeded=True)

    def _set_aside(self, record: Record[T], error: str, backoff: float, *, failed: bool) -> None:
        setback = record.setback = record.setback or Setback()
        setback.error = error
        setback.retry_at = self._host.fleet.now() + timedelta(seconds=backoff)
        self._schedule.set_aside(record, time.monotonic() + backoff, failed=failed)
        self._journal.set_aside(record)

    def _fail(self, record: Record[T], text: str, *, suspect: bool = False) -> None:
        self.failures += 1
        said = alike(text)
        if said in self.errors or len(self.errors) < MAX_ERRORS:
            self.errors[said] += 1
        if self.failures <= MAX_LOGGED:
            self._host.log.warning("Record %s failed: %s", record.key, text)
        self._journal.finish(record, RecordStatus.FAILED, text, suspect=suspect)
        self._forget(record, succeeded=not suspect)

    def _forget(self, record: Record[T], *, succeeded: bool) -> None:
        self._schedule.note(succeeded=succeeded)
        del self._worklist.unfinished[record.key]


def pending_backoff_s(pendings: int, asked_s: float | None) -> float:
    """Return how long a record waits that the service has had no answer for.

    Args:
        pendings: How often, from 1.
        asked_s: What the service asks for. Where that is short, the wait grows after a while, so
            that a slow answer is not given up within minutes.

    Example:
        >>> [pending_backoff_s(count, 2.0) for count in (1, 10, 13, 99)]
        [2.0, 2.0, 4.0, 60.0]
    """
    grown = pendings if asked_s is None else pendings - PATIENT_PENDINGS
    own_s = (
        0.0
        if grown < 1
        else min(PENDING_BACKOFF_S * 2 ** min(grown, 10) / 2, MAX_PENDING_BACKOFF_S)
    )
    return max(own_s, asked_s or 0.0)


def each_failure_counts(
    *, successes: int, others_fail_too: bool, never_arrived: bool, failing: int
) -> bool:
    """Return whether each failure of one of the last records counts as one of another record.

    They are fewer than must fail before the breaker opens. An outage is more likely than as many
    bad records if two fail, or if the service did not process the request: the breaker may open
    then, and the records wait. One record that the service fails to process is more likely bad,
    and must stop nobody else.

    Args:
        successes: How many others of this pass have succeeded.
        others_fail_too: Whether other processes have failures too, and nobody a success since.
        never_arrived: Whether its last try did not reach the service, or was not processed by it.
        failing: How many of the last records fail, and nobody has succeeded since.

    Example:
        >>> one = {"successes": 299, "others_fail_too": False, "failing": 1}
        >>> each_failure_counts(**one, never_arrived=False)  # 500 for one record
        False
        >>> each_failure_counts(**one, never_arrived=True)  # connection refused
        True
    """
    return not successes or others_fail_too or never_arrived or failing > 1


def is_used_up(tries: int, max_tries: int, *, is_of_service: bool) -> bool:
    """Return whether a record for which the service failed is not tried again.

    Args:
        is_of_service: Whether its failure left the breaker open and nobody has succeeded since it
            first failed: it is the service, as far as anybody knows. The record waits for it, but
            not forever: it may be the only one left that tries the service.

    Example:
        >>> is_used_up(10, 10, is_of_service=False), is_used_up(10, 10, is_of_service=True)
        (True, False)
    """
    return tries >= max_tries * (PATIENCE if is_of_service else 1)


def suspicion(reason: str, others: int, error: str) -> str:
    """Return why a record failed that others did not share, for people.

    Example:
        >>> suspicion("500", 299, "HTTPError('500 Server Error')")
        "500 for this record, 299 others succeeded: HTTPError('500 Server Error')"
    """
    return f"{reason} for this record, {others} others succeeded: {error}"


def text_of(error: BaseException) -> str:
    """Return an error as the ledger keeps it: for people, with the service's words, no secrets."""
    return storable(said_with(error))


def _recovered_at(host: LoopHost) -> datetime | None:
    """When a service of an op last recovered; None if none has, or one is not closed."""
    services = host.fleet.snapshot().services
    breakers = [services[name] for name in host.services if name in services]
    if any(breaker.state is not BreakerState.CLOSED for breaker in breakers):
        return None
    return max((each.closed_at for each in breakers if each.closed_at), default=None)


def _answered_at(host: LoopHost, recovered_at: datetime | None) -> datetime | None:
    """When a service of an op last did what it was asked; its health probe alone is no proof."""
    if recovered_at is None or not any(
        host.fleet.policies[name].probe_url for name in host.services
    ):
        return recovered_at

    def read() -> datetime | None:
        with host.store.read() as conn:
            return service_stats.last_success(conn, host.services)

    return retry_while_unreachable(read, host.log)
