# ruff: noqa: ARG002 - a listener has the parameters of pybreaker's
import asyncio
import gc
import inspect
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import pybreaker
import pytest

from dagster_tidegate.breaker.backend import MemoryBackend
from dagster_tidegate.breaker.breaker import Breaker
from dagster_tidegate.breaker.engine import Ticket
from dagster_tidegate.breaker.errors import BreakerOpenError, UnknownServiceError
from dagster_tidegate.breaker.events import CallFailed, CallRefused, CallsCounted, StateChanged
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.statuses import BreakerState
from tests.support.clock import Clock
from tests.support.failing_service import Down, fail, policy, trip


def raise_(error: Exception) -> None:
    raise error


async def fail_async() -> None:
    raise Down


@pytest.fixture
def events() -> list[Any]:
    return []


@pytest.fixture
def breaker(clock: Clock, events: list[Any]) -> Breaker:
    return make_breaker(clock, events)


def make_breaker(clock: Clock, events: list[Any] | None = None, **fields: Any) -> Breaker:
    hooks = [] if events is None else [events.append]
    return Fleet(MemoryBackend(clock=clock), [policy(**fields)], hooks=hooks).breaker("openai")


# --- calls -------------------------------------------------------------------------------------


def test_a_call_returns_what_the_function_returns(breaker: Breaker):
    assert breaker.call(divmod, 7, 2) == (3, 1)
    assert breaker.call(int, "11", base=2) == 3


def test_failures_below_the_threshold_are_raised_as_they_are(breaker: Breaker):
    for _ in range(2):
        with pytest.raises(Down):
            breaker.call(fail)
    assert breaker.fail_counter == 2


def test_the_failure_that_trips_is_raised_as_an_open_breaker_from_the_failure(breaker: Breaker):
    for _ in range(2):
        with pytest.raises(Down):
            breaker.call(fail)
    with pytest.raises(BreakerOpenError) as raised:
        breaker.call(fail)
    assert isinstance(raised.value.__cause__, Down)


def test_an_open_breaker_names_service_start_reason_and_retry_time(breaker: Breaker, clock: Clock):
    since = clock()
    trip(breaker)
    clock.advance(5)
    with pytest.raises(pybreaker.CircuitBreakerError) as raised:
        breaker.call(fail)
    error = raised.value
    assert isinstance(error, BreakerOpenError)
    assert (error.service, error.state) == ("openai", BreakerState.OPEN)
    assert (error.since, error.reason) == (since, "Down x3")
    assert error.retry_at == since.replace(second=30)
    assert str(error) == (
        "openai is open since 09:00:00 UTC (Down x3); retry at 2026-03-01 09:00:30 UTC"
    )
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_open_breaker_does_not_call(breaker: Breaker):
    trip(breaker)
    called = []
    with pytest.raises(BreakerOpenError):
        breaker.call(called.append, 1)
    assert not called


def test_a_success_between_failures_restarts_the_count(breaker: Breaker):
    for _ in range(5):
        for _ in range(2):
            with pytest.raises(Down):
                breaker.call(fail)
        breaker.call(int)
        assert breaker.fail_counter == 0
    assert breaker.status.state == BreakerState.CLOSED


def test_it_recovers_by_a_trial_call(breaker: Breaker, clock: Clock):
    trip(breaker)
    clock.advance(30)
    assert breaker.call(int) == 0
    assert breaker.status.state == BreakerState.CLOSED
    assert breaker.status.closed_at == clock()


def test_a_failed_trial_call_opens_it_for_longer(breaker: Breaker, clock: Clock):
    trip(breaker)
    clock.advance(30)
    with pytest.raises(BreakerOpenError):
        breaker.call(fail)
    clock.advance(59)
    with pytest.raises(BreakerOpenError):
        breaker.call(int)
    clock.advance(1)
    assert breaker.call(int) == 0


