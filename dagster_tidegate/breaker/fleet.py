"""A fleet: the breakers of all services in one process, shared through a backend."""

import asyncio
import atexit
import os
import time
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import chain
from multiprocessing.util import Finalize, register_after_fork
from threading import Lock, RLock
from weakref import WeakSet

from dagster_tidegate.breaker.backend import BreakerBackend, MemoryBackend
from dagster_tidegate.breaker.breaker import Breaker
from dagster_tidegate.breaker.engine import Engine, operator_hold
from dagster_tidegate.breaker.errors import (
    BreakerOpenError,
    OutdatedError,
    UnknownServiceError,
)
from dagster_tidegate.breaker.events import Event, Hook, Hooks
from dagster_tidegate.breaker.evidence import note_service
from dagster_tidegate.breaker.limiter import MIN_PAUSE_S
from dagster_tidegate.breaker.policy import ServicePolicy, adopted_pools, wait_in_place_s
from dagster_tidegate.breaker.shared_state import SharedState
from dagster_tidegate.breaker.snapshot import FleetSnapshot
from dagster_tidegate.breaker.watcher import Watcher
from dagster_tidegate.holds import Hold, covering
from dagster_tidegate.pools import PoolNeeds, needs, whole_of
from dagster_tidegate.settings import GeneralSettings, load

FOREVER = datetime.max.replace(tzinfo=UTC)
TRIAL_WAIT_S = 0.2


