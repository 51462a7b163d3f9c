"""The breaker of a service: a `pybreaker.CircuitBreaker` that the whole fleet shares."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from random import random
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, TypeVar

import pybreaker

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.answers import Answer, causes, is_answer_type, may_have_arrived
from dagster_tidegate.breaker.budget import billionths
from dagster_tidegate.breaker.engine import Engine, Ticket
from dagster_tidegate.breaker.errors import AnswerError, BreakerOpenError
from dagster_tidegate.breaker.excerpts import fit_to_keep
from dagster_tidegate.breaker.judge import (
    SUCCESS,
    Judge,
    function_of,
    judge_exception,
    judge_for,
)
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.times import capped
from dagster_tidegate.breaker.verdicts import IGNORED, Verdict, VerdictKind
from dagster_tidegate.statuses import BreakerState

if TYPE_CHECKING:
    from dagster_tidegate.breaker.fleet import Fleet

T = TypeVar("T")
log = logging.getLogger(__name__)

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
# Types of results that are neither deferred nor an answer, which need no further look.
_PLAIN: set[type] = {type(None), bool, int, float, str, bytes, list, tuple}
_MAX_PLAIN = 1000
_NO_ERRORS = frozenset({VerdictKind.SUCCESS, VerdictKind.SLOW, VerdictKind.IGNORED})
_JUDGED = "_tidegate_judged"
"""Marks an exception that a breaker has counted."""


class Breaker(pybreaker.CircuitBreaker):
    """The circuit breaker of a service, shared by all processes of a fleet.

    It has the interface of `pybreaker.CircuitBreaker`, takes the same parameters, and can replace
    one. Get one from `Fleet.breaker`; a breaker without a fleet belongs to this process alone.

    Calls through a closed breaker do no I/O: they are admitted by what the process knows, and a
    success is counted in memory. A failure is reported to the fleet at once. No lock is held
    during a call. Only subclasses of `Exception` can be failures. What a call says is decided by
    the profile or the judge of its policy, from exceptions and from answers; see `judge`.

    Args:
        fail_max: Consecutive failures that trip it. Ignored if a policy is given.
        reset_timeout: Seconds until the first probe. Ignored if a policy is given.
        success_threshold: Trial calls that must succeed. Ignored if a policy is given.
        exclude: Exception classes, or predicates on an exception, that are not failures. They
            count neither way.
        listeners: Listeners of pybreaker. `state_change` is called in the one process that
            changed the state.
        state_storage: Not supported; use a fleet with a backend.
        name: Name of the service. Ignored if a policy is given.
        throw_new_error_on_trip: Whether a failure that leaves the breaker open is raised as
            `BreakerOpenError` from the failure; otherwise it is raised as it is.
        policy: Policy of the service.
        fleet: The fleet that shares it.

    Raises:
        ValueError: If a `state_storage` is given, or the fleet has a breaker of that name.

    Example:
        >>> breaker = Breaker(fail_max=3, name="openai")
        >>> breaker.call(len, "four")
        4
    """

    engine: Engine

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
        # pybreaker's own __init__ is not called: it sets up the engine that this class replaces.
        if state_storage is not None:
            raise ValueError("a Breaker has no state_storage: use a Fleet with a backend instead")
        if policy is None:
            policy = ServicePolicy(
                name=name or "unnamed",
                consecutive_failures=fail_max,
                reset_timeout_s=reset_timeout,
                reset_timeout_cap_s=max(600.0, reset_timeout),
                success_threshold=success_threshold,
                jitter=0.0,
                slow_call_rate=None,
                profile=None,
            )
        if fleet is None:
            from dagster_tidegate.breaker.fleet import Fleet  # a Fleet creates breakers

            fleet = Fleet(policies=[policy])
        self.judge: Judge = judge_for(policy)
        self._errors_of_judge: set[type[Exception]] = set()
        self._errors_of_cost: set[type[Exception]] = set()
        cost = policy.cost
        self._cost_of = function_of(cost, "cost") if isinstance(cost, str) else None
        self._name = name or policy.name
        self._lock = threading.Lock()  # for pybreaker's methods on exclusions and listeners
        self._excluded_exceptions = list(exclude or ())
        self._listeners = list(listeners or ())
        self._throw_new_error_on_trip = throw_new_error_on_trip
        self.fleet = fleet
        fleet.register(self, policy)
        if self._listeners:
            self._configure()

    @property
    def name(self) -> str:
        """Name of the service."""
        return self._name or self.policy.name

    @name.setter
    def name(self, name: str) -> None:
        self._name = name

    @property
    def policy(self) -> ServicePolicy:
        """Policy of the service."""
        return self.engine.policy

    def after_fork(self) -> None:
        """In a forked child: create what it must not share with its parent."""
        self._lock = threading.Lock()
        self.engine.reset()

    # --- calls ----------------------------------------------------------------------------------

    def call(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `func` if the breaker admits the call, and count the result.

        A generator, coroutine or async generator that `func` returns is guarded until its end.

        Raises:
            BreakerOpenError: If the service must not be called now, or the call failed and left
                the breaker open.
        """
        admission = self.engine.admission
        if admission.fast or (admission.limited and admission.take()):
            window = admission.window
            started = window.monotonic()
            try:
                result = func(*args, **kwargs)
            except Exception as error:
                self._raised(Ticket(window, started=started), error)
                raise
            if type(result) not in _PLAIN:
                return self._end(Ticket(window, started=started), result)
            ended = window.last_ok = window.monotonic()
            count = window.ok()
            durations = admission.durations
            if ended - started >= durations.limit_s:
                self.engine.count_slow(window, started)
            if not count & durations.sampling:
                durations.add(ended - started)
            return result
        ticket = self.engine.admit()
        self._notify("before_call", func, *args, **kwargs)
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            self._raised(ticket, error)
            raise
        return self._end(ticket, result)

    def call_async(  # pyright: ignore[reportIncompatibleMethodOverride] - see below
        self, func: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]:
        """Call and await the coroutine function `func`, without blocking the event loop.

        Unlike pybreaker's, which is for Tornado, this is for asyncio.

        Raises:
            BreakerOpenError: As `call` does.
        """
        return self._call_async(func, args, kwargs)

    async def _call_async(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        admission = self.engine.admission
        if admission.fast or (admission.limited and admission.take()):
            window = admission.window
            started = window.monotonic()
            try:
                result = await func(*args, **kwargs)
            except Exception as error:
                await asyncio.to_thread(self._raised, Ticket(window, started=started), error)
                raise
            if type(result) not in _PLAIN:
                return await self._end_async(Ticket(window, started=started), result)
            ended = window.last_ok = window.monotonic()
            count = window.ok()
            durations = admission.durations
            if ended - started >= durations.limit_s:
                await asyncio.to_thread(self.engine.count_slow, window, started)
            if not count & durations.sampling:
                durations.add(ended - started)
            return result
        admission = self.engine.check()
        ticket = admission.enter() or await self._admit_async()
        self._notify("before_call", func, *args, **kwargs)
        return await self._guard_coroutine(
            _Unstarted(self.engine, ticket), _begun(func, args, kwargs)
        )

    async def _admit_async(self) -> Ticket:
        """Admit a call in a thread. A task that is cancelled meanwhile gives its ticket back."""
        tickets: list[Ticket] = []
        cancelled = threading.Event()

        def give_back() -> None:
            with suppress(IndexError):  # the thread or the task: whoever is first
                self._raised(tickets.pop(), asyncio.CancelledError())

        def admit() -> Ticket:
            ticket = self.engine.admit()
            tickets.append(ticket)
            if cancelled.is_set():
                give_back()
            return ticket

        try:
            return await asyncio.to_thread(admit)
        except asyncio.CancelledError:
            cancelled.set()
            give_back()
            raise

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Guard a `with` block like a call.

        Raises:
            BreakerOpenError: As `call` does.
        """
        ticket = self.engine.admit()
        self._notify("before_call", self.calling)
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
            guarded = self._call_async

            async def call(*args: Any, **kwargs: Any) -> Any:
                return await guarded(func, args, kwargs)

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

    def _guard(self, ticket: Ticket, deferred: Any) -> Any:
        """Guard a generator or coroutine, which starts after its function returned."""
        call = _Unstarted(self.engine, ticket)
        if type(deferred) is GeneratorType:
            return self._guard_generator(call, deferred)
        if type(deferred) is CoroutineType:
            return self._guard_coroutine(call, deferred)
        return self._guard_async_generator(call, deferred)

    def _guard_generator(self, call: _Unstarted, generator: Generator) -> Generator:
        ticket = call.start()
        try:
            result = yield from generator
        except BaseException as error:
            self._raised(ticket, error)
            raise
        self._charge(result)
        self._succeeded(ticket, streamed=True)
        return result

    async def _guard_coroutine(self, call: _Unstarted, coroutine: Coroutine) -> Any:
        ticket = call.start()
        try:
            result = await coroutine
        except Exception as error:
            ticket.release()  # not in a thread: all of them may wait for a slot
            await asyncio.to_thread(self._raised, ticket, error)
            raise
        except BaseException as error:
            # While a coroutine is being closed it can't await.
            self._raised(ticket, error)
            raise
        return await self._end_async(ticket, result)

    async def _guard_async_generator(
        self, call: _Unstarted, generator: AsyncGenerator
    ) -> AsyncGenerator:
        ticket = call.start()
        try:
            async for item in generator:
                yield item
        except Exception as error:
            ticket.release()
            await asyncio.to_thread(self._raised, ticket, error)
            raise
        except BaseException as error:
            self._raised(ticket, error)
            raise
        finally:
            await generator.aclose()
        self._succeeded(ticket, streamed=True)

    # --- results --------------------------------------------------------------------------------

    def _end(self, ticket: Ticket, result: Any) -> Any:
        """End a call that returned, unless it has only begun; return its result.

        Raises:
            AnswerError: If the result is an answer that is no success; or `BreakerOpenError` from
                it.
        """
        if type(result) in _DEFERRED:
            return self._guard(ticket, result)
        error = self._error_in(result, ticket)
        if error is None:
            self._charge(result)
            self._succeeded(ticket)
            if self.engine.is_spent:
                self.engine.throttle_spent()
            return result
        self._raised(ticket, error)
        raise error

    async def _end_async(self, ticket: Ticket, result: Any) -> Any:
        error = self._error_in(result, ticket)
        ticket.release()
        if error is not None:
            await asyncio.to_thread(self._raised, ticket, error)
            raise error
        self._charge(result)
        if ticket.trial is None and ticket.parent is None:
            self._succeeded(ticket)
        else:
            await asyncio.to_thread(self._succeeded, ticket)
        if self.engine.is_spent:
            await asyncio.to_thread(self.engine.throttle_spent)
        return result

    def _error_in(self, result: Any, ticket: Ticket) -> Exception | None:
        """Return the error that a result stands for, if it is an answer and no success.

        What an answer says of the calls that are left is heeded.
        """
        if self.policy.profile is None and self.policy.judge is None:
            return None
        kind = type(result)
        if kind in _PLAIN:
            return None
        if not is_answer_type(kind):
            if kind not in _DEFERRED and len(_PLAIN) < _MAX_PLAIN:
                _PLAIN.add(kind)
            return None
        answer = Answer.of(result, self.engine.now())
        if answer is None:
            return None
        verdict = self._judged(answer)
        if verdict.kind in _NO_ERRORS:
            self.engine.heed(answer, ticket)
            return None
        # Clients look for a 404 or 409 themselves. A rejection in a 200 looks like a success.
        if verdict.kind is VerdictKind.REJECTED and (answer.status or 0) >= 400:
            self.engine.heed(answer, ticket)
            return None
        return AnswerError.of(verdict, result)

    def _succeeded(self, ticket: Ticket, *, streamed: bool = False) -> None:
        ticket.release()
        self.engine.succeed(ticket, streamed=streamed)
        self._notify("success")

    def _raised(self, ticket: Ticket, error: BaseException) -> None:
        """End a call that raised; may raise `BreakerOpenError` in place of its error."""
        ticket.release()
        if self.engine.purses and not may_have_arrived(error):
            self.engine.refund(ticket)
        if not isinstance(error, Exception):
            self.engine.ignore(ticket)
            return
        verdict = self.verdict(error)
        for each in causes(error):
            with suppress(TypeError):  # an exception without room for it
                vars(each)[_JUDGED] = True
        match verdict.kind:
            case VerdictKind.FAILURE:
                self._notify("failure", error)
                self.engine.fail(ticket, error, verdict)
            case VerdictKind.THROTTLED | VerdictKind.DENIED:
                self.engine.close_down(ticket, verdict)
            case _:
                self.engine.ignore(ticket, verdict)
                self.engine.heed(Answer.of(error, self.engine.now()), ticket)
                if self.engine.is_spent:
                    self.engine.throttle_spent()
                return
        admission = self.engine.admission
        if self._throw_new_error_on_trip and not admission.passes:
            raise admission.refusal() from error

    def spend(self, amount: float | Decimal) -> None:
        """Count what a call has cost in the budget of the service, besides the policy's `cost`.

        Call it when you know: within the guarded call, or after it. An amount that is no number,
        negative, or not finite is logged and not counted.

        Example:
            ```python
            reply = breaker.call(client.chat.completions.create, **question)
            breaker.spend(reply.usage.total_tokens)
            ```
        """
        self._spend(lambda: amount)

    def _charge(self, result: Any) -> None:
        """Count what a call has cost, where its result says so."""
        if self._cost_of is not None and self.engine.purses:
            self._spend(functools.partial(self._cost_of, result))

    def _spend(self, amount: Callable[[], Any]) -> None:
        try:
            cost = billionths(amount())
        except Exception as error:  # the call was made, and is not to fail for its price
            if type(error) not in self._errors_of_cost:  # once of each kind
                self._errors_of_cost.add(type(error))
                log.exception("A call of %s counts as free: its cost is unknown", self.name)
            return
        for purse in self.engine.purses:
            purse.spend(cost)

    def refusal_after(self, error: Exception) -> BreakerOpenError | None:
        """Return what refuses further calls after an error that says `throttled` or `denied`.

        A client may raise it after the call that the breaker guards, or without one: then the
        breaker opens now.

        Args:
            error: The error as it reached the caller: itself, or raised from the client's.
        """
        chain = list(causes(error))
        # What a client says counts, also if it follows from an answer that was judged otherwise.
        said = [each for each in chain if isinstance(each, AnswerError)][:1] or chain
        if not any(getattr(each, _JUDGED, False) for each in said):
            verdict = self.verdict(error)
            if verdict.kind in (VerdictKind.THROTTLED, VerdictKind.DENIED):
                self.engine.close_down(Ticket(self.engine.admission.window), verdict)
        admission = self.engine.current()
        if admission.passes:
            return None
        refusal = admission.refusal()
        refusal.__cause__ = error
        return refusal

    def is_system_error(self, exception: BaseException) -> bool:
        """Return whether an exception counts as a failure of the service."""
        return (
            isinstance(exception, Exception) and self.verdict(exception).kind == VerdictKind.FAILURE
        )

    def verdict(self, error: Exception) -> Verdict:
        """Return what an exception of a call says about the service and the record."""
        if isinstance(error, BreakerOpenError):  # refused by another breaker within the call
            return IGNORED
        for exclusion in self._excluded_exceptions:
            if isinstance(exclusion, type):
                if isinstance(error, exclusion):
                    return IGNORED
            elif exclusion(error):
                return IGNORED
        return self._judged(Answer.of(error, self.engine.now()))

    def _judged(self, answer: Answer) -> Verdict:
        """Return the verdict of the judge; if it raises, that of the exception alone."""
        try:
            verdict = self.judge(answer)
            if verdict is SUCCESS:
                return verdict
            verdict = fit_to_keep(verdict)
            if verdict.until is None:
                return verdict
            until = capped(verdict.until, answer.at, self.policy.retry_after_cap_s)
            return verdict if until == verdict.until else replace(verdict, until=until)
        except Exception as error:
            if type(error) not in self._errors_of_judge:  # once of each kind
                self._errors_of_judge.add(type(error))
                log.exception("The judge of %s raised: answers are judged without it", self.name)
            return judge_exception(answer, failure_statuses=self.policy.failure_statuses)

    def _notify(self, event: str, *args: Any, **kwargs: Any) -> None:
        for listener in tuple(self._listeners):
            try:
                getattr(listener, event)(self, *args, **kwargs)
            except Exception:  # a broken listener must not break calls
                log.exception("a listener of %s failed", self._name)

    # --- state ----------------------------------------------------------------------------------

    @property
    def status(self) -> BreakerStatus:
        """The breaker as this process knows it."""
        return self.engine.current().status

    def open(self) -> bool:
        """Open it by hand; it is probed after the reset timeout.

        Returns:
            Whether a failure that leaves it open is raised as `BreakerOpenError`.
        """
        self.engine.change(
            lambda status, now: machine.opened_by_hand(status, self.policy, now, random())
        )
        return self._throw_new_error_on_trip

    def half_open(self) -> None:
        """Permit trial calls now."""
        self.engine.change(machine.half_opened)

    def close(self) -> None:
        """Close it by hand."""
        self.engine.change(machine.closed)

    def probe(self) -> BreakerStatus:
        """Run the service's health probe, if the breaker is due and a trial call is free.

        Where the service denied this client, run its repair check instead; if that says yes, the
        breaker half opens.

        Returns:
            The breaker afterwards.

        Raises:
            ValueError: If the policy has no `probe_url`.
        """
        if self.policy.repair_check is not None and self.status.is_denied:
            if self._is_repaired(self.policy.repair_check):
                self.half_open()
            return self.status
        from dagster_tidegate.breaker.probe import http_get  # urllib is slow to import

        if self.policy.probe_url is None:
            raise ValueError(f"{self.policy.name} has no probe_url")
        if self.engine.current().passes:
            return self.status
        try:
            ticket = self.engine.admit_unlimited()
        except BreakerOpenError:
            return self.status
        verdict = IGNORED
        try:
            if ticket.trial is not None:
                verdict = http_get(self.policy, self.engine.now(), self._judged)
        finally:
            self.engine.end_trials(ticket, verdict, whole=IGNORED)
        return self.status

    def _is_repaired(self, check: str) -> bool:
        try:
            return bool(function_of(check, "repair_check")())
        except Exception:  # the author's own code: the service stays closed, and others are probed
            log.exception("the repair_check of %s failed", self.policy.name)
            return False

    # --- pybreaker's properties -----------------------------------------------------------------

    @property
    def current_state(self) -> str:
        """The state in pybreaker's spelling: `closed`, `open` or `half-open`."""
        return PYBREAKER_STATES[self.status.state]

    @property
    def state(self) -> Any:
        """The state as pybreaker's object."""
        return self._state_object(self.status.state)

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

    def state_changed(self, before: BreakerStatus, after: BreakerStatus) -> None:
        """Call the listeners after a change that this process made."""
        former, present = self._state_object(before.state), self._state_object(after.state)
        self._notify("state_change", former, present)

    @property
    def fail_counter(self) -> int:
        """Consecutive failures of the fleet at the last report of this process."""
        return self.engine.failed_in_row

    @property
    def success_counter(self) -> int:
        """Trial calls that succeeded in this half open."""
        return self.status.trial_successes

    @property
    def fail_max(self) -> int:
        """Consecutive failures that trip it."""
        return self.policy.consecutive_failures or 0

    @fail_max.setter
    def fail_max(self, number: int) -> None:
        self._configure(consecutive_failures=number)

    @property
    def reset_timeout(self) -> float:
        """Seconds until the first probe."""
        return self.policy.reset_timeout_s

    @reset_timeout.setter
    def reset_timeout(self, timeout: float) -> None:
        cap = max(timeout, self.policy.reset_timeout_cap_s)
        self._configure(reset_timeout_s=timeout, reset_timeout_cap_s=cap)

    @property
    def success_threshold(self) -> int:
        """Trial calls that must succeed before it closes."""
        return self.policy.success_threshold

    @success_threshold.setter
    def success_threshold(self, threshold: int) -> None:
        self._configure(success_threshold=threshold)

    def add_listener(self, listener: Any) -> None:
        """Register a listener."""
        self._listeners.append(listener)
        self._configure()

    def remove_listener(self, listener: Any) -> None:
        """Unregister a listener."""
        self._listeners.remove(listener)
        self._configure()

    def _configure(self, **policy: Any) -> None:
        values = self.policy.model_dump() | policy
        changed = type(self.policy)(**values)
        self.engine.configure(changed, observed=bool(self._listeners))


class _Unstarted:
    """A call whose generator or coroutine has not started; it may be dropped before it does."""

    __slots__ = ("_engine", "_ticket")

    def __init__(self, engine: Engine, ticket: Ticket) -> None:
        self._engine = engine
        self._ticket: Ticket | None = ticket

    def start(self) -> Ticket:
        ticket, self._ticket = self._ticket, None
        assert ticket is not None  # a generator starts once
        return ticket

    def __del__(self) -> None:
        if self._ticket is not None:
            self._engine.put_back(self._ticket)


async def _begun(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return await func(*args, **kwargs)  # it may raise before there is a coroutine
