"""A fleet: a store, the policies of the services and their breakers, in one process."""

import atexit
import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.util import Finalize, register_after_fork
from random import random
from threading import Condition, Lock, RLock
from typing import Any, TypeVar
from uuid import uuid4
from weakref import WeakSet

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.backend import BreakerBackend, MemoryBackend, Trial, TrialAnswer
from dagster_tidegate.breaker.breaker import Admission, Breaker
from dagster_tidegate.breaker.events import (
    CallsCounted,
    ChangeLearned,
    Event,
    Hook,
    StateChanged,
    StoreLost,
    StoreRegained,
)
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.snapshot import FleetSnapshot
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdicts import Outcome
from dagster_tidegate.breaker.watcher import Watcher
from dagster_tidegate.breaker.window import LocalWindow, WindowDelta
from dagster_tidegate.holds import Hold, HoldSource, covering
from dagster_tidegate.settings import GeneralSettings, load
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import compatibility
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.compatibility import OutdatedError
from dagster_tidegate.store.database import UNREACHABLE, Store

T = TypeVar("T")
log = logging.getLogger(__name__)


class UnknownServiceError(LookupError):
    """A breaker was asked for that no policy speaks of."""


class Fleet:
    """The breakers of a process, shared with all processes that use the same store.

    Nothing is read, and no thread started, before the first use. A fork of the process gets its
    own connection, thread and counters.

    When the store can't be reached, calls go on under the process's own breakers, and
    `snapshot().degraded` says so. When it is back, what was seen meanwhile is told to it.

    Args:
        store: The store that the fleet shares, or None for this process alone.
        policies: The services.
        hooks: Take what happens; see `hooks`.
        worker: Name of this process in the store; None makes one up that no other has.
        enabled: False: calls pass and are counted, and nothing trips or pauses. None: what
            `TIDEGATE_ENABLED` says.

    Raises:
        ValueError: If two policies have the same name.

    Example:
        >>> fleet = Fleet(policies=[ServicePolicy(name="openai")])
        >>> fleet.breaker("openai").call(len, "four")
        4
    """

    def __init__(
        self,
        store: Store | BreakerBackend | None = None,
        policies: Iterable[ServicePolicy] = (),
        *,
        hooks: Iterable[Hook] = (),
        worker: str | None = None,
        enabled: bool | None = None,
    ) -> None:
        self.policies: dict[str, ServicePolicy] = {}
        for policy in policies:
            if policy.name in self.policies:
                raise ValueError(f"two policies are named {policy.name!r}")
            self.policies[policy.name] = policy
        self.enabled = load(GeneralSettings).enabled if enabled is None else enabled
        self.hooks: tuple[Hook, ...] = tuple(hooks)
        self.times_calls = any(getattr(hook, "times_calls", False) for hook in self.hooks)
        self._named = worker
        self._shared: BreakerBackend = (
            MemoryBackend()
            if store is None
            else SqlBackend(store)
            if isinstance(store, Store)
            else store
        )
        self._store = store if isinstance(store, Store) else None
        clock: Callable[[], datetime] | None = getattr(store, "clock", None)
        self._clock = clock
        self._ticks: Callable[[], float] = (
            time.monotonic if clock is None else lambda: clock().timestamp()
        )
        self._breakers: dict[str, Breaker] = {}
        self._begin_life()
        _fleets.add(self)

    def _begin_life(self) -> None:
        """Set up what a fork can't share with its parent."""
        self.worker = self._named or f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:6]}"
        self._lock = RLock()
        self._changed = Condition(self._lock)
        self._version = 0
        # Taken in this order, where several are: starting, reading, a breaker's telling, lock.
        self._starting = Lock()
        self._reading = Lock()
        self._snapshot: FleetSnapshot | None = None
        self._own: MemoryBackend | None = None  # while the store can't be reached
        self._lost_at = 0.0
        self._watcher: Watcher | None = None
        self._closed = False

    # --- for all --------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The store that the fleet shares.

        Raises:
            ValueError: If this process shares none.
        """
        if self._store is None:
            raise ValueError("this fleet has no store: make it with Fleet(Store(url), ...)")
        return self._store

    def breaker(self, name: str) -> Breaker:
        """Return the breaker of a service; the same one each time.

        Raises:
            UnknownServiceError: If there is no policy of that name.
        """
        with self._lock:
            if found := self._breakers.get(name):
                return found
            if name not in self.policies:
                known = ", ".join(sorted(self.policies)) or "none"
                raise UnknownServiceError(f"no policy for service {name!r}; there are: {known}")
        return Breaker(policy=self.policies[name], fleet=self)

    def snapshot(self) -> FleetSnapshot:
        """Return what this process knows of breakers and holds; queries only the first time."""
        return self._snapshot or self._start()

    @property
    def outdated(self) -> str | None:
        """Why this process may take no more records: the store has moved on. None if it may."""
        return compatibility.refusal(self.snapshot().oldest_revision)

    def require_current(self) -> None:
        """Check that the store has not moved on.

        Raises:
            OutdatedError: If this version is too old for it; the message says what to do.
        """
        if (refusal := self.outdated) is not None:
            raise OutdatedError(refusal)

    def now(self) -> datetime:
        """Return the database's time (UTC), reckoned from the last read; no query."""
        if self._clock is not None:
            return self._clock()
        read = self.snapshot()
        return read.read_at + timedelta(seconds=time.monotonic() - read.read_ticks)

    def holds_on(
        self,
        *,
        services: Collection[str] = (),
        campaign: str | None = None,
        partition: str | None = None,
    ) -> list[Hold]:
        """Return the live holds that cover a thing, as this process knows them.

        Args:
            services: Names of the services that the thing needs.
            campaign: Name of its campaign, if it has one.
            partition: Its partition, if it is a campaign run.

        Returns:
            The holds, the oldest first; none if the fleet is not enabled.
        """
        if not self.enabled:
            return []
        return covering(
            self.snapshot().holds,
            self.now(),
            services=services,
            campaign=campaign,
            partition=partition,
        )

    def wait_for_change(self, timeout_s: float) -> bool:
        """Wait until this process learns of a change of a breaker or hold.

        Args:
            timeout_s: How long to wait at most, in seconds.

        Returns:
            Whether something changed.
        """
        self.snapshot()
        with self._changed:
            version = self._version
            return self._changed.wait_for(lambda: self._version != version, timeout_s)

    def due_probes(self) -> list[str]:
        """Return the services with a health probe that is due: see `Breaker.probe`."""
        if not self.enabled:
            return []
        now = self.now()
        due = []
        for name, policy in self.policies.items():
            circuit = self.snapshot().services.get(name)
            if circuit is None or policy.probe_url is None or self._hold_on(name) is not None:
                continue
            if circuit.due(now) or circuit.state == BreakerState.HALF_OPEN:
                due.append(name)
        return due

    def refresh(self) -> FleetSnapshot:
        """Read breakers and holds now, instead of when told of a change."""
        with self._reading:
            read, own = self._do(self._read)
            return self._apply(read, own)

    def flush(self) -> None:
        """Tell the fleet of the successes since the last time."""
        with self._lock:
            breakers = list(self._breakers.values())
        told: list[tuple[Breaker, LocalWindow, WindowDelta]] = []
        events: list[Event] = []
        with ExitStack() as locks:
            for breaker in breakers:
                if not breaker._telling.acquire(blocking=False):
                    continue  # a failure is being told, and the successes with it
                locks.callback(breaker._telling.release)
                events += self._count_retired(breaker)
                counts = breaker._admission.counts
                if seen := counts.untold(breaker.policy, self.now()):
                    told.append((breaker, counts, seen))
            if told:
                batch = [(breaker.policy, seen) for breaker, _, seen in told]
                self._do(lambda circuits: circuits.flush(batch))
            for _, counts, seen in told:
                counts.told(seen)
                events.append(_counted(seen))
        for event in events:
            self._emit(event)

    def close(self) -> None:
        """Tell what is untold and let go of thread and connection. Happens at exit by itself."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
        if self._snapshot is not None:
            self.flush()

    # --- for breakers ---------------------------------------------------------------------------

    def _register(self, breaker: Breaker) -> None:
        name = breaker.policy.name
        snapshot = self.snapshot()
        with self._lock:
            if name in self._breakers:
                raise ValueError(f"the fleet has a breaker {name!r}: use fleet.breaker({name!r})")
            self.policies.setdefault(name, breaker.policy)
        if name not in snapshot.services:
            self.refresh()
        with self._lock:
            self._breakers[name] = breaker
            self._reseat(breaker)

    def _current(self, breaker: Breaker) -> Admission:
        """Return what decides on the breaker's calls, after a fork or a hold's end renewed."""
        if self._snapshot is None:
            self._start()
        admission = breaker._admission
        if admission.hold is not None and not admission.hold.live(self.now()):
            self._reseat(breaker)
        return breaker._admission

    def _reseat(self, breaker: Breaker) -> None:
        with self._lock:
            name = breaker.policy.name
            breaker._sit(self.snapshot().services[name], self._hold_on(name))

    def _hold_on(self, name: str) -> Hold | None:
        """Return the operator's hold that forces a breaker open, or None."""
        holds = covering(self.snapshot().holds, self.now(), services=[name])
        return next((hold for hold in holds if hold.source == HoldSource.OPERATOR), None)

    def _tell(self, breaker: Breaker, counts: LocalWindow, label: str) -> None:
        """Tell the fleet of what a worker saw, and trip the breaker if that is enough."""
        if not self.enabled:
            return
        with breaker._telling:
            now = self.now()
            current = breaker._admission.counts is counts
            seen = counts.untold(breaker.policy, now) if current else None
            if seen is None or not (seen.failed or seen.slow):
                return  # of an older generation, or another thread has told of it by now
            (before, tally), _ = self._do(lambda circuits: circuits.record(breaker.policy, seen))
            counts.told(seen)
            if tally.last_ok_at is not None:
                counts.succeeded_until(tally.last_ok_at)
            breaker._row = (counts, counts.totals()[0], tally.failed_in_row)
            after = machine.after_calls(before, breaker.policy, tally, now, label, random())
            events = [*self._count_retired(breaker), _counted(seen)]
        if after is not before:
            self._make(before, after)
        elif before.generation != counts.generation:
            self.refresh()
        for event in events:
            self._emit(event)

    def _make(self, before: BreakerStatus, after: BreakerStatus) -> bool:
        """Make a change, unless somebody else was faster; either way know the result."""
        won, own = self._do(lambda circuits: circuits.change(before, after, self.worker))
        self._after(before, after if won else before, own)
        if not won:
            self.refresh()
        return won

    def _after(
        self, before: BreakerStatus, after: BreakerStatus, own: MemoryBackend | None
    ) -> None:
        """Take over a change that this process made, and tell hooks and listeners."""
        if after is before:
            return
        self._apply_one(after, own)
        self.refresh()
        if after.generation == before.generation:
            return
        self._emit(StateChanged(after.name, before, after, self.worker, degraded=own is not None))
        if breaker := self._breakers.get(after.name):
            breaker._state_changed(before, after)

    def _change(
        self, breaker: Breaker, move: Callable[[BreakerStatus, datetime], BreakerStatus]
    ) -> None:
        """Change a breaker by hand."""
        for _ in range(10):
            before = self.refresh().services[breaker.policy.name]
            after = move(before, self.now())
            if after is before or self._make(before, after):
                return
        raise RuntimeError(f"{breaker.policy.name} changed ten times while it was to be changed")

    def _take_trial(self, breaker: Breaker) -> TrialAnswer:
        answer, own = self._do(lambda circuits: circuits.take_trial(breaker.policy, self.worker))
        self._after(answer.before, answer.after, own)
        if answer.after.generation != breaker._admission.circuit.generation:
            self.refresh()
        return answer

    def _end_trial(
        self, breaker: Breaker, trial: Trial, outcome: Outcome, retry_at: datetime | None
    ) -> None:
        (before, after), own = self._do(
            lambda circuits: circuits.end_trial(breaker.policy, trial, outcome, retry_at)
        )
        breaker._ask_at = float("-inf")
        self._after(before, after, own)
        if before.generation != trial.generation:
            self.refresh()

    def _emit(self, event: Event) -> None:
        for hook in self.hooks:
            try:
                hook(event)
            except Exception:  # a hook's fault is not the breaker's
                log.exception("a hook failed on %r", event)

    # --- what this process knows ----------------------------------------------------------------

    def _start(self) -> FleetSnapshot:
        with self._starting:
            if self._snapshot is not None:
                return self._snapshot
            snapshot = self.refresh()
            if self._store is not None and not self._closed:
                self._watcher = Watcher(self, self._store.engine)
                self._watcher.start()
            return snapshot

    def _apply(
        self, read: FleetSnapshot, own: MemoryBackend | None, *, regained: bool = False
    ) -> FleetSnapshot:
        """Know what was read, breaker by breaker, unless something newer is known already.

        Args:
            read: What was read.
            own: The memory in which, or None: in the store. If the store was lost or regained
                since, what was read is of no use any more.
            regained: The store takes the place of the process's own memory.
        """
        learned: list[tuple[BreakerStatus, BreakerStatus]] = []
        with self._changed:
            if regained:
                self._own = None
            elif self._own is not own and self._snapshot is not None:
                return self._snapshot
            known: Mapping[str, BreakerStatus] = (
                {} if self._snapshot is None else self._snapshot.services
            )
            services = dict(read.services)
            for name, circuit in read.services.items():
                former = known.get(name)
                if former is None:
                    continue
                if former.generation > circuit.generation and not regained:
                    services[name] = former
                elif former.generation != circuit.generation:
                    learned.append((former, circuit))
            former_snapshot = self._snapshot
            self._snapshot = replace(read, services=services)
            changed = (
                former_snapshot is None
                or former_snapshot.services != services
                or former_snapshot.holds != read.holds
                or former_snapshot.degraded != read.degraded
                or former_snapshot.oldest_revision != read.oldest_revision
            )
            if changed:
                self._version += 1
                self._changed.notify_all()
            for breaker in self._breakers.values():
                breaker._ask_at = float("-inf")
                if changed:
                    self._reseat(breaker)
            result = self._snapshot
        for former, circuit in learned:
            delay_s = (self.now() - circuit.changed_at).total_seconds()
            self._emit(ChangeLearned(circuit.name, former, circuit, max(0.0, delay_s)))
        return result

    def _apply_one(self, circuit: BreakerStatus, own: MemoryBackend | None) -> None:
        with self._changed:
            if self._own is not own:
                return  # the generations of the one say nothing about those of the other
            snapshot = self.snapshot()
            self._snapshot = replace(
                snapshot, services={**snapshot.services, circuit.name: circuit}
            )
            self._version += 1
            self._changed.notify_all()
            if breaker := self._breakers.get(circuit.name):
                self._reseat(breaker)

    def _count_retired(self, breaker: Breaker) -> list[Event]:
        """Count the calls of older generations; they decide nothing any more."""
        events: list[Event] = []
        while breaker._retired:
            if seen := breaker._retired.pop().untold(breaker.policy, self.now()):
                events.append(_counted(seen))
        return events

    # --- the store, lost and regained -----------------------------------------------------------

    def _do(self, step: Callable[[BreakerBackend], T]) -> tuple[T, MemoryBackend | None]:
        """Do a step in the store, or in the process's own memory if that can't be reached.

        Returns:
            Its result, and the memory in which it was done; None: in the store.
        """
        with self._lock:
            if (own := self._own) is not None:
                return step(own), own
        try:
            return step(self._shared), None
        except UNREACHABLE as error:
            return self._lose(error, step)

    def _read(self, circuits: BreakerBackend) -> FleetSnapshot:
        return replace(circuits.read(self.policies), degraded=circuits is not self._shared)

    def _lose(
        self, error: Exception, step: Callable[[BreakerBackend], T]
    ) -> tuple[T, MemoryBackend]:
        """Go on under the process's own breakers, and do a step there."""
        if "no such table" in str(error) or "no such column" in str(error):
            raise error  # the store is there, and not set up
        # The store may be back at any moment; not between the loss and the step.
        with self._lock:
            own, known = self._own, self._snapshot
            lost = own is None
            if own is None:
                own = self._own = MemoryBackend(
                    known.services.values() if known else (),
                    holds=known.holds if known else (),
                    clock=self._clock or self._reckon,
                )
                self._lost_at = self._ticks()
            result = step(own)
            read = self._read(own)
        self._apply(read, own)
        if lost:
            log.warning("the store can't be reached; each process has its own breakers: %s", error)
            self._emit(StoreLost(error))
            if self._watcher is not None:
                self._watcher.wake()
        return result, own

    def _watch_failed(self, error: Exception) -> None:
        """Go on without a watcher, which tries again by itself."""
        if isinstance(error, UNREACHABLE):
            try:
                self._lose(error, self._read)
                return
            except UNREACHABLE:
                pass  # it is there, and something else is wrong with it
        log.error("can't learn of changes to breakers and holds", exc_info=error)

    def _prune(self) -> None:
        """Delete what no window reaches any more."""
        if isinstance(self._shared, SqlBackend):
            self._shared.prune(self.policies.values())

    def _reckon(self) -> datetime:
        return datetime.now(UTC) if self._snapshot is None else self.now()

    def _regain(self) -> None:
        """Tell the store what was seen without it, and share breakers again.

        Raises:
            sqlalchemy.exc.OperationalError: If the store still can't be reached.
        """
        events: list[Event] = []
        with self._reading:
            own = self._own
            if own is None:
                return
            stored = self._shared.read(self.policies)
            for name, policy in self.policies.items():
                there, here = stored.services[name], own.circuits.get(name)
                if here is None or there.generation != own.began.get(name, 0):
                    continue  # others changed it meanwhile: they know better than this process
                rows = [row for row in own.rows.values() if row.service == name]
                rows = [row for row in rows if row.generation == there.generation]
                if rows:
                    self._shared.flush([(policy, row) for row in rows])
                if here.state != BreakerState.CLOSED and there.state == BreakerState.CLOSED:
                    after = replace(here, state=BreakerState.OPEN, generation=there.generation + 1)
                    if self._shared.change(there, after, self.worker):
                        events.append(StateChanged(name, there, after, self.worker))
            read = self._shared.read(self.policies)
            lost_for_s = self._ticks() - self._lost_at
            self._apply(read, None, regained=True)
        log.warning("the store is back after %.1f s", lost_for_s)
        for event in (*events, StoreRegained(lost_for_s)):
            self._emit(event)

    def _after_fork(self) -> None:
        """In the child: leave the parent's thread, connections and counters alone."""
        _parents.append(self._watcher)
        self._begin_life()
        if self._store is not None:
            self._store.engine.dispose(close=False)
        for breaker in self._breakers.values():
            breaker._begin_life()


def _counted(seen: WindowDelta) -> CallsCounted:
    return CallsCounted(seen.service, seen.ok, seen.slow, seen.failed)


_fleets: WeakSet[Fleet] = WeakSet()
# What a child inherited and must not close: that would end the parent's connection.
_parents: list[Any] = []


def _close_all() -> None:
    for fleet in list(_fleets):
        fleet.close()


def _after_fork() -> None:
    for fleet in list(_fleets):
        fleet._after_fork()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_close_all)
# A process started by multiprocessing runs its finalizers at its end, and not what atexit has.
register_after_fork(_fleets, lambda _: Finalize(None, _close_all, exitpriority=10))
