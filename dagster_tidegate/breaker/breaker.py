"""The breaker of a service: a `pybreaker.CircuitBreaker` that the whole fleet shares."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from random import random
from threading import Lock
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, TypeVar

import pybreaker

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.backend import Trial
from dagster_tidegate.breaker.events import CallEnded, CallFailed, CallRefused
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdicts import Classify, Outcome, default_outcome, label, retry_after
from dagster_tidegate.breaker.window import LocalWindow
from dagster_tidegate.holds import Hold
from dagster_tidegate.statuses import BreakerState

if TYPE_CHECKING:
    from dagster_tidegate.breaker.fleet import Fleet

T = TypeVar("T")
log = logging.getLogger(__name__)

ASK_AGAIN_S = 1.0
"""After it was refused a trial call, a process asks again when told of a change, or so late."""

PYBREAKER_STATES = {
    BreakerState.CLOSED: pybreaker.STATE_CLOSED,
    BreakerState.OPEN: pybreaker.STATE_OPEN,
    BreakerState.HALF_OPEN: pybreaker.STATE_HALF_OPEN,
}
_STATE_CLASSES = {
    BreakerState.CLOSED: pybreaker.CircuitClosedState,
    BreakerState.OPEN: pybreaker.CircuitOpenState,
    BreakerState.HALF_OPEN: pybreaker.CircuitHalfOpenState,
}
_DEFERRED = frozenset({GeneratorType, CoroutineType, AsyncGeneratorType})


class BreakerOpenError(pybreaker.CircuitBreakerError):
    """A call was not made, or failed, because the service is not to be called now.

    Attributes:
        service: Name of the service.
        state: State of its breaker; `open` too where an operator holds the service.
        since: Since when (UTC).
        reason: Why, for people.
        retry_at: When it is worth trying again (UTC); None if nobody knows.
    """

    def __init__(
        self,
        service: str,
        state: BreakerState,
        since: datetime,
        reason: str,
        retry_at: datetime | None,
    ) -> None:
        super().__init__(service, state, since, reason, retry_at)
        self.service = service
        self.state = state
        self.since = since
        self.reason = reason
        self.retry_at = retry_at

    def __str__(self) -> str:
        until = "" if self.retry_at is None else f"; retry at {self.retry_at:%Y-%m-%d %H:%M:%S} UTC"
        state = str(self.state).replace("_", " ")
        return f"{self.service} is {state} since {self.since:%H:%M:%S} UTC ({self.reason}){until}"


class Admission:
    """What decides on a call, and counts it: replaced as a whole when something changes."""

    __slots__ = ("circuit", "counts", "fast", "hold", "passes")

    def __init__(
        self,
        circuit: BreakerStatus,
        counts: LocalWindow,
        *,
        hold: Hold | None,
        passes: bool,
        fast: bool,
    ) -> None:
        self.circuit = circuit
        self.counts = counts
        self.hold = hold
        self.passes = passes
        self.fast = fast


class _Ticket:
    """A call that was let in."""

    __slots__ = ("counts", "started", "trial")

    def __init__(self, counts: LocalWindow, trial: Trial | None = None) -> None:
        self.counts = counts
        self.started = counts.ticks()
        self.trial = trial


class Breaker(pybreaker.CircuitBreaker):
    """The circuit breaker of a service, shared by all processes of a fleet.

    It has the interface of `pybreaker.CircuitBreaker`, whose parameters it takes, and can stand
    where one does. Get one from `Fleet.breaker`; one that is made without a fleet is for this
    process alone.

    A closed breaker does no I/O: admission looks at what the process knows, and a success is
    counted in memory. A failure is told to the fleet at once. Nothing is locked during the call.
    Only what derives from `Exception` can be a failure; see `outcomes.default_outcome`.

    Args:
        fail_max: Consecutive failures that trip it, where no policy is given.
        reset_timeout: Seconds until the first probe, where no policy is given.
        success_threshold: Trial calls that must succeed, where no policy is given.
        exclude: Exception classes, or predicates on an exception, that are not failures. They
            count neither way.
        listeners: Listeners of pybreaker. A change of state is told once in the fleet.
        state_storage: Not supported; a fleet's store takes its place.
        name: Name of the service, where no policy is given.
        throw_new_error_on_trip: Whether a failure that leaves the breaker open is raised as
            `BreakerOpenError` (from the failure), else as it is.
        policy: Policy of the service.
        fleet: The fleet that shares it.

    Raises:
        ValueError: If a `state_storage` is given, or the fleet has a breaker of that name.

    Example:
        >>> breaker = Breaker(fail_max=3, name="openai")
        >>> breaker.call(len, "four")
        4
    """

    def __init__(
        self,
        fail_max: int = 5,
        reset_timeout: float = 60,
        success_threshold: int = 1,
        exclude: Iterable[type[BaseException] | Callable[[Any], bool]] | None = None,
        listeners: Iterable[pybreaker.CircuitBreakerListener] | None = None,
        state_storage: pybreaker.CircuitBreakerStorage | None = None,
        name: str | None = None,
        throw_new_error_on_trip: bool = True,
        *,
        policy: ServicePolicy | None = None,
        fleet: Fleet | None = None,
    ) -> None:
        # Not pybreaker's own __init__: it sets up the engine that this class replaces.
        from dagster_tidegate.breaker.fleet import (
            Fleet,  # Fleet makes breakers, and a breaker a Fleet
        )

        if state_storage is not None:
            raise ValueError("a Breaker has no state_storage: give a Fleet with a store instead")
        if policy is None:
            policy = ServicePolicy(
                name=name or "unnamed",
                consecutive_failures=fail_max,
                reset_timeout_s=reset_timeout,
                reset_timeout_cap_s=max(600.0, reset_timeout),
                success_threshold=success_threshold,
                jitter=0.0,
            )
        self.policy = policy
        self.classify: Classify = self._by_policy
        self._name = name or policy.name
        self._excluded_exceptions = list(exclude or ())
        self._listeners = list(listeners or ())
        self._throw_new_error_on_trip = throw_new_error_on_trip
        self.fleet = Fleet(policies=[policy]) if fleet is None else fleet
        self._begin_life()
        self.fleet._register(self)

    def _begin_life(self) -> None:
        """Set up what a fork can't share with its parent."""
        self._lock = Lock()  # pybreaker's methods for exclusions and listeners take it
        self._telling = Lock()
        self._ask_at = float("-inf")
        self._retired: list[LocalWindow] = []
        # Counters, successes and failures in a row, as they were told last.
        self._row: tuple[LocalWindow | None, int, int] = (None, 0, 0)
        # Lets no call in before it has looked what it may.
        unknown = BreakerStatus(name=self.policy.name, changed_at=datetime.now(UTC), generation=-1)
        counts = LocalWindow(self.policy.name, -1, self.fleet.worker, self.fleet._ticks)
        self._admission = Admission(unknown, counts, hold=None, passes=False, fast=False)

    # --- calls ----------------------------------------------------------------------------------

    def call(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `func` if the breaker lets it, and count what comes of it.

        A generator, coroutine or async generator that `func` returns is guarded until its end.

        Args:
            func: What calls the service.
            *args: Its arguments.
            **kwargs: Its arguments.

        Returns:
            What `func` returns.

        Raises:
            BreakerOpenError: If the service is not to be called now, or the call failed and left
                the breaker open.
        """
        admission = self._admission
        if admission.fast:
            try:
                result = func(*args, **kwargs)
            except Exception as error:
                self._raised(_Ticket(admission.counts), error)
                raise
            if type(result) in _DEFERRED:
                return self._guard(_Ticket(admission.counts), result)
            counts = admission.counts
            counts.last_ok = counts.ticks()
            counts.ok()
            return result
        ticket = self._admit()
        self._listen("before_call", func, *args, **kwargs)
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            self._raised(ticket, error)
            raise
        if type(result) in _DEFERRED:
            return self._guard(ticket, result)
        self._succeeded(ticket)
        return result

    async def call_async(  # pyright: ignore[reportIncompatibleMethodOverride] - see below
        self, func: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Call and await the coroutine function `func`, without blocking the event loop.

        Unlike pybreaker's, which is for Tornado, this is for asyncio.

        Args:
            func: What calls the service.
            *args: Its arguments.
            **kwargs: Its arguments.

        Returns:
            What `func` returns.

        Raises:
            BreakerOpenError: As `call` does.
        """
        admission = self._admission
        if admission.fast:
            try:
                result = await func(*args, **kwargs)
            except Exception as error:
                await asyncio.to_thread(self._raised, _Ticket(admission.counts), error)
                raise
            counts = admission.counts
            counts.last_ok = counts.ticks()
            counts.ok()
            return result
        admission = self._refuse_at_once()
        ticket = (
            _Ticket(admission.counts) if admission.passes else await asyncio.to_thread(self._admit)
        )
        self._listen("before_call", func, *args, **kwargs)
        return await self._guard_coroutine(ticket, func(*args, **kwargs))

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Guard a `with` block, as if it were a call.

        Raises:
            BreakerOpenError: As `call` does.
        """
        ticket = self._admit()
        self._listen("before_call", self.calling)
        try:
            yield
        except BaseException as error:
            self._raised(ticket, error)
            raise
        self._succeeded(ticket)

    def __call__(self, *call_args: Any, **call_kwargs: Any) -> Callable[..., Any]:
        """Decorate a function, coroutine function, generator or async generator."""
        if call_kwargs:
            raise TypeError(f"unexpected arguments: {', '.join(call_kwargs)}")
        return self._decorate(*call_args) if call_args else self._decorate

    def _decorate(self, func: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(func):

            async def call(*args: Any, **kwargs: Any) -> Any:
                return await self.call_async(func, *args, **kwargs)

            return functools.wraps(func)(call)
        if inspect.isasyncgenfunction(func):

            async def iterate_async(*args: Any, **kwargs: Any) -> AsyncGenerator:
                async with aclosing(self.call(func, *args, **kwargs)) as items:
                    async for item in items:
                        yield item

            return functools.wraps(func)(iterate_async)
        if inspect.isgeneratorfunction(func):

            def iterate(*args: Any, **kwargs: Any) -> Generator:
                return (yield from self.call(func, *args, **kwargs))

            return functools.wraps(func)(iterate)
        return functools.wraps(func)(functools.partial(self.call, func))

    def _guard(self, ticket: _Ticket, deferred: Any) -> Any:
        """Guard what has only begun when the function returned."""
        if type(deferred) is GeneratorType:
            return self._guard_generator(ticket, deferred)
        if type(deferred) is CoroutineType:
            return self._guard_coroutine(ticket, deferred)
        return self._guard_async_generator(ticket, deferred)

    def _guard_generator(self, ticket: _Ticket, generator: Generator) -> Generator:
        try:
            result = yield from generator
        except BaseException as error:
            self._raised(ticket, error)
            raise
        self._succeeded(ticket)
        return result

    async def _guard_coroutine(self, ticket: _Ticket, coroutine: Coroutine) -> Any:
        try:
            result = await coroutine
        except Exception as error:
            await asyncio.to_thread(self._raised, ticket, error)
            raise
        except BaseException as error:
            # While a coroutine is being closed it can't await.
            self._raised(ticket, error)
            raise
        if ticket.trial is None:
            self._succeeded(ticket)
        else:
            await asyncio.to_thread(self._succeeded, ticket)
        return result

    async def _guard_async_generator(
        self, ticket: _Ticket, generator: AsyncGenerator
    ) -> AsyncGenerator:
        try:
            async for item in generator:
                yield item
        except Exception as error:
            await asyncio.to_thread(self._raised, ticket, error)
            raise
        except BaseException as error:
            self._raised(ticket, error)
            raise
        finally:
            await generator.aclose()
        self._succeeded(ticket)

    # --- admission ------------------------------------------------------------------------------

    def _admit(self) -> _Ticket:
        """Let a call in, or raise; takes a trial call where one is to be had."""
        admission = self._refuse_at_once()
        if admission.passes:
            return _Ticket(admission.counts)
        answer = self.fleet._take_trial(self)
        if answer.trial is not None:
            return _Ticket(self._admission.counts, answer.trial)
        self._ask_at = admission.counts.ticks() + ASK_AGAIN_S
        if answer.after.state == BreakerState.CLOSED:
            return _Ticket(self._refuse_at_once().counts)
        raise self._refused(answer.after, None, answer.retry_at)

    def _refuse_at_once(self) -> Admission:
        """Raise if what this process knows is enough to refuse a call."""
        admission = self.fleet._current(self)
        if admission.passes:
            return admission
        now = self.fleet.now()
        circuit = admission.circuit
        if admission.hold is not None:
            raise self._refused(circuit, admission.hold, admission.hold.expires_at)
        waits = circuit.state == BreakerState.OPEN and not circuit.due(now)
        if waits or admission.counts.ticks() < self._ask_at:
            soon = now + timedelta(seconds=ASK_AGAIN_S)
            raise self._refused(circuit, None, circuit.open_until if waits else soon)
        return admission

    def _refused(
        self, circuit: BreakerStatus, hold: Hold | None, retry_at: datetime | None
    ) -> BreakerOpenError:
        error = self._refusal(circuit, hold, retry_at)
        self.fleet._emit(CallRefused(error.service, error.reason, error.retry_at))
        return error

    def _refusal(
        self, circuit: BreakerStatus, hold: Hold | None, retry_at: datetime | None
    ) -> BreakerOpenError:
        if hold is not None:
            reason = f"held by {hold.actor}: {hold.reason}"
            error = BreakerOpenError(
                circuit.name, BreakerState.OPEN, hold.placed_at, reason, retry_at
            )
        else:
            error = BreakerOpenError(
                circuit.name,
                circuit.state,
                circuit.opened_at or circuit.changed_at,
                circuit.reason or str(circuit.state),
                retry_at,
            )
        return error

    def _sit(self, circuit: BreakerStatus, hold: Hold | None) -> None:
        """Decide on calls by this from now on. The fleet calls it, one thread at a time."""
        counts = self._admission.counts
        if counts.generation != circuit.generation:
            self._retired.append(counts)
            fleet = self.fleet
            counts = LocalWindow(circuit.name, circuit.generation, fleet.worker, fleet._ticks)
        passes = not self.fleet.enabled or (hold is None and circuit.state == BreakerState.CLOSED)
        plain = not (
            self._listeners or self.policy.slow_call_rate is not None or self.fleet.times_calls
        )
        self._admission = Admission(
            circuit, counts, hold=hold, passes=passes, fast=passes and plain
        )

    def _sit_again(self) -> None:
        self.fleet._reseat(self)

    # --- outcomes -------------------------------------------------------------------------------

    def _succeeded(self, ticket: _Ticket) -> None:
        counts = ticket.counts
        ended = counts.ticks()
        slow = (
            self.policy.slow_call_rate is not None
            and ended - ticket.started >= self.policy.slow_call_s
        )
        if self.fleet.times_calls:
            self.fleet._emit(CallEnded(self.policy.name, False, ended - ticket.started))
        if ticket.trial is not None:
            outcome = Outcome.SLOW if slow else Outcome.SUCCESS
            self.fleet._end_trial(self, ticket.trial, outcome, None)
        else:
            counts.last_ok = ended
            counts.ok()
            if slow:
                counts.count_slow()
                self.fleet._tell(self, counts, "slow")
        self._listen("success")

    def _raised(self, ticket: _Ticket, error: BaseException) -> None:
        """Take note of what a call raised; may raise `BreakerOpenError` in its place."""
        ignored = (
            not isinstance(error, Exception)
            or isinstance(error, BreakerOpenError)  # another breaker refused, within the call
            or not self.is_system_error(error)
        )
        if ignored:
            if ticket.trial is not None:
                self.fleet._end_trial(self, ticket.trial, Outcome.IGNORED, None)
            return
        assert isinstance(error, Exception)
        if self.fleet.times_calls:
            took_s = ticket.counts.ticks() - ticket.started
            self.fleet._emit(CallEnded(self.policy.name, True, took_s))
        now = self.fleet.now()
        wait_s = retry_after(error, now, self.policy.retry_after_cap_s)
        retry_at = None if wait_s is None else now + timedelta(seconds=wait_s)
        name = label(error)
        self.fleet._emit(CallFailed(self.policy.name, error, name, retry_at))
        self._listen("failure", error)
        if ticket.trial is not None:
            self.fleet._end_trial(self, ticket.trial, Outcome.FAILURE, retry_at)
        else:
            ticket.counts.fail(now, retry_at)
            self.fleet._tell(self, ticket.counts, name)
        admission = self._admission
        if self._throw_new_error_on_trip and not admission.passes:
            circuit = admission.circuit
            raise self._refusal(circuit, admission.hold, circuit.open_until) from error

    def is_system_error(self, exception: BaseException) -> bool:
        """Return whether an exception counts as a failure of the service."""
        if not isinstance(exception, Exception):
            return False
        for exclusion in self._excluded_exceptions:
            if isinstance(exclusion, type):
                if isinstance(exception, exclusion):
                    return False
            elif exclusion(exception):
                return False
        return self.classify(exception) == Outcome.FAILURE

    def _by_policy(self, error: Exception) -> Outcome:
        return default_outcome(error, self.policy.failure_statuses)

    def _listen(self, event: str, *args: Any, **kwargs: Any) -> None:
        for listener in tuple(self._listeners):
            try:
                getattr(listener, event)(self, *args, **kwargs)
            except Exception:  # a listener's fault is not the breaker's
                log.exception("a listener of %s failed", self._name)

    # --- by hand, and what pybreaker shows -----------------------------------------------------

    @property
    def circuit(self) -> BreakerStatus:
        """The breaker as this process knows it."""
        return self.fleet._current(self).circuit

    def open(self) -> bool:
        """Open it by hand; it is probed after the reset timeout.

        Returns:
            Whether a failure that leaves it open is raised as `BreakerOpenError`.
        """
        self.fleet._change(
            self,
            lambda circuit, now: machine.opened(
                circuit, self.policy, now, "opened by hand", random()
            ),
        )
        return self._throw_new_error_on_trip

    def half_open(self) -> None:
        """Let trial calls in now."""
        self.fleet._change(self, machine.half_opened)

    def close(self) -> None:
        """Close it by hand."""
        self.fleet._change(self, machine.closed)

    def probe(self) -> BreakerStatus:
        """Ask the service's health probe, if the breaker is due and there is a trial call to have.

        Returns:
            The breaker afterwards.

        Raises:
            ValueError: If the policy has no `probe_url`.
        """
        from dagster_tidegate.breaker.probe import (
            http_get,  # urllib is slow to import, and seldom needed
        )

        if self.policy.probe_url is None:
            raise ValueError(f"{self.policy.name} has no probe_url")
        if self.fleet._current(self).passes:
            return self.circuit
        try:
            ticket = self._admit()
        except BreakerOpenError:
            return self.circuit
        if ticket.trial is not None:
            outcome, retry_at = http_get(self.policy, self.fleet.now())
            self.fleet._end_trial(self, ticket.trial, outcome, retry_at)
        return self.circuit

    @property
    def current_state(self) -> str:
        """The state, as pybreaker writes it: `closed`, `open` or `half-open`."""
        return PYBREAKER_STATES[self.circuit.state]

    @property
    def state(self) -> Any:
        """The state as an object of pybreaker's."""
        return self._state_object(self.circuit.state)

    @state.setter
    def state(self, state_str: str) -> None:
        moves = {
            pybreaker.STATE_CLOSED: self.close,
            pybreaker.STATE_OPEN: self.open,
            pybreaker.STATE_HALF_OPEN: self.half_open,
        }
        if state_str not in moves:
            raise ValueError(f"unknown state {state_str!r}, valid states: {', '.join(moves)}")
        moves[state_str]()

    def _state_object(self, state: BreakerState) -> Any:
        return _STATE_CLASSES[state](self, None, notify=False)

    def _state_changed(self, before: BreakerStatus, after: BreakerStatus) -> None:
        former, present = self._state_object(before.state), self._state_object(after.state)
        self._listen("state_change", former, present)

    @property
    def fail_counter(self) -> int:
        """Consecutive failures of the fleet, when this process last told of one."""
        counts, ok, in_row = self._row
        if counts is None or counts is not self._admission.counts:
            return 0
        return in_row if counts.totals()[0] == ok else 0

    @property
    def success_counter(self) -> int:
        """Trial calls that succeeded in this half open."""
        return self.circuit.trial_successes

    @property
    def fail_max(self) -> int:
        """Consecutive failures that trip it."""
        return self.policy.consecutive_failures or 0

    @fail_max.setter
    def fail_max(self, number: int) -> None:
        self._change_policy(consecutive_failures=number)

    @property
    def reset_timeout(self) -> float:
        """Seconds until the first probe."""
        return self.policy.reset_timeout_s

    @reset_timeout.setter
    def reset_timeout(self, timeout: float) -> None:
        cap = max(timeout, self.policy.reset_timeout_cap_s)
        self._change_policy(reset_timeout_s=timeout, reset_timeout_cap_s=cap)

    @property
    def success_threshold(self) -> int:
        """Trial calls that must succeed before it closes."""
        return self.policy.success_threshold

    @success_threshold.setter
    def success_threshold(self, threshold: int) -> None:
        self._change_policy(success_threshold=threshold)

    def _change_policy(self, **values: Any) -> None:
        self.policy = type(self.policy)(**self.policy.model_dump() | values)
        self._sit_again()

    def add_listener(self, listener: Any) -> None:
        """Register a listener."""
        self._listeners.append(listener)
        self._sit_again()

    def remove_listener(self, listener: Any) -> None:
        """Unregister a listener."""
        self._listeners.remove(listener)
        self._sit_again()