def test_during_a_trial_call_all_other_calls_are_refused_as_half_open(
    breaker: Breaker, clock: Clock
):
    trip(breaker)
    clock.advance(30)

    def trial() -> None:
        with pytest.raises(BreakerOpenError) as refused:
            breaker.call(int)
        assert refused.value.state == BreakerState.HALF_OPEN
        assert refused.value.retry_at is not None
        assert refused.value.retry_at > clock()

    breaker.call(trial)
    assert breaker.status.state == BreakerState.CLOSED


def test_a_late_failure_belongs_to_an_older_generation(breaker: Breaker, clock: Clock):
    def slow() -> None:
        trip(breaker)
        clock.advance(700)
        breaker.call(int)  # recovered meanwhile
        raise Down

    for _ in range(5):
        with pytest.raises(Down):
            breaker.call(slow)
    assert breaker.status.state == BreakerState.CLOSED


def test_a_late_success_does_not_close_an_open_breaker(breaker: Breaker):
    breaker.call(trip, breaker)
    assert breaker.status.state == BreakerState.OPEN


def test_a_call_refused_by_another_breaker_within_is_no_failure(breaker: Breaker, clock: Clock):
    inner = make_breaker(clock)
    trip(inner)
    for _ in range(5):
        with pytest.raises(BreakerOpenError):
            breaker.call(inner.call, fail)
    assert breaker.status.state == BreakerState.CLOSED


def test_slow_calls_trip_where_the_policy_says_so(clock: Clock):
    breaker = make_breaker(
        clock, consecutive_failures=None, slow_call_rate=0.5, slow_call_s=2, min_calls=4
    )
    for seconds in (2, 2, 1, 2, 2, 2):
        breaker.call(clock.advance, seconds)
    assert breaker.status.state == BreakerState.CLOSED
    for seconds in (3, 3):
        breaker.call(clock.advance, seconds)
    assert breaker.status.state == BreakerState.OPEN
    assert breaker.status.reason == "7 of 8 calls took 2 s or more in 60 s"


def test_failures_outside_the_window_are_forgotten(clock: Clock):
    breaker = make_breaker(clock, consecutive_failures=None, window_failures=3, window_s=60)
    for _ in range(10):
        with pytest.raises(Down):
            breaker.call(fail)
        clock.advance(40)
    clock.advance(120)
    for _ in range(2):
        with pytest.raises(Down):
            breaker.call(fail)
    with pytest.raises(BreakerOpenError):
        breaker.call(fail)


def test_retry_after_of_the_service_is_kept(clock: Clock):
    breaker = make_breaker(clock, consecutive_failures=1, retry_after_cap_s=300)

    class TooMany(Exception):
        status_code = 429
        headers: dict[str, str] = {"Retry-After": "1000"}  # noqa: RUF012 - as clients have it

    def overrun() -> None:
        raise TooMany

    with pytest.raises(BreakerOpenError) as raised:
        breaker.call(overrun)
    assert raised.value.reason == "429"
    assert raised.value.retry_at is not None
    assert (raised.value.retry_at - clock()).total_seconds() == 300


# --- forms of calls ------------------------------------------------------------------------------


