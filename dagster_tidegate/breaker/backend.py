"""Where breakers are kept: the interface of a backend, and the backend in memory."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from random import random
from threading import Lock
from typing import Protocol
from uuid import uuid4

from dagster_tidegate.breaker import limits
from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.budget import Allowance, BudgetState, SpendRequest, allow
from dagster_tidegate.breaker.concurrency import SlotGrant, SlotRequest, lease_slots
from dagster_tidegate.breaker.limits import CallRequest, Grant, LimitState
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.snapshot import FleetSnapshot
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdicts import Verdict
from dagster_tidegate.breaker.waker import Waker
from dagster_tidegate.breaker.window import (
    WindowDelta,
    WindowStats,
    last_success,
    outlives_window,
    reach,
    window_stats,
)
from dagster_tidegate.holds import Hold, HoldSource, SystemActor, Target, TargetKind, in_effect
from dagster_tidegate.statuses import BreakerState


@dataclass(frozen=True, slots=True)
class Trial:
    """A lease on a trial call: nobody else has this slot until `expires_at` (UTC)."""

    service: str
    generation: int
    slot: int
    token: str
    worker: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class TrialAnswer:
    """The answer to a request for a trial call.

    Attributes:
        after: The breaker now; half open if it was due.
        trial: The lease, or None if none is free.
        retry_at: When to ask again (UTC), if none is free.
    """

    before: BreakerStatus
    after: BreakerStatus
    trial: Trial | None
    retry_at: datetime | None


class Listener(Protocol):
    """Waits for changes."""

    def wait(self, timeout_s: float) -> bool:
        """Return True as soon as a breaker or hold changed; False after `timeout_s` or if woken."""
        ...

    def close(self) -> None:
        """Close its connection."""
        ...


class BreakerBackend(Protocol):
    """A place where breakers are kept. Each method that reads or writes is atomic."""

    @property
    def shared(self) -> bool:
        """Whether other processes use it too."""
        ...

    @property
    def clock(self) -> Callable[[], datetime] | None:
        """Replaces the clock of the backend in tests."""
        ...

    def now(self) -> datetime:
        """Return the time by the clock of the backend, UTC."""
        ...

    def read(self, names: Iterable[str]) -> FleetSnapshot:
        """Read all breakers and live holds. Services in `names` that are new start closed."""
        ...

    def record(
        self, policy: ServicePolicy, delta: WindowDelta
    ) -> tuple[BreakerStatus, WindowStats]:
        """Add a worker's counts; return the breaker and the counts of the fleet."""
        ...

    def flush(self, deltas: Sequence[tuple[ServicePolicy, WindowDelta]]) -> None:
        """Add a worker's counts for several services and buckets."""
        ...

    def change(self, before: BreakerStatus, after: BreakerStatus, actor: str) -> bool:
        """Replace `before` with `after`; return False if it is no longer `before`."""
        ...

    def take_trial(self, policy: ServicePolicy, worker: str) -> TrialAnswer:
        """Ask for a trial call. A breaker that is due becomes half open."""
        ...

    def end_trial(
        self,
        policy: ServicePolicy,
        trial: Trial,
        verdict: Verdict,
    ) -> tuple[BreakerStatus, BreakerStatus]:
        """Return a lease with the result of its call; return the breaker before and after."""
        ...

    def lease(self, policy: ServicePolicy, worker: str, request: CallRequest) -> Grant:
        """Settle a worker's last block of calls within the limits, and lease it the next one."""
        ...

    def lease_slots(self, policy: ServicePolicy, worker: str, request: SlotRequest) -> SlotGrant:
        """Renew a worker's slots for calls in flight, and lease it more."""
        ...

    def spend(self, policy: ServicePolicy, worker: str, request: SpendRequest) -> Allowance:
        """Write what a worker has spent of a budget, and allow it the next amount."""
        ...

    def prune(self, policies: Iterable[ServicePolicy]) -> int:
        """Delete counts that are outside of every window; return how many."""
        ...

    def listen(self, waker: Waker) -> Listener:
        """Return a listener for changes. `waker` ends its waits; the caller closes it."""
        ...

    def is_unreachable(self, error: Exception) -> bool:
        """Return whether an error means that the backend is unreachable."""
        ...

    def after_fork(self) -> None:
        """In a forked child: let go of the parent's connections without closing them."""
        ...


