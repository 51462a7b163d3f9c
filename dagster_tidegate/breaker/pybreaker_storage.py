"""The store as the storage of a plain `pybreaker.CircuitBreaker`, beside breakers of a fleet."""

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
from dagster_tidegate.breaker.state_machine import BreakerStatus, WindowStats
from dagster_tidegate.breaker.window import LocalWindow
from dagster_tidegate.statuses import BreakerState

STATES = {theirs: ours for ours, theirs in PYBREAKER_STATES.items()}


class SharedStorage(pybreaker.CircuitBreakerStorage):
    """Lets a plain pybreaker share its state through the store.

    It keeps what pybreaker's engine can't: changes are compare-and-set, time is the database's,
    and a trip places the breaker's hold. It can't give that engine what it lacks: each call still
    costs several statements and holds a lock. Use `Fleet.breaker` where you can.

    Args:
        circuits: Where the breakers are kept: `store.breakers.SqlBackend(store)`.
        policy: The service; pybreaker decides when to trip, the policy only for how long.
        worker: Name of this process in the store; no other may have it.

    Example:
        >>> from dagster_tidegate.breaker.backend import MemoryBackend
        >>> storage = SharedStorage(MemoryBackend(), ServicePolicy(name="openai"), "worker-1")
        >>> pybreaker.CircuitBreaker(state_storage=storage).call(len, "four")
        4
    """

    def __init__(self, circuits: BreakerBackend, policy: ServicePolicy, worker: str) -> None:
        super().__init__("tidegate")
        self._circuits = circuits
        self._policy = policy
        self._worker = worker
        self._counts = LocalWindow(policy.name, -1, worker, time.monotonic)
        self._in_row = 0

    def _circuit(self) -> BreakerStatus:
        return self._circuits.read([self._policy.name]).services[self._policy.name]

    def _move(self, move: Callable[[BreakerStatus], BreakerStatus]) -> None:
        for _ in range(10):
            before = self._circuit()
            after = move(before)
            if after is before or self._circuits.change(before, after, self._worker):
                return
        raise RuntimeError(f"{self._policy.name} changed ten times while it was to be changed")

    @property
    def state(self) -> str:
        """The state, as pybreaker writes it."""
        return PYBREAKER_STATES[self._circuit().state]

    @state.setter
    def state(self, state: str) -> None:
        if state not in STATES:
            raise ValueError(f"unknown state {state!r}, valid states: {', '.join(STATES)}")
        target, now = STATES[state], self._circuits.now()

        def move(circuit: BreakerStatus) -> BreakerStatus:
            if circuit.state == target:
                return circuit
            if target == BreakerState.OPEN:
                reason = f"{self._in_row} failures, by pybreaker"
                return machine.opened(circuit, self._policy, now, reason, random())
            if target == BreakerState.HALF_OPEN:
                return machine.half_opened(circuit, now)
            return machine.closed(circuit, now)

        self._move(move)

    def increment_counter(self) -> None:
        """Count a failure."""
        counts = self._count()
        counts.fail(self._circuits.now(), None)
        tally = self._tell(counts)
        if tally.last_ok_at is not None:
            counts.succeeded_until(tally.last_ok_at)
        self._in_row = tally.failed_in_row

    def reset_counter(self) -> None:
        """Begin to count failures anew."""
        counts = self._count()
        if self._in_row:
            counts.last_ok = counts.ticks()
            counts.ok()
            self._tell(counts)
            self._in_row = 0

    def _count(self) -> LocalWindow:
        """Return the counters of the present generation."""
        generation = self._circuit().generation
        if self._counts.generation != generation:
            self._counts = LocalWindow(self._policy.name, generation, self._worker, time.monotonic)
            self._in_row = 0
        return self._counts

    def _tell(self, counts: LocalWindow) -> WindowStats:
        seen = counts.untold(self._policy, self._circuits.now())
        assert seen is not None
        _, tally = self._circuits.record(self._policy, seen)
        counts.told(seen)
        return tally

    @property
    def counter(self) -> int:
        """Failures in a row, of all processes, when this one failed last."""
        self._count()
        return self._in_row

    def increment_success_counter(self) -> None:
        """Count a trial call that succeeded."""
        self._move(lambda circuit: replace(circuit, trial_successes=circuit.trial_successes + 1))

    def reset_success_counter(self) -> None:
        """Begin to count trial calls anew."""
        self._move(
            lambda circuit: (
                replace(circuit, trial_successes=0) if circuit.trial_successes else circuit
            )
        )

    @property
    def success_counter(self) -> int:
        """Trial calls that succeeded."""
        return self._circuit().trial_successes

    @property
    def opened_at(self) -> datetime | None:
        """When it opened last."""
        circuit = self._circuit()
        return circuit.changed_at if circuit.state == BreakerState.OPEN else None

    @opened_at.setter
    def opened_at(self, datetime: datetime) -> None:
        """Ignore the worker's clock: the change of state has the database's time."""