class Forms:
    """One breaker, called in every way; each returns whether it succeeded."""

    @staticmethod
    def call(breaker: Breaker, broken: bool) -> None:
        breaker.call(fail if broken else int)

    @staticmethod
    def decorator(breaker: Breaker, broken: bool) -> None:
        breaker(fail if broken else int)()

    @staticmethod
    def decorator_with_parentheses(breaker: Breaker, broken: bool) -> None:
        @breaker()
        def work() -> None:
            if broken:
                raise Down

        assert work.__name__ == "work"
        work()

    @staticmethod
    def context(breaker: Breaker, broken: bool) -> None:
        with breaker.calling():
            if broken:
                raise Down

    @staticmethod
    def generator(breaker: Breaker, broken: bool) -> None:
        @breaker
        def work(first: int) -> Iterator[int]:
            yield first
            if broken:
                raise Down
            yield 2

        assert inspect.isgeneratorfunction(work)
        assert list(work(1)) == [1, 2]

    @staticmethod
    def call_of_generator(breaker: Breaker, broken: bool) -> None:
        def work() -> Iterator[int]:
            yield 1
            if broken:
                raise Down

        assert list(breaker.call(work)) == [1]

    @staticmethod
    def coroutine(breaker: Breaker, broken: bool) -> None:
        @breaker
        async def work() -> int:
            await asyncio.sleep(0)
            if broken:
                raise Down
            return 5

        assert inspect.iscoroutinefunction(work)
        assert asyncio.run(work()) == 5

    @staticmethod
    def call_of_coroutine(breaker: Breaker, broken: bool) -> None:
        async def work() -> None:
            if broken:
                raise Down

        async def main() -> None:
            await breaker.call(work)

        asyncio.run(main())

    @staticmethod
    def call_async(breaker: Breaker, broken: bool) -> None:
        asyncio.run(breaker.call_async(fail_async if broken else asyncio.sleep, *[0][broken:]))

    @staticmethod
    def async_generator(breaker: Breaker, broken: bool) -> None:
        @breaker
        async def work():
            yield 1
            if broken:
                raise Down
            yield 2

        async def main() -> list[int]:
            return [item async for item in work()]

        assert inspect.isasyncgenfunction(work)
        assert asyncio.run(main()) == [1, 2]


FORMS = [form for name, form in vars(Forms).items() if not name.startswith("_")]


@pytest.mark.parametrize("form", [form.__func__ for form in FORMS], ids=lambda f: f.__name__)
@pytest.mark.parametrize("listened", [False, True], ids=["fast", "listened"])
def test_every_form_of_call_fails_trips_refuses_and_recovers(
    breaker: Breaker, clock: Clock, form, listened: bool
):
    if listened:
        breaker.add_listener(pybreaker.CircuitBreakerListener())
    form(breaker, False)
    for _ in range(2):
        with pytest.raises(Down):
            form(breaker, True)
    form(breaker, False)
    for _ in range(2):
        with pytest.raises(Down):
            form(breaker, True)
    with pytest.raises(BreakerOpenError):
        form(breaker, True)
    with pytest.raises(BreakerOpenError):
        form(breaker, False)
    clock.advance(30)
    form(breaker, False)
    assert breaker.status.state == BreakerState.CLOSED
    ok, _, failed = breaker.engine.admission.window.totals()
    assert (ok, failed) == (0, 0), "the trial call is not counted in the new generation"


def test_what_is_sent_into_a_guarded_generator_arrives(breaker: Breaker):
    @breaker
    def echo() -> Any:
        got = yield "ready"
        return got

    generator = echo()
    assert next(generator) == "ready"
    with pytest.raises(StopIteration) as stopped:
        generator.send("hello")
    assert stopped.value.value == "hello"


@pytest.mark.parametrize("trial", [False, True], ids=["closed", "trial"])
def test_an_abandoned_generator_says_nothing_and_gives_its_trial_call_back(
    clock: Clock, trial: bool
):
    breaker = make_breaker(clock, consecutive_failures=1)
    if trial:
        trip(breaker)
        clock.advance(30)

    @breaker
    def work() -> Iterator[int]:
        yield 1
        yield 2

    for _ in range(3):
        generator = work()
        next(generator)
        generator.close()
    assert breaker.status.state == (BreakerState.HALF_OPEN if trial else BreakerState.CLOSED)
    assert breaker.call(int) == 0


def _generator() -> Iterator[int]:
    yield 1


async def _coroutine() -> int:
    return 1


