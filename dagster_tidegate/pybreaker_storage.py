"""The store as the storage of a plain `pybreaker.CircuitBreaker`, beside breakers of a fleet."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from random import random

import pybreaker

from dagster_tidegate import circuit as machine
from dagster_tidegate.breaker import PYBREAKER_STATES
from dagster_tidegate.circuit import Circuit
from dagster_tidegate.circuits import Circuits
from dagster_tidegate.policy import ServicePolicy
from dagster_tidegate.seen import Seen, bucket_of
from dagster_tidegate.statuses import BreakerState

STATES = {theirs: ours for ours, theirs in PYBREAKER_STATES.items()}


class SharedStorage(pybreaker.CircuitBreakerStorage):
    """Lets a plain pybreaker share its state through the store.

    It keeps what pybreaker's engine can't: changes are compare-and-set, time is the database's,
    and a trip places the breaker's hold. It can't give that engine what it lacks: each call still
    costs several statements and holds a lock. Use `Fleet.breaker` where you can.

    Args:
        circuits: Where the breakers are kept: `store.breakers.StoredCircuits(store)`.
        policy: The service; pybreaker decides when to trip, the policy only for how long.
        worker: Name of this process in the store; no other may have it.

    Example:
        >>> from dagster_tidegate.circuits import MemoryCircuits
        >>> storage = SharedStorage(MemoryCircuits(), ServicePolicy(name="openai"), "worker-1")
        >>> pybreaker.CircuitBreaker(state_storage=storage).call(len, "four")
        4
    """

    def __init__(self, circuits: Circuits, policy: ServicePolicy, worker: str) -> None:
        super().__init__("tidegate")
        self._circuits = circuits
        self._policy = policy
        self._worker = worker
        self._in_row = 0

    def _circuit(self) -> Circuit:
        return self._circuits.read([self._policy.name]).services[self._policy.name]

    def _move(self, move: Callable[[Circuit], Circuit]) -> None:
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

        def move(circuit: Circuit) -> Circuit:
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
        self._in_row = self.counter + 1
        self._tell(failed=1)

    def reset_counter(self) -> None:
        """Begin to count failures anew."""
        if self.counter:
            self._in_row = 0
            self._tell(ok=1)

    def _tell(self, *, ok: int = 0, failed: int = 0) -> None:
        now = self._circuits.now()
        seen = Seen(
            service=self._policy.name,
            generation=self._circuit().generation,
            worker=self._worker,
            bucket=bucket_of(self._policy, now),
            at=now,
            ok=ok,
            failed=failed,
            failed_in_row=self._in_row,
            row_since=now if failed else None,
            last_ok_at=now if ok else None,
            last_failed_at=now if failed else None,
        )
        self._circuits.record(self._policy, seen)

    @property
    def counter(self) -> int:
        """Failures in a row of this process."""
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