def free_slot(taken: Iterable[int], permitted: int) -> int | None:
    """Return the first of `permitted` slots that is not taken, or None."""
    return next(iter(sorted(set(range(permitted)) - set(taken))), None)


class MemoryBackend:
    """Breakers in the memory of one process: without a store, or while it is unreachable.

    Args:
        statuses: Initial breakers.
        holds: Holds; those of operators stay in force until they expire.
        clock: Returns the time (UTC); for tests.
    """

    shared = False

    def __init__(
        self,
        statuses: Iterable[BreakerStatus] = (),
        *,
        holds: Iterable[Hold] = (),
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.clock = clock
        self.holds = tuple(hold for hold in holds if hold.source == HoldSource.OPERATOR)
        self.statuses = {status.name: status for status in statuses}
        self.initial_generations = {s.name: s.generation for s in self.statuses.values()}
        self._rows: dict[tuple[str, datetime, str, int], WindowDelta] = {}
        self._trials: list[Trial] = []
        self._limits: dict[str, LimitState] = {}
        self._lock = Lock()

    def now(self) -> datetime:
        """Return the time, UTC."""
        return datetime.now(UTC) if self.clock is None else self.clock()

    def read(self, names: Iterable[str]) -> FleetSnapshot:
        """See `BreakerBackend.read`. Each breaker that is not closed has its hold."""
        with self._lock:
            now = self.now()
            for name in names:
                self._get(name, now)
            own = [
                Hold(
                    id=-number,  # no row of the store
                    target=Target(TargetKind.SERVICE, status.name),
                    source=HoldSource.BREAKER,
                    reason=status.reason or str(status.state),
                    actor=SystemActor.BREAKER,
                    placed_at=status.opened_at or status.changed_at,
                )
                for number, status in enumerate(self.statuses.values(), start=1)
                if status.state != BreakerState.CLOSED
            ]
            return FleetSnapshot(
                services=dict(self.statuses),
                holds=tuple(in_effect((*self.holds, *own), now)),
                read_at=now,
                read_monotonic=time.monotonic(),
            )

    def record(
        self, policy: ServicePolicy, delta: WindowDelta
    ) -> tuple[BreakerStatus, WindowStats]:
        """See `BreakerBackend.record`."""
        with self._lock:
            self._add(policy, delta)
            status = self._get(delta.service, delta.at)
            return status, window_stats(self._counts(status), policy, delta.at, delta.worker)

    def flush(self, deltas: Sequence[tuple[ServicePolicy, WindowDelta]]) -> None:
        """See `BreakerBackend.flush`."""
        with self._lock:
            for policy, delta in deltas:
                self._add(policy, delta)

    def change(self, before: BreakerStatus, after: BreakerStatus, actor: str) -> bool:  # noqa: ARG002 - no events
        """See `BreakerBackend.change`."""
        with self._lock:
            if self._get(before.name, before.changed_at).generation != before.generation:
                return False
            self.statuses[after.name] = after
            return True

    def take_trial(self, policy: ServicePolicy, worker: str) -> TrialAnswer:
        """See `BreakerBackend.take_trial`."""
        with self._lock:
            now = self.now()
            before = after = self._get(policy.name, now)
            if before.due(now):
                after = self.statuses[policy.name] = machine.half_opened(before, now)
            if not after.is_half_open:
                return TrialAnswer(before, after, None, after.open_until)
            leased = [
                trial
                for trial in self._trials
                if trial.service == policy.name
                and trial.generation == after.generation
                and now < trial.expires_at
            ]
            slot = free_slot([trial.slot for trial in leased], policy.trial_calls)
            if slot is None:
                return TrialAnswer(before, after, None, min(trial.expires_at for trial in leased))
            trial = Trial(
                service=policy.name,
                generation=after.generation,
                slot=slot,
                token=uuid4().hex,
                worker=worker,
                expires_at=now + timedelta(seconds=policy.trial_lease_s),
            )
            self._trials = [t for t in self._trials if t.service != policy.name] + [*leased, trial]
            return TrialAnswer(before, after, trial, None)

    def end_trial(
        self,
        policy: ServicePolicy,
        trial: Trial,
        verdict: Verdict,
    ) -> tuple[BreakerStatus, BreakerStatus]:
        """See `BreakerBackend.end_trial`."""
        with self._lock:
            now = self.now()
            before = self._get(policy.name, now)
            if trial not in self._trials:
                return before, before
            self._trials.remove(trial)
            if before.generation != trial.generation:
                return before, before
            after = machine.after_trial(before, policy, verdict, now, random())
            self.statuses[policy.name] = after
            return before, after

    def lease(self, policy: ServicePolicy, worker: str, request: CallRequest) -> Grant:
        """See `BreakerBackend.lease`."""
        with self._lock:
            state = self._limits.setdefault(policy.name, LimitState())
            return limits.lease(state, policy.limits, self.now(), worker, request)

    def lease_slots(self, policy: ServicePolicy, worker: str, request: SlotRequest) -> SlotGrant:
        """See `BreakerBackend.lease_slots`."""
        assert policy.max_concurrency is not None
        with self._lock:
            state = self._limits.setdefault(policy.name, LimitState()).slots
            now = self.now().timestamp()
            return lease_slots(state, policy.max_concurrency, now, worker, request)

    def spend(self, policy: ServicePolicy, worker: str, request: SpendRequest) -> Allowance:
        """See `BreakerBackend.spend`. Nothing is written: the process reports all of it again."""
        assert policy.budget is not None
        now = self.now()
        begins = policy.budget.period(now.timestamp())[0]
        known = request.known[1] if request.known[0] == begins else 0
        mine = sum(v for what, v in request.spent.items() if what.period in (begins, None))
        answer = allow(BudgetState(policy.budget), now, worker, request, total=known + mine)
        return replace(answer, kept=False)

    def counts(self, status: BreakerStatus) -> list[WindowDelta]:
        """Return the counts in the generation of a breaker."""
        with self._lock:
            return self._counts(status)

    def prune(self, policies: Iterable[ServicePolicy]) -> int:
        """Delete counts that are outside of every window; return how many."""
        with self._lock:
            now = self.now()
            return sum(self._prune(policy, now) for policy in policies)

    def listen(self, waker: Waker) -> Listener:
        """Nobody else changes it."""
        raise NotImplementedError

    def is_unreachable(self, error: Exception) -> bool:  # noqa: ARG002 - the interface has it
        """Return False: memory is always there."""
        return False

    def after_fork(self) -> None:
        """A child has a copy of its own."""

    def _get(self, name: str, now: datetime) -> BreakerStatus:
        return self.statuses.setdefault(name, BreakerStatus(name=name, changed_at=now))

    def _counts(self, status: BreakerStatus) -> list[WindowDelta]:
        key = (status.name, status.generation)
        return [row for row in self._rows.values() if (row.service, row.generation) == key]

    def _prune(self, policy: ServicePolicy, now: datetime) -> int:
        since, until = reach(policy, now)
        current = self._counts(self._get(policy.name, now))
        last_ok_at = last_success(current, until)
        kept = {id(row) for row in current if outlives_window(row, last_ok_at)}
        old = [
            key
            for key, row in self._rows.items()
            if key[0] == policy.name and key[1] <= since and id(row) not in kept
        ]
        for key in old:
            del self._rows[key]
        return len(old)

    def _add(self, policy: ServicePolicy, delta: WindowDelta) -> None:
        self._prune(policy, delta.at)
        key = (delta.service, delta.bucket, delta.worker, delta.generation)
        former = self._rows.get(key)
        self._rows[key] = delta if former is None else delta.added_to(former)