async def _async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("func", [_generator, _coroutine, _async_generator])
def test_a_call_that_never_starts_gives_its_trial_call_back(clock: Clock, func: Callable[[], Any]):
    breaker = make_breaker(clock, consecutive_failures=1)
    trip(breaker)
    clock.advance(30)
    breaker.call(func)
    gc.collect()
    assert breaker.call(int) == 0
    assert breaker.status.state == BreakerState.CLOSED


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_a_task_that_is_cancelled_before_it_starts_gives_its_trial_call_back(clock: Clock):
    breaker = make_breaker(clock, consecutive_failures=1)
    trip(breaker)
    clock.advance(30)

    async def main() -> None:
        task = asyncio.create_task(breaker.call(_coroutine))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert breaker.call(int) == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_what_ends_a_process_or_task_is_no_failure(breaker: Breaker, error: type[BaseException]):
    def stop() -> None:
        raise error

    for _ in range(5):
        with pytest.raises(error):
            breaker.call(stop)
    assert breaker.status.state == BreakerState.CLOSED


def test_a_cancelled_task_gives_its_trial_call_back(breaker: Breaker, clock: Clock):
    trip(breaker)
    clock.advance(30)

    async def main() -> None:
        task = asyncio.create_task(breaker.call_async(asyncio.sleep, 3600))
        while breaker.status.state != BreakerState.HALF_OPEN:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await breaker.call_async(asyncio.sleep, 0)

    asyncio.run(main())
    assert breaker.status.state == BreakerState.CLOSED


