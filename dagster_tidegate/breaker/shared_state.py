"""What a process knows about the breakers of its fleet, and how it changes them."""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Condition, Lock, RLock
from typing import TypeVar
from uuid import uuid4

from dagster_tidegate.breaker.backend import (
    BreakerBackend,
    Listener,
    MemoryBackend,
    Trial,
    TrialAnswer,
)
from dagster_tidegate.breaker.budget import BILLIONTH, Allowance, SpendRequest
from dagster_tidegate.breaker.concurrency import SlotGrant, SlotRequest
from dagster_tidegate.breaker.events import (
    AmountSpent,
    ChangeLearned,
    Event,
    StateChanged,
    StoreLost,
    StoreRegained,
)
from dagster_tidegate.breaker.limits import CallRequest, Grant
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.snapshot import FleetSnapshot
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdicts import Verdict
from dagster_tidegate.breaker.waker import Waker
from dagster_tidegate.breaker.window import WindowDelta, WindowStats
from dagster_tidegate.statuses import BreakerState

T = TypeVar("T")
Subscriber = Callable[[FleetSnapshot], None]
log = logging.getLogger(__name__)


class SharedState:
    """The breakers of a fleet as one process knows them, and every change that it makes to them.

    While the backend is unreachable, a `MemoryBackend` of this process takes its place. `recover`
    writes what happened meanwhile to the backend.

    Args:
        worker: Name of this process; None makes up a unique one.
        on_start: Called after the first read.
        on_lost: Called when the backend becomes unreachable.

    Attributes:
        campaign: The campaign that this process works for: it pays for its calls, and has its turn.
    """

    campaign = ""

    def __init__(
        self,
        backend: BreakerBackend,
        policies: Mapping[str, ServicePolicy],
        *,
        worker: str | None,
        emit: Callable[[Event], None],
        on_start: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.backend = backend
        self._policies = policies
        self._given_name = worker
        self._emit, self._on_start, self._on_lost = emit, on_start, on_lost
        clock = backend.clock
        self._clock = clock
        self.monotonic: Callable[[], float] = (
            time.monotonic if clock is None else lambda: clock().timestamp()
        )
        self._subscribers: list[Subscriber] = []
        self._reset()

    def _reset(self) -> None:
        """Create what a forked child must not share with its parent."""
        self.worker = self._given_name or f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:6]}"
        # Lock order: starting, reading, an engine's report lock, lock.
        self._starting = Lock()
        self._reading = Lock()
        self._lock = RLock()
        self._changed = Condition(self._lock)
        self._version = 0
        self._snapshot: FleetSnapshot | None = None
        self._local: MemoryBackend | None = None  # while the backend is unreachable
        self._lost_at = 0.0

    def after_fork(self) -> None:
        """In a forked child: start again, without the parent's connections."""
        self._reset()
        self.backend.after_fork()

    # --- reading --------------------------------------------------------------------------------

    @property
    def degraded(self) -> bool:
        """Whether the backend is unreachable."""
        return self._local is not None

    @property
    def started(self) -> bool:
        """Whether anything was read yet."""
        return self._snapshot is not None

    def snapshot(self) -> FleetSnapshot:
        """Return what this process knows; only the first call reads."""
        return self._snapshot or self._start()

    def _start(self) -> FleetSnapshot:
        with self._starting:
            if self._snapshot is not None:
                return self._snapshot
            snapshot = self.refresh()
            self._on_start()
            return snapshot

    def now(self) -> datetime:
        """Return the backend's time (UTC), computed from the last read; no query."""
        if self._clock is not None:
            return self._clock()
        read = self.snapshot()
        return read.read_at + timedelta(seconds=time.monotonic() - read.read_monotonic)

    def refresh(self) -> FleetSnapshot:
        """Read breakers and holds now."""
        with self._reading:
            read, local = self._do(self._read)
            return self._learn(read, local)

    def _read(self, backend: BreakerBackend) -> FleetSnapshot:
        return replace(backend.read(self._policies), degraded=backend is not self.backend)

    def wait_for_change(self, timeout_s: float) -> bool:
        """Wait until a breaker or hold changes; return False after `timeout_s`."""
        self.snapshot()
        with self._changed:
            version = self._version
            return self._changed.wait_for(lambda: self._version != version, timeout_s)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber` with the present snapshot, and after each read or change.

        It is called under a lock, by one thread at a time.
        """
        self._subscribers.append(subscriber)
        self.inform(subscriber)

    def inform(self, subscriber: Subscriber) -> None:
        """Call a subscriber with the present snapshot."""
        self.snapshot()
        with self._lock:
            subscriber(self.snapshot())

    def inform_all(self) -> None:
        """Call all subscribers with the present snapshot."""
        self.snapshot()
        with self._lock:
            for subscriber in self._subscribers:
                subscriber(self.snapshot())

    def listen(self, waker: Waker) -> Listener:
        """Return a listener for the changes that other processes make."""
        return self.backend.listen(waker)

    def prune(self) -> None:
        """Delete counts that are outside of every window."""
        self.backend.prune(self._policies.values())

    # --- writing --------------------------------------------------------------------------------

    def record(
        self, policy: ServicePolicy, delta: WindowDelta
    ) -> tuple[BreakerStatus, WindowStats]:
        """Add counts of this process; return the breaker and the counts of the fleet."""
        return self._do(lambda backend: backend.record(policy, delta))[0]

    def flush(self, deltas: Sequence[tuple[ServicePolicy, WindowDelta]]) -> None:
        """Add counts of this process for several services."""
        self._do(lambda backend: backend.flush(deltas))

    def change(self, before: BreakerStatus, after: BreakerStatus) -> bool:
        """Replace `before` with `after`; return False if somebody else was faster."""
        won, local = self._do(lambda backend: backend.change(before, after, self.worker))
        if won:
            self._publish(before, after, local)
        else:
            self.refresh()
        return won

    def take_trial(self, policy: ServicePolicy) -> TrialAnswer:
        """Ask for a trial call. A breaker that is due becomes half open."""
        answer, local = self._do(lambda backend: backend.take_trial(policy, self.worker))
        self._publish(answer.before, answer.after, local)
        return answer

    def end_trial(
        self, policy: ServicePolicy, trial: Trial, verdict: Verdict
    ) -> tuple[BreakerStatus, BreakerStatus]:
        """Return a lease with the result of its call; return the breaker before and after."""
        (before, after), local = self._do(lambda backend: backend.end_trial(policy, trial, verdict))
        self._publish(before, after, local)
        if before.generation != trial.generation:
            self.refresh()
        return before, after

    def lease(self, policy: ServicePolicy, request: CallRequest) -> Grant:
        """Settle this process's last block of calls within the limits, and lease the next one."""
        return self._do(lambda backend: backend.lease(policy, self.worker, request))[0]

    def lease_slots(self, policy: ServicePolicy, request: SlotRequest) -> SlotGrant:
        """Renew this process's slots for calls in flight, and lease more."""
        return self._do(lambda backend: backend.lease_slots(policy, self.worker, request))[0]

    def spend(self, policy: ServicePolicy, request: SpendRequest) -> Allowance:
        """Report what this process has spent, and ask for the next amount."""
        answer = self._do(lambda backend: backend.spend(policy, self.worker, request))[0]
        if answer.kept and policy.budget is not None:
            for (_, campaign), amount in request.spent.items():
                unit = policy.budget.unit
                self._emit(AmountSpent(policy.name, campaign, amount / BILLIONTH, unit))
        return answer

    def seconds_until(self, grant: Grant) -> float:
        """Return how long it takes until there are calls again."""
        if grant.retry_at is None:
            return 0.0
        return (grant.retry_at - self.now()).total_seconds()

    def _publish(
        self, before: BreakerStatus, after: BreakerStatus, local: MemoryBackend | None
    ) -> None:
        """Learn and announce a change that this process made."""
        if after is before:
            return
        with self._lock:
            # Generations of the two backends can't be compared.
            if self._local is local:
                snapshot = self.snapshot()
                services = {**snapshot.services, after.name: after}
                self._store(replace(snapshot, services=services))
        self.refresh()
        if after.generation != before.generation:
            degraded = local is not None
            self._emit(StateChanged(after.name, before, after, self.worker, degraded=degraded))

    def _learn(
        self, read: FleetSnapshot, local: MemoryBackend | None, *, recovered: bool = False
    ) -> FleetSnapshot:
        """Store what was read, except breakers of which this process knows a newer generation.

        Args:
            local: The local backend that it was read from; None: the shared one. If the backend
                was lost or recovered since, what was read is dropped.
            recovered: The shared backend replaces the local one.
        """
        learned: list[tuple[BreakerStatus, BreakerStatus]] = []
        with self._lock:
            former = self._snapshot
            if recovered:
                self._local = None
            elif self._local is not local and former is not None:
                return former
            services = dict(read.services)
            for name, previous in () if former is None else former.services.items():
                status = services.get(name)
                if status is None or status.generation == previous.generation:
                    continue
                if status.generation < previous.generation and not recovered:
                    services[name] = previous
                else:
                    learned.append((previous, status))
            snapshot = replace(read, services=services)
            self._store(snapshot)
        for previous, status in learned:
            delay_s = (self.now() - status.changed_at).total_seconds()
            self._emit(ChangeLearned(status.name, previous, status, max(0.0, delay_s)))
        return snapshot

    def _store(self, snapshot: FleetSnapshot) -> None:
        """Make a snapshot the present one. Call it under the lock."""
        former, self._snapshot = self._snapshot, snapshot
        times = {"read_at": snapshot.read_at, "read_monotonic": snapshot.read_monotonic}
        if former is None or replace(former, **times) != snapshot:
            self._version += 1
            self._changed.notify_all()
        for subscriber in self._subscribers:
            subscriber(snapshot)

    # --- an unreachable backend -----------------------------------------------------------------

    def _do(self, step: Callable[[BreakerBackend], T]) -> tuple[T, MemoryBackend | None]:
        """Run a step in the backend, or in local memory while it is unreachable.

        Returns:
            Its result, and the local backend in which it ran; None: the shared one.
        """
        with self._lock:
            if (local := self._local) is not None:
                return step(local), local
        try:
            return step(self.backend), None
        except Exception as error:
            if not self.backend.is_unreachable(error):
                raise
            return self._fall_back(error, step)

    def _fall_back(
        self, error: Exception, step: Callable[[BreakerBackend], T]
    ) -> tuple[T, MemoryBackend]:
        """Continue with breakers of this process alone, and run a step there."""
        # The backend may recover at any moment, but not between the loss and the step.
        with self._lock:
            local, snapshot = self._local, self._snapshot
            lost = local is None
            if local is None:
                local = self._local = MemoryBackend(
                    snapshot.services.values() if snapshot else (),
                    holds=snapshot.holds if snapshot else (),
                    clock=self._clock or self._estimated_now,
                )
                self._lost_at = self.monotonic()
            result = step(local)
            read = self._read(local)
        self._learn(read, local)
        if lost:
            log.warning("the store is unreachable; this process uses its own breakers: %s", error)
            self._emit(StoreLost(error))
            self._on_lost()
        return result, local

    def _estimated_now(self) -> datetime:
        return datetime.now(UTC) if self._snapshot is None else self.now()

    def listening_failed(self, error: Exception) -> None:
        """Note that the watcher failed; it tries again later."""
        if self.backend.is_unreachable(error):
            self._fall_back(error, self._read)
        else:
            log.error("can't listen for changes to breakers and holds", exc_info=error)

    def recover(self) -> None:
        """Write what happened without the backend to it, and share breakers again.

        Raises:
            Exception: What the backend raises if it is still unreachable.
        """
        events: list[Event] = []
        with self._reading:
            local = self._local
            if local is None:
                return
            shared = self.backend.read(self._policies).services
            for name, policy in self._policies.items():
                theirs, ours = shared[name], local.statuses.get(name)
                if ours is None or theirs.generation != local.initial_generations.get(name, 0):
                    continue  # other processes changed it meanwhile: theirs is more recent
                if rows := local.counts(theirs):
                    self.backend.flush([(policy, row) for row in rows])
                trips = theirs.state == BreakerState.CLOSED and not theirs.kept_closed(local.now())
                if ours.state != BreakerState.CLOSED and trips:
                    generation = theirs.generation + 1
                    after = replace(ours, state=BreakerState.OPEN, generation=generation)
                    if self.backend.change(theirs, after, self.worker):
                        events.append(StateChanged(name, theirs, after, self.worker))
            read = self.backend.read(self._policies)
            lost_for_s = self.monotonic() - self._lost_at
            self._learn(read, None, recovered=True)
        log.warning("the store is reachable again after %.1f s", lost_for_s)
        for event in (*events, StoreRegained(lost_for_s)):
            self._emit(event)