class Fleet:
    """The breakers of a process, shared with all processes that use the same backend.

    Nothing is read and no thread started before the first use. A forked child gets its own
    connections, thread and counters.

    While the backend is unreachable, calls continue under breakers of this process alone, and
    `snapshot().degraded` is true. When it recovers, they are written to it.

    Args:
        backend: Where the breakers are kept, such as `store.breakers.SqlBackend`; None: in the
            memory of this process.
        hooks: Receive the events; see `events`.
        worker: Name of this process in the backend; None makes up a unique one.
        enabled: False: calls pass and are counted, and nothing trips or pauses. None: the
            setting `TIDEGATE_ENABLED`.
        error: What a call that a breaker refuses raises.

    Raises:
        ValueError: If two policies have the same name.

    Example:
        >>> fleet = Fleet(policies=[ServicePolicy(name="openai")])
        >>> fleet.breaker("openai").call(len, "four")
        4
    """

    def __init__(
        self,
        backend: BreakerBackend | None = None,
        policies: Iterable[ServicePolicy] = (),
        *,
        hooks: Iterable[Hook] = (),
        worker: str | None = None,
        enabled: bool | None = None,
        error: type[BreakerOpenError] = BreakerOpenError,
    ) -> None:
        self.policies: dict[str, ServicePolicy] = {}
        for policy in chain.from_iterable(policy.with_parts() for policy in policies):
            if policy.name in self.policies:
                raise ValueError(f"two policies are named {policy.name!r}")
            self.policies[policy.name] = policy
        self.enabled = load(GeneralSettings).enabled if enabled is None else enabled
        self.hooks = Hooks(hooks)
        self._error = error
        self.state = SharedState(
            MemoryBackend() if backend is None else backend,
            self.policies,
            worker=worker,
            emit=self.hooks.emit,
            on_start=self._start_watcher,
            on_lost=self._wake_watcher,
        )
        self._breakers: dict[str, Breaker] = {}
        self._reset()
        _fleets.add(self)

    def _reset(self) -> None:
        """Create what a forked child must not share with its parent."""
        self._registering = RLock()
        self._closing = Lock()
        self._watcher: Watcher | None = None
        self._closed = False

    @property
    def worker(self) -> str:
        """Name of this process in the backend."""
        return self.state.worker

    def breaker(self, name: str) -> Breaker:
        """Return the breaker of a service; the same object each time.

        Raises:
            UnknownServiceError: If there is no policy of that name.
        """
        if breaker := self._breakers.get(name):
            return breaker
        if name not in self.policies:
            names = ", ".join(sorted(self.policies)) or "none"
            raise UnknownServiceError(f"no policy for service {name!r}; there are: {names}")
        with self._registering:
            breaker = self._breakers.get(name)
            return breaker or Breaker(policy=self.policies[name], fleet=self)

    def first_available(self, *services: str) -> Breaker:
        """Return the breaker of the first of several services that may be called now.

        Use it if any of several services can process a record: call the returned one, and ask
        again for each record and each try. A service may be called if it is not held and its
        breaker is closed, or half open with a free trial call, which the caller then has. Waits
        for a throttled service for up to `linger_s` of its policy (at least 5 seconds), so that a
        burst does not exhaust the next service too. On an event loop it does not wait; use
        `asyncio.to_thread`.

        Args:
            services: Their names, the preferred one first.

        Raises:
            UnknownServiceError: If there is no policy of a name.
            BreakerOpenError: If none may be called: that of the service to be tried first.

        Example:
            >>> policies = [ServicePolicy(name=name) for name in ("apollo", "clearbit")]
            >>> fleet = Fleet(policies=policies)
            >>> fleet.breaker("apollo").open()
            True
            >>> fleet.first_available("apollo", "clearbit").name
            'clearbit'
        """
        if not services:
            raise ValueError("first_available() needs the names of services")
        breakers = [self.breaker(name) for name in services]
        for breaker in breakers:
            if self._lets_in(breaker):
                note_service(services, breaker.policy.name)
                return breaker
        refused: list[tuple[datetime, BreakerOpenError]] = []
        for breaker in breakers:
            refusal = breaker.engine.refusal()
            if refusal is None:  # it has recovered just now
                note_service(services, breaker.policy.name)
                return breaker
            refused.append((refusal.retry_at or FOREVER, refusal))
        _, first = min(refused, key=lambda each: each[0])
        raise breakers[0].engine.refuse(first)

    def _lets_in(self, breaker: Breaker) -> bool:
        engine = breaker.engine
        if engine.reserve():
            return True
        patience_s = 0.0 if _on_event_loop() else wait_in_place_s(breaker.policy)
        deadline = time.monotonic() + patience_s
        while (throttle := engine.throttle) is not None:
            wait_s = TRIAL_WAIT_S  # for the trial call of another process
            if throttle.throttled_until is not None:
                wait_s = (throttle.throttled_until - self.now()).total_seconds()
            if wait_s > deadline - time.monotonic():
                return False
            self.wait_for_change(max(wait_s, MIN_PAUSE_S))
            if engine.reserve():
                return True
        return False

    def register(self, breaker: Breaker, policy: ServicePolicy) -> None:
        """Add a breaker, and give it its engine.

        Raises:
            ValueError: If there is a breaker of that name.
        """
        name = policy.name
        with self._registering:
            if name in self._breakers:
                raise ValueError(f"the fleet has a breaker {name!r}: use fleet.breaker({name!r})")
            self.policies.setdefault(name, policy)
            if name not in self.state.snapshot().services:
                self.state.refresh()
            whole = whole_of(name)
            breaker.engine = Engine(
                policy,
                self.state,
                self.hooks,
                parent=self.breaker(whole).engine
                if whole != name and whole in self.policies
                else None,
                error=self._error,
                enabled=self.enabled,
                on_change=breaker.state_changed,
            )
            self.state.subscribe(breaker.engine.update)
            self._breakers[name] = breaker
            if self.enabled and not policy.enforce:
                breaker.close()  # it may be open from a time when it was enforced

    def needs(self, pool: str | None) -> PoolNeeds:
        """Return what an op or asset in a Dagster pool needs, of the services of this fleet."""
        return needs(pool, self.policies, adopted_pools(self.policies.values()))

    def snapshot(self) -> FleetSnapshot:
        """Return what this process knows of breakers and holds; only the first call reads."""
        return self.state.snapshot()

    def refresh(self) -> FleetSnapshot:
        """Read breakers and holds now, without waiting for a notification."""
        return self.state.refresh()

    def now(self) -> datetime:
        """Return the backend's time (UTC), computed from the last read; no query."""
        return self.state.now()

    def wait_for_change(self, timeout_s: float) -> bool:
        """Wait until a breaker or hold changes; return False after `timeout_s` seconds.

        A change from before the call counts for nothing: look first, and bound the wait.
        """
        return self.state.wait_for_change(timeout_s)

    @property
    def outdated(self) -> str | None:
        """Why this process may process no more records; None if it may."""
        return self.snapshot().outdated

    def require_current(self) -> None:
        """Check that this version is recent enough for the store.

        Raises:
            OutdatedError: If it is not; the message says what to do.
        """
        if (reason := self.outdated) is not None:
            raise OutdatedError(reason)

    def holds_on(
        self,
        *,
        services: Collection[str] = (),
        campaign: str | None = None,
        partition: str | None = None,
    ) -> list[Hold]:
        """Return the live holds that cover something, as this process knows them.

        Returns:
            The holds, oldest first; none if the fleet is not enabled.
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

    def due_probes(self) -> list[str]:
        """Return the services whose probe or repair check is due: see `Breaker.probe`."""
        if not self.enabled:
            return []
        now, snapshot = self.now(), self.snapshot()
        due = []
        for name, policy in self.policies.items():
            status = snapshot.services.get(name)
            if status is None:
                continue
            if status.is_denied:
                waiting = policy.repair_check is not None
            else:
                asked = status.due(now) or (status.is_half_open and not status.needs_real_call)
                waiting = policy.probe_url is not None and asked
            if waiting and operator_hold(snapshot, name, now) is None:
                due.append(name)
        return due

    def flush(self, *, final: bool = False) -> None:
        """Report the successes since the last report.

        Args:
            final: Whether this process makes no more calls, and gives back all that it may make.
        """
        events: list[Event] = []
        with ExitStack() as locks:
            batch = []
            for breaker in list(self._breakers.values()):
                engine = breaker.engine
                delta = locks.enter_context(engine.flushing(events))
                if delta is not None:
                    batch.append((engine.policy, delta))
            if batch:
                self.state.flush(batch)
        for breaker in list(self._breakers.values()):
            breaker.engine.settle(final=final)
        for event in events:
            self.hooks.emit(event)

    def close(self) -> None:
        """Report the remaining successes, and stop the thread. Called at exit of the process."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
        if self.state.started:
            self.flush(final=True)

    def _start_watcher(self) -> None:
        with self._closing:
            if self.state.backend.shared and not self._closed:
                self._watcher = Watcher(self.state, self.flush)
                self._watcher.start()

    def _wake_watcher(self) -> None:
        if (watcher := self._watcher) is not None:
            watcher.wake()

    def after_fork(self) -> None:
        """In a forked child: leave the parent's thread, connections and counters alone."""
        _inherited.append(self._watcher)
        self._reset()
        self.state.after_fork()
        for breaker in self._breakers.values():
            breaker.after_fork()


_fleets: WeakSet[Fleet] = WeakSet()
# A child must not close these: that would end the parent's connections.
_inherited: list[Watcher | None] = []


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _close_all() -> None:
    for fleet in list(_fleets):
        fleet.close()


def _after_fork() -> None:
    for fleet in list(_fleets):
        fleet.after_fork()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_close_all)
# A process started by multiprocessing runs finalizers at its end, and not atexit.
register_after_fork(_fleets, lambda _: Finalize(None, _close_all, exitpriority=10))
