"""A storage for plain `pybreaker.CircuitBreaker`s that shares their state through a backend."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from random import random

import pybreaker

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.backend import BreakerBackend
from dagster_tidegate.breaker.breaker import PYBREAKER_STATES
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind
from dagster_tidegate.breaker.window import LocalWindow, WindowStats
from dagster_tidegate.statuses import BreakerState

STATES = {theirs: ours for ours, theirs in PYBREAKER_STATES.items()}


class SharedStorage(pybreaker.CircuitBreakerStorage):
    """Shares the state of a plain pybreaker through a backend.

    For programs with breakers of their own, of a class that can't be replaced. Changes are
    compare-and-set, times are the database's, and a trip places the breaker's hold. Each call
    still costs several statements and holds pybreaker's lock: use `Fleet.breaker` where you can.

    Args:
        backend: Where the breakers are kept: `store.breakers.SqlBackend(store)`.
        policy: The service. pybreaker decides when to trip, the policy for how long.
        worker: Unique name of this process in the backend.

    Example:
        >>> from dagster_tidegate.breaker.backend import MemoryBackend
        >>> storage = SharedStorage(MemoryBackend(), ServicePolicy(name="openai"), "worker-1")
        >>> pybreaker.CircuitBreaker(state_storage=storage).call(len, "four")
        4
    """

    def __init__(self, backend: BreakerBackend, policy: ServicePolicy, worker: str) -> None:
        super().__init__("tidegate")
        self._backend = backend
        self._policy = policy
        self._worker = worker
        self._window = LocalWindow(policy.name, -1, worker, time.monotonic)
        self._in_row = 0

    def _status(self) -> BreakerStatus:
        return self._backend.read([self._policy.name]).services[self._policy.name]

    def _move(self, move: Callable[[BreakerStatus], BreakerStatus]) -> None:
        for _ in range(10):
            before = self._status()
            after = move(before)
            if after is before or self._backend.change(before, after, self._worker):
                return
        raise RuntimeError(
            f"other processes kept changing the breaker of {self._policy.name}: try again"
        )

    @property
    def state(self) -> str:
        """The state in pybreaker's spelling."""
        return PYBREAKER_STATES[self._status().state]

    @state.setter
    def state(self, state: str) -> None:
        if state not in STATES:
            raise ValueError(f"unknown state {state!r}, valid states: {', '.join(STATES)}")
        target, now = STATES[state], self._backend.now()

        def move(status: BreakerStatus) -> BreakerStatus:
            if status.state == target:
                return status
            if target == BreakerState.OPEN:
                reason = f"{self._in_row} failures, by pybreaker"
                verdict = Verdict(VerdictKind.FAILURE, reason=reason)
                return machine.opened(status, self._policy, now, verdict, random())
            if target == BreakerState.HALF_OPEN:
                return machine.half_opened(status, now)
            return machine.closed(status, now)

        self._move(move)

    def increment_counter(self) -> None:
        """Count a failure."""
        window = self._present_window()
        window.fail(self._backend.now(), None)
        stats = self._report(window)
        if stats.last_ok_at is not None:
            window.succeeded_until(stats.last_ok_at)
        self._in_row = stats.failed_in_row

    def reset_counter(self) -> None:
        """Start counting failures again."""
        window = self._present_window()
        if self._in_row:
            window.last_ok = window.monotonic()
            window.ok()
            self._report(window)
            self._in_row = 0

    def _present_window(self) -> LocalWindow:
        """Return the window of the present generation."""
        generation = self._status().generation
        if self._window.generation != generation:
            self._window = LocalWindow(self._policy.name, generation, self._worker, time.monotonic)
            self._in_row = 0
        return self._window

    def _report(self, window: LocalWindow) -> WindowStats:
        delta = window.pending(self._policy, self._backend.now())
        assert delta is not None
        _, stats = self._backend.record(self._policy, delta)
        window.flushed(delta)
        return stats

    @property
    def counter(self) -> int:
        """Failures in a row of all processes, at the last failure of this one."""
        self._present_window()
        return self._in_row

    def increment_success_counter(self) -> None:
        """Count a trial call that succeeded."""
        self._move(lambda status: replace(status, trial_successes=status.trial_successes + 1))

    def reset_success_counter(self) -> None:
        """Start counting trial calls again."""
        self._move(
            lambda status: replace(status, trial_successes=0) if status.trial_successes else status
        )

    @property
    def success_counter(self) -> int:
        """Trial calls that succeeded."""
        return self._status().trial_successes

    @property
    def opened_at(self) -> datetime | None:
        """When it last opened."""
        status = self._status()
        return status.changed_at if status.state == BreakerState.OPEN else None

    @opened_at.setter
    def opened_at(self, datetime: datetime) -> None:
        """Ignore the worker's clock: the change of state has the database's time."""