def test_a_task_that_is_cancelled_while_it_is_admitted_gives_its_trial_call_back(
    breaker: Breaker, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    trip(breaker)
    clock.advance(30)
    admit, admitted, cancelled = breaker.engine.admit, threading.Event(), threading.Event()

    def admit_slowly() -> Ticket:
        ticket = admit()
        admitted.set()
        assert cancelled.wait(10)
        return ticket

    async def main() -> None:
        task = asyncio.create_task(breaker.call_async(asyncio.sleep, 0))
        await asyncio.to_thread(admitted.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancelled.set()

    with monkeypatch.context() as patch:
        patch.setattr(breaker.engine, "admit", admit_slowly)
        asyncio.run(main())  # waits for the thread
    asyncio.run(breaker.call_async(asyncio.sleep, 0))
    assert breaker.status.state == BreakerState.CLOSED


def test_a_function_that_raises_before_it_is_awaited_gives_its_trial_call_back(
    breaker: Breaker, clock: Clock
):
    trip(breaker)
    clock.advance(30)
    with pytest.raises(TypeError):
        asyncio.run(breaker.call_async(asyncio.sleep))  # without its arguments
    asyncio.run(breaker.call_async(asyncio.sleep, 0))
    assert breaker.status.state == BreakerState.CLOSED


def test_nothing_is_held_across_the_call(breaker: Breaker):
    everybody = threading.Barrier(8, timeout=60)
    threads = [threading.Thread(target=breaker.call, args=(everybody.wait,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    # Had one call waited for another, the barrier would have broken.
    assert not everybody.broken
    assert breaker.engine.admission.window.totals()[0] == 8


def test_no_success_of_a_thread_is_lost(breaker: Breaker):
    def many() -> None:
        for _ in range(5_000):
            breaker.call(int)

    threads = [threading.Thread(target=many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert breaker.engine.admission.window.totals()[0] == 40_000


# --- as pybreaker documents ------------------------------------------------------------------


class Listener(pybreaker.CircuitBreakerListener):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def before_call(self, cb, func, *args, **kwargs):
        self.heard.append(("before_call", func, args, kwargs))

    def success(self, cb):
        self.heard.append("success")

    def failure(self, cb, exc):
        self.heard.append(("failure", type(exc)))

    def state_change(self, cb, old_state, new_state):
        assert old_state is not None
        self.heard.append((old_state.name, new_state.name))


def test_a_user_of_pybreaker_can_swap_it_in():
    listener = Listener()
    breaker = Breaker(
        fail_max=2,
        reset_timeout=60,
        success_threshold=1,
        exclude=[LookupError],
        listeners=[listener],
        name="payments",
    )
    assert isinstance(breaker, pybreaker.CircuitBreaker)
    assert (breaker.name, breaker.fail_max, breaker.reset_timeout) == ("payments", 2, 60)
    assert breaker.current_state == pybreaker.STATE_CLOSED
    assert isinstance(breaker.state, pybreaker.CircuitClosedState)
    breaker.call(int, "5")
    with pytest.raises(KeyError):
        breaker.call({}.__getitem__, "x")
    with pytest.raises(Down):
        breaker.call(fail)
    with pytest.raises(pybreaker.CircuitBreakerError):
        breaker.call(fail)
    assert breaker.current_state == pybreaker.STATE_OPEN
    breaker.half_open()
    assert breaker.current_state == pybreaker.STATE_HALF_OPEN == "half-open"
    assert isinstance(breaker.state, pybreaker.CircuitHalfOpenState)
    breaker.close()
    assert breaker.current_state == pybreaker.STATE_CLOSED
    assert breaker.open() is True
    assert [heard for heard in listener.heard if heard[0] != "before_call"] == [
        "success",
        ("failure", Down),
        ("failure", Down),
        ("closed", "open"),
        ("open", "half-open"),
        ("half-open", "closed"),
        ("closed", "open"),
    ]
    assert listener.heard[0] == ("before_call", int, ("5",), {})


def test_the_tripping_failure_can_be_raised_as_it_is():
    breaker = Breaker(fail_max=1, throw_new_error_on_trip=False)
    with pytest.raises(Down):
        breaker.call(fail)
    assert breaker.open() is False


def test_settings_can_be_changed(breaker: Breaker, clock: Clock):
    breaker.fail_max, breaker.reset_timeout, breaker.success_threshold = 1, 5, 2
    with pytest.raises(BreakerOpenError):
        breaker.call(fail)
    clock.advance(5)
    breaker.call(int)
    assert (breaker.current_state, breaker.success_counter) == ("half-open", 1)
    breaker.call(int)
    assert breaker.current_state == "closed"
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        breaker.fail_max = 0


def test_excluded_errors_count_neither_way(breaker: Breaker):
    breaker.add_excluded_exceptions(Down)
    for _ in range(5):
        with pytest.raises(Down):
            breaker.call(fail)
    breaker.remove_excluded_exception(Down)
    for _ in range(2):
        with pytest.raises(Down):
            breaker.call(fail)
    busy = Breaker(fail_max=1, exclude=[lambda error: "busy" in str(error)])
    with pytest.raises(RuntimeError):
        busy.call(raise_, RuntimeError("busy"))
    assert busy.current_state == "closed"


def test_listeners_and_state_can_be_set_as_in_pybreaker(breaker: Breaker):
    listener = Listener()
    breaker.add_listeners(listener)
    assert breaker.listeners == (listener,)
    breaker.state = "open"
    breaker.remove_listener(listener)
    breaker.state = "closed"
    assert listener.heard == [("closed", "open")]
    with pytest.raises(ValueError, match="valid states: closed, open, half-open"):
        breaker.state = "half_open"


def test_what_counts_can_be_replaced(breaker: Breaker):
    from dagster_tidegate.breaker.judge import every_error

    for _ in range(5):
        with pytest.raises(ValueError, match="invalid literal"):
            breaker.call(int, "x")
    breaker.judge = every_error
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            breaker.call(int, "x")
    with pytest.raises(BreakerOpenError):
        breaker.call(int, "x")


def test_a_storage_of_pybreakers_is_refused():
    with pytest.raises(ValueError, match="use a Fleet with a backend instead"):
        Breaker(state_storage=pybreaker.CircuitMemoryStorage("closed"))


# --- the fleet in one process ----------------------------------------------------------------


def test_a_service_without_a_policy_is_refused_with_those_there_are():
    fleet = Fleet(policies=[ServicePolicy(name="openai"), ServicePolicy(name="apollo")])
    with pytest.raises(UnknownServiceError, match="'opnai'; there are: apollo, openai"):
        fleet.breaker("opnai")
    assert fleet.breaker("openai") is fleet.breaker("openai")
    with pytest.raises(ValueError, match=r"use fleet\.breaker"):
        Breaker(policy=ServicePolicy(name="openai"), fleet=fleet)
    with pytest.raises(ValueError, match="two policies are named 'a'"):
        Fleet(policies=[ServicePolicy(name="a"), ServicePolicy(name="a")])


def test_an_open_breaker_has_its_hold_without_a_store_too(breaker: Breaker, clock: Clock):
    trip(breaker)
    (hold,) = breaker.fleet.holds_on(services=["openai"])
    assert (hold.reason, hold.actor, hold.placed_at) == ("Down x3", "breaker", clock())
    assert breaker.fleet.holds_on(services=["apollo"], campaign="outreach") == []
    clock.advance(30)
    breaker.call(int)
    assert breaker.fleet.holds_on(services=["openai"]) == []


def test_the_kill_switch_lets_calls_pass_counts_them_and_trips_nothing(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TIDEGATE_ENABLED", "false")
    events: list[Any] = []
    breaker = make_breaker(clock, events)
    for _ in range(10):
        with pytest.raises(Down):
            breaker.call(fail)
    breaker.open()
    assert breaker.call(int) == 0
    assert breaker.fleet.holds_on(services=["openai"]) == []
    breaker.fleet.flush()
    counted = [(e.ok, e.failed) for e in events if isinstance(e, CallsCounted)]
    assert [sum(column) for column in zip(*counted, strict=True)] == [1, 10]


def test_a_wrong_kill_switch_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TIDEGATE_ENABLED", "off")
    with pytest.raises(ValueError, match="TIDEGATE_ENABLED is 'off'; use true or false"):
        Fleet()


def test_hooks_receive_every_event(breaker: Breaker, clock: Clock, events: list[Any]):
    breaker.call(int)
    trip(breaker)
    with pytest.raises(BreakerOpenError):
        breaker.call(int)
    clock.advance(30)
    breaker.call(int)
    changes = [
        (e.before.state.value, e.after.state.value) for e in events if isinstance(e, StateChanged)
    ]
    assert changes == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]
    assert [e.label for e in events if isinstance(e, CallFailed)] == ["Down"] * 3
    # The third failure was raised as `BreakerOpenError` too, but that call was made.
    assert [e.reason for e in events if isinstance(e, CallRefused)] == ["Down x3"]
    assert sum(e.ok for e in events if isinstance(e, CallsCounted)) == 1
    assert sum(e.failed for e in events if isinstance(e, CallsCounted)) == 3


def test_a_hook_that_raises_changes_nothing(clock: Clock, caplog: pytest.LogCaptureFixture):
    def hook(_event: Any) -> None:
        raise RuntimeError("hook")

    policy = ServicePolicy(name="openai", consecutive_failures=1)
    breaker = Fleet(MemoryBackend(clock=clock), [policy], hooks=[hook]).breaker("openai")
    trip(breaker)
    assert breaker.status.state == BreakerState.OPEN
    assert "a hook failed on StateChanged" in caplog.text


def test_a_hook_may_call_the_service_itself(clock: Clock):
    def hook(event: Any) -> None:
        if isinstance(event, CallsCounted):
            breaker.fleet.flush()
            with suppress(Down, BreakerOpenError):
                breaker.call(fail)

    policy = ServicePolicy(name="openai", consecutive_failures=10)
    breaker = Fleet(MemoryBackend(clock=clock), [policy], hooks=[hook]).breaker("openai")
    with pytest.raises((Down, BreakerOpenError)):
        breaker.call(fail)  # the hook calls, fails, and is told of that in turn
    assert breaker.status.reason == "Down x10"
