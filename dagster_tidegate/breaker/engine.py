"""The engine of a breaker: admits calls to one service, counts them and reports them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from random import random
from threading import Lock

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.answers import Answer
from dagster_tidegate.breaker.backend import Trial
from dagster_tidegate.breaker.budget import billionths
from dagster_tidegate.breaker.durations import Durations
from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.events import (
    CallEnded,
    CallFailed,
    CallJudged,
    CallRefused,
    CallsCounted,
    Event,
    Hooks,
)
from dagster_tidegate.breaker.evidence import NO_EVIDENCE, evidence
from dagster_tidegate.breaker.limiter import Limiter
from dagster_tidegate.breaker.limits import Grant
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.profiles import load
from dagster_tidegate.breaker.purse import Fare, Purse
from dagster_tidegate.breaker.quotas import names_quota, quotas_of
from dagster_tidegate.breaker.shared_state import SharedState
from dagster_tidegate.breaker.slots import HeldSlots, Slots
from dagster_tidegate.breaker.snapshot import FleetSnapshot
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdict_counts import VerdictCounts
from dagster_tidegate.breaker.verdicts import IGNORED, Scope, Verdict, VerdictKind
from dagster_tidegate.breaker.window import LocalWindow, WindowDelta
from dagster_tidegate.holds import Hold, HoldSource, covering
from dagster_tidegate.statuses import BreakerState

TRIAL_RETRY_S = 1.0
"""After a refused trial call, a process asks again at a change, or after this time."""
StateListener = Callable[[BreakerStatus, BreakerStatus], None]


@dataclass(eq=False, slots=True)
class Admission:
    """Decides on calls and has their counters. Replaced as a whole when anything changes.

    Attributes:
        window: The counters of its generation.
        durations: How long calls usually take.
        error: What a call that it refuses raises.
        hold: The operator's hold that forces it open, or None.
        passes: Calls pass without asking anybody, but for the limits.
        fast: They pass, and nobody observes them: only counting is left to do.
        limited: The same, once a call was taken within the limits.
        limiters: The limits of the service, and for a part those of the whole; and likewise what
            pays for calls out of their budgets.
        slots: The same for the calls in flight.
    """

    status: BreakerStatus
    window: LocalWindow
    durations: Durations
    error: type[BreakerOpenError]
    hold: Hold | None = None
    passes: bool = False
    fast: bool = False
    limited: bool = False
    limiters: tuple[Limiter | Fare, ...] = ()
    slots: tuple[Slots, ...] = ()

    def enter(self) -> "Ticket | None":
        """Admit a call if that needs no I/O and no waiting."""
        if not self.passes:
            return None
        held = HeldSlots()
        for slots in self.slots:
            if not slots.take():
                held.release()
                return None
            held.add(slots)
        if not self.take():
            held.release()
            return None
        return Ticket(self.window, held=held)

    def take(self) -> bool:
        """Take a call within the limits, if that needs no I/O."""
        taken: list[Limiter | Fare] = []
        for limiter in self.limiters:
            if not limiter.take():
                for each in taken:
                    each.put_back()
                return False
            taken.append(limiter)
        return True

    def refusal(self) -> BreakerOpenError:
        """Return the error that refuses a call."""
        if self.hold is None:
            return _refusal(self.error, self.status, self.status.open_until)
        hold = self.hold
        reason = f"held by {hold.actor}: {hold.reason}"
        since, until = hold.placed_at, hold.expires_at
        return self.error(self.status.name, BreakerState.OPEN, since, reason, until)


class Ticket:
    """A call that was admitted.

    Attributes:
        trial: Its lease as a trial call, or None.
        parent: The ticket of the same call for the whole service, if a part of it was called and
            the whole is on trial.
        held: Its slots among the calls in flight, or None.
    """

    __slots__ = ("held", "parent", "started", "trial", "window")

    def __init__(
        self,
        window: LocalWindow,
        trial: Trial | None = None,
        parent: "Ticket | None" = None,
        *,
        started: float | None = None,
        held: HeldSlots | None = None,
    ) -> None:
        self.window = window
        self.started = window.monotonic() if started is None else started
        self.trial = trial
        self.parent = parent
        self.held = held

    def release(self) -> None:
        """Return its slots: it is no longer in flight."""
        if self.held is not None:
            self.held.release()


class Engine:
    """Admits the calls of this process to one service, and reports them to the fleet.

    A call is admitted by `admit` and ended by `succeed`, `fail`, `close_down` or `ignore`.

    Args:
        parent: The engine of the whole service, for a part of it. Where the whole is open or held,
            so is the part.
        error: What a call that is refused raises.
        enabled: False: calls pass and are counted, nothing trips.
        on_change: Called with the breaker before and after each change that this process makes.
    """

    def __init__(
        self,
        policy: ServicePolicy,
        state: SharedState,
        hooks: Hooks,
        *,
        parent: "Engine | None" = None,
        error: type[BreakerOpenError] = BreakerOpenError,
        enabled: bool,
        on_change: StateListener,
    ) -> None:
        self.policy = policy
        self.parent = parent
        self.durations = _durations(policy)
        self.observed = False
        self._state = state
        self._hooks = hooks
        self._error = error
        self._enabled = enabled
        self._on_change = on_change
        self.reset()

    def reset(self) -> None:
        """Create what a forked child must not share with its parent."""
        self._report_lock = Lock()
        profile = None if self.policy.profile is None else load(self.policy.profile)
        self._quotas_are_of_whole = profile is None or profile.throttled_scope is Scope.SERVICE
        refills = profile is not None and profile.retry_after_first
        is_limited = self.policy.enforce and self._enabled
        self._limiter = Limiter(self.policy, self._state, refills=refills) if is_limited else None
        has_slots = is_limited and self.policy.max_concurrency is not None
        self.slots = Slots(self.policy, self._state) if has_slots else None
        self._few_left = False
        self._spent: Grant | None = None
        self.purse = (
            Purse(self.policy, self._state) if self.policy.budget and self._enabled else None
        )
        self.purses = [each.purse for each in self._family() if each.purse is not None]
        cost = self.policy.cost
        paid = 0 if isinstance(cost, str) else billionths(cost)
        self._fares = [
            (each, Fare(each.purse, paid, each.overspends))
            for each in self._family()
            if each.purse is not None
        ]
        self._ask_at = float("-inf")
        self._reserved: list[Ticket] = []
        self._retired: list[LocalWindow] = []
        self._others = VerdictCounts()
        # Window, its successes and the fleet's failures in a row at the last report.
        self._reported: tuple[LocalWindow | None, int, int] = (None, 0, 0)
        self._failures_of_trip = 0  # those in a row that tripped it, and of trial calls since
        self._failing_workers = 0
        # Admits no call before the first snapshot.
        unknown = BreakerStatus(name=self.policy.name, changed_at=datetime.now(UTC), generation=-1)
        window = LocalWindow(self.policy.name, -1, self._state.worker, self._state.monotonic)
        self.admission = Admission(unknown, window, self.durations, self._error)

    def now(self) -> datetime:
        """Return the backend's time (UTC), computed from the last read; no query."""
        return self._state.now()

    # --- admission ------------------------------------------------------------------------------

    def admit(self) -> Ticket:
        """Admit a call within the limits, as a trial call where the breaker needs one.

        Raises:
            BreakerOpenError: If the service must not be called now.
        """
        limited, slots = self._limited(), self._slots()
        if not limited and not slots:
            return self.admit_unlimited()
        self.check()
        taken: list[Limiter | Fare] = []
        held = HeldSlots()
        try:
            for each in slots:  # first: a call within the limits must be made soon
                each.acquire(self.check)
                held.add(each)
            for engine, limiter in limited:
                if (refusal := limiter.acquire(self.check)) is not None:
                    raise engine.used_up(refusal)
                taken.append(limiter)
            ticket = self.admit_unlimited()
        except BaseException:
            held.release()
            for limiter in taken:
                limiter.put_back()
            raise
        ticket.held = held
        return ticket

    @property
    def limiter(self) -> Limiter | None:
        """The limiter, if there are limits, or the service says that few calls are left."""
        return self._limiter if self.policy.limits or self._few_left else None

    def _slots(self) -> list[Slots]:
        """The slots of a part, and of the service that it belongs to."""
        return [each.slots for each in self._family() if each.slots]

    def settle(self, *, final: bool) -> None:
        """Give back what this process does not use of the limits; with `final`, all of it."""
        if self.slots is not None:
            self.slots.settle(final=final)
        if self._limiter is not None:
            self._limiter.settle(final=final or self.limiter is None)
        if self.purse is not None:
            self.purse.settle(final=final)

    def _family(self) -> "list[Engine]":
        """This engine, and that of the service that it is of a part of."""
        return [self] if self.parent is None else [self, self.parent]

    def _limited(self) -> "list[tuple[Engine, Limiter | Fare]]":
        """The limits and budgets of a part, and of the service that it belongs to."""
        limits = [(each, each.limiter) for each in self._family() if each.limiter is not None]
        return [*limits, *self._fares]

    def overspends(self) -> bool:
        """Whether calls pass although the budget is used up, as the policy or a person says."""
        status = self.admission.status
        if not self.policy.enforce:
            return True
        return status.kept_closed_by is not None and status.kept_closed(self._state.now())

    def used_up(self, refusal: Grant) -> BreakerOpenError:
        """Let the service be throttled until there are calls again; return the refusal."""
        reason = self._throttle(refusal)
        name, now = self.policy.name, self._state.now()
        return self.refuse(self._error(name, BreakerState.OPEN, now, reason, refusal.retry_at))

    def _throttle(self, refusal: Grant) -> str:
        reason = f"its {refusal.kind} of {refusal.limit} is used up"
        verdict = Verdict(VerdictKind.THROTTLED, refusal.retry_at, reason=reason)
        self.change(
            lambda status, now: machine.after_refusal(
                status, self.policy, verdict, now, random(), used_up=refusal.kind
            )
        )
        return reason

    # --- what the service says of its limits ----------------------------------------------------

    def heed(self, answer: Answer, ticket: Ticket) -> None:
        """Take note of what an answer says of the calls that are left; no I/O."""
        if not names_quota(answer.headers):
            return
        engine = self.parent if self.parent is not None and self._quotas_are_of_whole else self
        engine.hear(answer, ticket.started)

    def hear(self, answer: Answer, counted_at: float) -> None:
        """Take note of an answer in which all calls are counted that began before a time."""
        if self._limiter is None or not self.policy.heed_quotas:
            return
        self._spent = self._limiter.heed(quotas_of(answer), counted_at, answer.at)
        if self._few_left != self._limiter.few_left:
            self._few_left = self._limiter.few_left
            if not self.policy.limits:
                self._state.inform_all()

    @property
    def is_spent(self) -> bool:
        """Whether the last answer said that no calls are left for now."""
        return self._spent is not None or (self.parent is not None and self.parent.is_spent)

    def throttle_spent(self) -> None:
        """Let the service be throttled if it said that no calls are left."""
        spent, self._spent = self._spent, None
        if spent is not None and self.current().passes:
            self._throttle(spent)
        if self.parent is not None:
            self.parent.throttle_spent()

    def admit_unlimited(self) -> Ticket:
        """Admit a call, whatever the limits say.

        Raises:
            BreakerOpenError: If the service must not be called now.
        """
        admission = self.check()
        if admission.passes:
            return Ticket(admission.window)
        if (reserved := self._take_reserved()) is not None:
            return reserved
        whole = None
        if self.parent is not None and not self.parent.current().passes:
            whole = self.parent.admit_unlimited()
            if self._status_passes(admission.status):
                return Ticket(admission.window, parent=whole)
        try:
            return self._admit_trial(admission, whole)
        except BaseException:
            if whole is not None and self.parent is not None:
                self.parent.end_trials(whole, IGNORED)
            raise

    def _admit_trial(self, admission: Admission, whole: Ticket | None) -> Ticket:
        answer = self._state.take_trial(self.policy)
        self._announce(answer.before, answer.after)
        if answer.after.generation != self.admission.status.generation:
            self._state.refresh()
        if answer.trial is not None:
            return Ticket(self.admission.window, answer.trial, whole)
        self._ask_at = admission.window.monotonic() + TRIAL_RETRY_S
        if answer.after.state == BreakerState.CLOSED:
            return Ticket(self.check().window, parent=whole)
        raise self.refuse(_refusal(self._error, answer.after, answer.retry_at))

    def check(self) -> Admission:
        """Return what decides on calls, without I/O.

        Raises:
            BreakerOpenError: If what this process knows is enough to refuse a call.
        """
        if (refusal := self.refusal()) is not None:
            raise self.refuse(refusal)
        return self.admission

    def refusal(self) -> BreakerOpenError | None:
        """Return why a call is refused, if what this process knows is enough; no I/O."""
        admission = self.current()
        if admission.passes:
            return None
        if admission.hold is not None:
            return admission.refusal()
        if self.parent is not None:
            if (refusal := self.parent.refusal()) is not None:
                return refusal
            if self._status_passes(admission.status):
                return None
        now, status = self._state.now(), admission.status
        if status.state == BreakerState.OPEN and not status.due(now):
            return admission.refusal()
        if admission.window.monotonic() < self._ask_at and not self._reserved:
            retry_at = now + timedelta(seconds=TRIAL_RETRY_S)
            return _refusal(self._error, status, retry_at)
        return None

    def reserve(self) -> bool:
        """Return whether the next call is admitted; where it must be a trial call, lease it now."""
        if self.current().passes:
            return True
        if (reserved := self._take_reserved()) is not None:
            self._reserved.append(reserved)  # another thread is about to use it
            return False
        if self.refusal() is not None:
            return False
        try:
            self._reserved.append(self.admit_unlimited())
        except BreakerOpenError:  # other processes have the trial calls
            return False
        return True

    def put_back(self, ticket: Ticket) -> None:
        """Take back a call that was not made: the next has its lease as a trial call. No I/O."""
        ticket.release()
        if ticket.trial is not None or ticket.parent is not None:
            self._reserved.append(ticket)

    def _take_reserved(self) -> Ticket | None:
        try:
            ticket = self._reserved.pop()
        except IndexError:
            return None
        ticket.started = ticket.window.monotonic()
        leases = (ticket.trial, ticket.parent and ticket.parent.trial)
        is_live = all(each is None or self._state.now() < each.expires_at for each in leases)
        return ticket if is_live and ticket.window is self.admission.window else None

    @property
    def throttle(self) -> BreakerStatus | None:
        """The breaker that is not closed because the service is throttled: own or the whole's."""
        if self.current().hold is not None:
            return None
        statuses = [self.current().status]
        if self.parent is not None:
            statuses.append(self.parent.current().status)
        return next(
            (
                status
                for status in statuses
                if status.cause == VerdictKind.THROTTLED and not self._status_passes(status)
            ),
            None,
        )

    def current(self) -> Admission:
        """Return what decides on calls, up to date after a fork and after a hold expired."""
        self._state.snapshot()
        hold = self.admission.hold
        if hold is not None and not hold.live(self._state.now()):
            self._state.inform(self.update)
        return self.admission

    def update(self, snapshot: FleetSnapshot) -> None:
        """Decide on calls by a snapshot from now on. Subscribed to the shared state."""
        self._ask_at = float("-inf")
        status = snapshot.services.get(self.policy.name)
        if status is None:
            return
        hold = operator_hold(snapshot, self.policy.name, self._state.now())
        whole = None if self.parent is None else snapshot.services.get(self.parent.policy.name)
        if status.state == BreakerState.CLOSED:
            self._failures_of_trip = 0
        window = self.admission.window
        if window.generation != status.generation:
            self._retired.append(window)
            window = LocalWindow(
                status.name,
                status.generation,
                self._state.worker,
                self._state.monotonic,
                max(1000, self.policy.consecutive_failures or 0),
            )
        passes = not self._enabled or (
            hold is None
            and self._status_passes(status)
            and (whole is None or self._status_passes(whole))
        )
        is_priced = bool(self.purses) and isinstance(self.policy.cost, str)
        limiters, slots = tuple(limiter for _, limiter in self._limited()), tuple(self._slots())
        is_watched = self.observed or self._hooks.times_calls or is_priced or bool(slots)
        self.admission = Admission(
            status,
            window,
            self.durations,
            self._error,
            hold=hold,
            passes=passes,
            fast=passes and not is_watched and not limiters,
            limited=passes and not is_watched and bool(limiters),
            limiters=limiters,
            slots=slots,
        )

    def _status_passes(self, status: BreakerStatus) -> bool:
        return status.state == BreakerState.CLOSED or not self.policy.enforce

    def configure(self, policy: ServicePolicy, *, observed: bool) -> None:
        """Replace the policy, and say whether listeners observe each call."""
        self.policy, self.observed = policy, observed
        self.durations = _durations(policy)
        self._state.inform(self.update)

    def refuse(self, error: BreakerOpenError) -> BreakerOpenError:
        """Count a refusal; return its error."""
        self._hooks.emit(CallRefused(error.service, error.reason, error.retry_at))
        return error

    # --- results --------------------------------------------------------------------------------

    def succeed(self, ticket: Ticket, *, streamed: bool = False) -> None:
        """End a call that succeeded.

        Args:
            streamed: Whether it took as long as the caller needed for its items, too, which is not
                compared with other calls.
        """
        window, policy = ticket.window, self.policy
        ended = window.monotonic()
        took_s = ended - ticket.started
        compared = not streamed or policy.slow_call_s is not None
        slow = compared and took_s >= self.durations.limit_s
        if compared:
            self.durations.add(took_s)
        if self._hooks.times_calls:
            self._hooks.emit(CallEnded(policy.name, False, took_s))
        verdict = Verdict(VerdictKind.SLOW if slow else VerdictKind.SUCCESS)
        if self.end_trials(ticket, verdict):
            return
        window.last_ok = ended
        window.ok()
        if slow:
            self.count_slow(window, ticket.started)

    def count_slow(self, window: LocalWindow, started: float) -> None:
        """Count a success, which is counted already, as slow too."""
        window.count_slow(started)
        self._report(window, Verdict(VerdictKind.SLOW, reason="slow"))

    def ignore(self, ticket: Ticket, verdict: Verdict = IGNORED) -> None:
        """End a call that says nothing about the health of the service."""
        self._others.add(verdict.kind)
        if verdict.kind != VerdictKind.IGNORED:
            self._hooks.emit(CallJudged(self.policy.name, verdict))
        self.end_trials(ticket, IGNORED)

    def refund(self, ticket: Ticket) -> None:
        """Return what was paid for a call that did not take effect."""
        for _, fare in self._fares:
            fare.put_back(ticket.started)

    def close_down(self, ticket: Ticket, verdict: Verdict) -> None:
        """End a call of a service that throttles or denies: open the breaker at once."""
        self._others.add(verdict.kind)
        self.open_at_once(ticket, verdict)

    def open_at_once(
        self, ticket: Ticket, verdict: Verdict, began_at: datetime | None = None
    ) -> None:
        """Open the breaker, or that of the whole service.

        Args:
            began_at: When the call began (UTC), if the generation of its ticket does not say so.
        """
        self._hooks.emit(CallJudged(self.policy.name, verdict))
        if self.parent is not None and verdict.scope is Scope.SERVICE:
            if ticket.parent is not None:
                self.parent.open_at_once(ticket.parent, verdict)
            else:
                took_s = ticket.window.monotonic() - ticket.started
                began_at = self._state.now() - timedelta(seconds=took_s)
                self.parent.open_at_once(Ticket(self.parent.admission.window), verdict, began_at)
            self.end_trials(Ticket(ticket.window, ticket.trial), IGNORED)
        elif not self.end_trials(ticket, verdict, whole=IGNORED) and self._enabled:
            self.change(
                lambda status, now: self._after_answer(status, ticket, verdict, now, began_at)
            )

    def _after_answer(
        self,
        status: BreakerStatus,
        ticket: Ticket,
        verdict: Verdict,
        now: datetime,
        began_at: datetime | None,
    ) -> BreakerStatus:
        is_late = ticket.window.generation < status.generation or (
            began_at is not None and began_at < status.changed_at
        )
        if is_late and status.state != BreakerState.OPEN:
            return status  # the call began before the cause was repaired, or its time was over
        return machine.after_answer(status, self.policy, verdict, now, random())

    def fail(self, ticket: Ticket, error: Exception, verdict: Verdict) -> None:
        """End a call that failed."""
        if self._hooks.times_calls:
            took_s = ticket.window.monotonic() - ticket.started
            self._hooks.emit(CallEnded(self.policy.name, True, took_s))
        self._hooks.emit(CallFailed(self.policy.name, error, verdict.reason, verdict.until))
        record = evidence()
        if not self.end_trials(ticket, verdict) and record != NO_EVIDENCE:
            ticket.window.fail(self._state.now(), verdict.until, record)
            self._report(ticket.window, verdict)

    def end_trials(self, ticket: Ticket, verdict: Verdict, *, whole: Verdict | None = None) -> bool:
        """Return the leases of a trial call, and whether it had one of this breaker.

        Args:
            whole: The verdict on the whole service, if it is another.
        """
        if ticket.parent is not None and self.parent is not None and ticket.parent.trial:
            self.parent.end_trial(ticket.parent.trial, whole or verdict)
        if ticket.trial is None:
            return False
        self.end_trial(ticket.trial, verdict)
        return True

    def end_trial(self, trial: Trial, verdict: Verdict) -> None:
        """Return the lease of a trial call with its result."""
        if verdict.kind == VerdictKind.FAILURE:
            self._failures_of_trip += 1
        before, after = self._state.end_trial(self.policy, trial, verdict)
        self._ask_at = float("-inf")
        self._announce(before, after)

    def change(self, move: Callable[[BreakerStatus, datetime], BreakerStatus]) -> None:
        """Change the breaker by hand; `move` returns the next status."""
        for _ in range(10):
            before = self._state.refresh().services[self.policy.name]
            after = move(before, self._state.now())
            if after is before:
                return
            if self._state.change(before, after):
                self._announce(before, after)
                return
        raise RuntimeError(
            f"other processes kept changing the breaker of {self.policy.name}: try again"
        )

    def _announce(self, before: BreakerStatus, after: BreakerStatus) -> None:
        if after.generation != before.generation:
            self._on_change(before, after)

    def _report(self, window: LocalWindow, failure: Verdict) -> None:
        """Report calls to the fleet at once, and trip the breaker if they are enough."""
        if not self._enabled:
            return
        with self._report_lock:
            now = self._state.now()
            current = window is self.admission.window
            delta = self._pending(window, now) if current else None
            if delta is None or not (delta.failed or delta.slow):
                return  # an older generation, or another thread has reported it already
            before, stats = self._state.record(self.policy, delta)
            window.flushed(delta)
            self._others.flushed(delta)
            stats = replace(stats, slow_in_row=window.slow_in_row)
            if stats.last_ok_at is not None:
                window.succeeded_until(stats.last_ok_at)
            self._reported = (window, window.totals()[0], stats.failed_in_row)
            self._failing_workers = stats.row_workers
            after = machine.after_calls(before, self.policy, stats, now, failure, random())
            if after is not before:
                self._failures_of_trip = stats.failed_in_row
            events = [*self._count_retired(), _counted(delta)]
        if after is not before:
            if self._state.change(before, after):
                self._announce(before, after)
        elif before.generation != window.generation:
            self._state.refresh()
        for event in events:
            self._hooks.emit(event)

    @contextmanager
    def flushing(self, events: list[Event]) -> Iterator[WindowDelta | None]:
        """Yield the counts to flush, or None; at the end, note that they are written.

        Args:
            events: Where the events are added that are due then.
        """
        if not self._report_lock.acquire(blocking=False):
            yield None  # another thread is reporting a failure, and all other counts with it
            return
        try:
            retired = self._count_retired()
            window = self.admission.window
            delta = self._pending(window, self._state.now())
            yield delta
            events += retired
            if delta is not None:
                window.flushed(delta)
                self._others.flushed(delta)
                events.append(_counted(delta))
        finally:
            self._report_lock.release()

    def _pending(self, window: LocalWindow, now: datetime) -> WindowDelta | None:
        return window.pending(self.policy, now, self._others.pending(), self.durations.p95_s)

    def _count_retired(self) -> list[Event]:
        """Count the remaining calls of older generations; they no longer affect the breaker."""
        events: list[Event] = []
        while self._retired:
            if delta := self._retired.pop().pending(self.policy, self._state.now()):
                events.append(_counted(delta))
        return events

    @property
    def others_fail_too(self) -> bool:
        """Whether calls of other processes had failed at the last failure, and none succeeded."""
        return self._failing_workers > 1

    @property
    def failed_in_row(self) -> int:
        """Failures in a row of the fleet, at the last report of this process.

        While it is not closed, those with which this process tripped it, and its failed trial
        calls since.
        """
        if self.admission.status.state != BreakerState.CLOSED:
            return self._failures_of_trip
        window, ok, in_row = self._reported
        if window is None or window is not self.admission.window:
            return 0
        return in_row if window.totals()[0] == ok else 0


def _durations(policy: ServicePolicy) -> Durations:
    return Durations(policy.slow_call_s, enabled=policy.slow_call_rate is not None)


def operator_hold(snapshot: FleetSnapshot, service: str, now: datetime) -> Hold | None:
    """Return the operator's hold that forces a breaker open, or None."""
    holds = covering(snapshot.holds, now, services=[service])
    return next((hold for hold in holds if hold.source == HoldSource.OPERATOR), None)


def _refusal(
    error: type[BreakerOpenError], status: BreakerStatus, retry_at: datetime | None
) -> BreakerOpenError:
    since = status.opened_at or status.changed_at
    reason = status.reason or str(status.state)
    return error(status.name, status.state, since, reason, retry_at)


def _counted(delta: WindowDelta) -> CallsCounted:
    return CallsCounted(delta.service, delta.ok, delta.slow, delta.failed)
