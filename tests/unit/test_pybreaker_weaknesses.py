"""Each weakness that pybreaker 1.4.1 has by measurement: shown on it, and absent here."""

# ruff: noqa: ARG002 - a listener has the parameters of pybreaker's
import asyncio
import threading
import time
from abc import ABCMeta
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pybreaker
import pytest

from dagster_tidegate.breaker.backend import MemoryBackend
from dagster_tidegate.breaker.breaker import Breaker
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind
from tests.support.clock import Clock
from tests.support.failing_service import Down, fail


def try_to(func: Callable[..., Any], *args: Any) -> None:
    with suppress(Down, pybreaker.CircuitBreakerError):
        func(*args)


class CountingStorage(pybreaker.CircuitMemoryStorage):
    """A shared storage that counts how often it is touched."""

    touched = 0

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in ("touched", "name"):
            type(self).touched += 1
        return super().__getattribute__(name)


class Workers:
    """Two or more workers of a fleet, of pybreaker's kind or of ours, with one shared state."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def pybreakers(self, count: int, **options: Any) -> list[pybreaker.CircuitBreaker]:
        storage = pybreaker.CircuitMemoryStorage("closed")
        return [pybreaker.CircuitBreaker(state_storage=storage, **options) for _ in range(count)]

    def ours(self, count: int, hooks: Any = (), **fields: Any) -> list[Breaker]:
        shared = MemoryBackend(clock=self.clock)
        policy = ServicePolicy(
            **{"name": "openai", "consecutive_failures": 2, "jitter": 0} | fields
        )
        return [Fleet(shared, [policy], hooks=hooks).breaker("openai") for _ in range(count)]


@pytest.fixture
def workers(clock: Clock) -> Workers:
    return Workers(clock)


def most_at_once(breaker: pybreaker.CircuitBreaker, threads: int) -> int:
    running = most = 0
    lock = threading.Lock()
    everybody = threading.Barrier(threads)

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with suppress(threading.BrokenBarrierError):
            everybody.wait(0.3)
        with lock:
            running -= 1

    pool = [threading.Thread(target=try_to, args=(breaker.call, work)) for _ in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    return most


def test_the_lock_is_held_across_the_call(workers: Workers):
    assert most_at_once(workers.pybreakers(1)[0], 4) == 1
    assert most_at_once(workers.ours(1)[0], 4) == 4


def test_every_success_touches_the_storage():
    storage = CountingStorage("closed")
    theirs = pybreaker.CircuitBreaker(state_storage=storage)
    before = CountingStorage.touched
    theirs.call(int)
    assert CountingStorage.touched - before >= 2

    class Untouchable(MemoryBackend):
        open_for_use = True

        def __getattribute__(self, name: str) -> Any:
            assert object.__getattribute__(self, "open_for_use"), f"{name} was touched"
            return object.__getattribute__(self, name)

    circuits = Untouchable()
    breaker = Fleet(circuits, [ServicePolicy(name="openai")]).breaker("openai")
    circuits.open_for_use = False
    for _ in range(100):
        breaker.call(int)
    circuits.open_for_use = True


def test_half_open_has_no_cap_across_processes(workers: Workers):
    def probes(breakers: list[Any]) -> int:
        started = 0

        def probe(rest: list[Any]) -> None:
            nonlocal started
            started += 1
            if rest:  # the next worker comes while this probe still runs
                try_to(rest[0].call, probe, rest[1:])

        try_to(breakers[0].call, probe, breakers[1:])
        return started

    theirs = workers.pybreakers(8)
    theirs[0].half_open()
    assert probes(theirs) == 8
    ours = workers.ours(8)
    ours[0].half_open()
    for breaker in ours:
        breaker.fleet.refresh()
    assert probes(ours) == 1


def test_open_to_half_open_is_check_then_set(workers: Workers, clock: Clock):
    changes: list[Any] = []

    class Listener(pybreaker.CircuitBreakerListener):
        def state_change(self, cb, old_state, new_state):
            changes.append(new_state.name)

    storage = pybreaker.CircuitMemoryStorage("open")
    theirs = [
        pybreaker.CircuitBreaker(state_storage=storage, listeners=[Listener()]) for _ in range(2)
    ]
    storage.opened_at = datetime.now(UTC) - timedelta(hours=1)
    seen = [breaker.state for breaker in theirs]  # both look, then both act
    try_to(seen[0].before_call, try_to, seen[1].before_call, fail)
    assert changes.count("half-open") == 2

    changes.clear()
    ours = workers.ours(2, consecutive_failures=1)
    for breaker in ours:
        breaker.add_listener(Listener())
    try_to(ours[0].call, fail)
    clock.advance(30)
    ours[1].fleet.refresh()
    try_to(ours[0].call, try_to, ours[1].call, fail)
    assert changes.count("half-open") == 1


def test_noticing_a_peers_transition_resets_the_shared_counters(workers: Workers, clock: Clock):
    theirs = workers.pybreakers(2, fail_max=3, reset_timeout=0)
    for _ in range(3):
        try_to(theirs[0].call, fail)
    theirs[0].close()
    theirs[1].state  # noqa: B018 - it is known to the second as closed, then as open, then closed
    for _ in range(2):
        try_to(theirs[0].call, fail)
    theirs[1]._state = pybreaker.CircuitOpenState(theirs[1])  # it has not looked since the trip
    theirs[1].state  # noqa: B018 - now it notices
    assert theirs[0].fail_counter == 0

    ours = workers.ours(2, consecutive_failures=3)
    ours[0].open()
    ours[1].fleet.refresh()
    ours[0].close()
    for _ in range(2):
        clock.advance(0.01)
        try_to(ours[0].call, fail)
    ours[1].fleet.refresh()  # now it notices
    assert ours[0].fail_counter == 2
    try_to(ours[1].call, fail)
    assert ours[1].current_state == "open"


def test_a_failure_begun_before_the_trip_opens_it_again_later(workers: Workers):
    def recovered_meanwhile(breaker: Any) -> None:
        breaker.open()
        breaker.half_open()
        raise Down

    theirs = workers.pybreakers(1)[0]
    # Its lock keeps other threads away; another process, or a nested call, is as late.
    try_to(theirs.state.call, recovered_meanwhile, theirs)
    theirs.half_open()
    late = pybreaker.CircuitHalfOpenState(theirs, None)
    try_to(late.call, fail)
    assert theirs.current_state == "open"

    ours = workers.ours(1, consecutive_failures=1)[0]

    def outlives_the_outage() -> None:
        ours.open()
        ours.close()
        raise Down

    with pytest.raises(Down):
        ours.call(outlives_the_outage)
    assert ours.current_state == "closed"


def test_a_high_failure_rate_that_is_never_consecutive_never_trips(workers: Workers):
    def unwell(breaker: Any) -> None:
        for number in range(100):
            try_to(breaker.call, int if number % 5 == 0 else fail)

    theirs = workers.pybreakers(1, fail_max=5)[0]
    unwell(theirs)
    assert theirs.current_state == "closed"
    ours = workers.ours(1, consecutive_failures=5, failure_rate=0.5)[0]
    unwell(ours)
    assert ours.current_state == "open"


def test_listeners_fire_before_the_shared_state_is_written(workers: Workers):
    seen: list[str] = []

    class Listener(pybreaker.CircuitBreakerListener):
        def state_change(self, cb, old_state, new_state):
            seen.append(look(cb))

    look: Callable[[Any], str] = lambda cb: cb._state_storage.state  # noqa: E731 - replaced below
    workers.pybreakers(1, listeners=[Listener()])[0].open()
    look = lambda cb: cb.fleet.state.backend.read([]).services["openai"].state.value  # noqa: E731
    ours = workers.ours(1)[0]
    ours.add_listener(Listener())
    ours.open()
    assert seen == ["closed", "open"]


def test_a_listener_that_raises_aborts_the_trip(workers: Workers):
    class Broken(pybreaker.CircuitBreakerListener):
        def state_change(self, cb, old_state, new_state):
            raise RuntimeError("listener")

    theirs = workers.pybreakers(1, listeners=[Broken()])[0]
    with pytest.raises(RuntimeError):
        theirs.open()
    assert theirs.current_state == "closed"
    ours = workers.ours(1)[0]
    ours.add_listener(Broken())
    ours.open()
    assert ours.current_state == "open"


def test_each_worker_reports_the_same_trip(workers: Workers):
    trips: list[Any] = []

    class Listener(pybreaker.CircuitBreakerListener):
        def state_change(self, cb, old_state, new_state):
            trips.append(new_state.name)

    theirs = workers.pybreakers(8, fail_max=1, listeners=[Listener()])
    try_to(theirs[0].call, fail)
    for breaker in theirs:
        try_to(breaker.call, fail)
    assert trips == ["open"] * 8
    trips.clear()
    ours = workers.ours(8, consecutive_failures=1)
    for breaker in ours:
        breaker.add_listener(Listener())
    try_to(ours[0].call, fail)
    for breaker in ours:
        breaker.fleet.refresh()
        try_to(breaker.call, fail)
    assert trips == ["open"]


def test_an_excluded_error_counts_as_a_success(workers: Workers):
    def wrong_request() -> None:
        raise LookupError

    def between_failures(breaker: Any) -> int:
        try_to(breaker.call, fail)
        with suppress(LookupError):
            breaker.call(wrong_request)
        return breaker.fail_counter

    assert between_failures(workers.pybreakers(1, exclude=[LookupError])[0]) == 0
    ours = workers.ours(1)[0]
    ours.add_excluded_exception(LookupError)
    assert between_failures(ours) == 1

    def as_probe(breaker: Any) -> str:
        breaker.half_open()
        with suppress(LookupError):
            breaker.call(wrong_request)
        return breaker.current_state

    assert as_probe(workers.pybreakers(1, exclude=[LookupError])[0]) == "closed"
    assert as_probe(ours) == "half-open"


def test_an_excluded_class_with_a_metaclass_excludes_everything(workers: Workers):
    class Business(Exception, metaclass=ABCMeta):
        pass

    theirs = workers.pybreakers(1, fail_max=1, exclude=[Business])[0]
    with pytest.raises(Down):
        theirs.call(fail)
    assert theirs.current_state == "closed"
    ours = workers.ours(1, consecutive_failures=1)[0]
    ours.add_excluded_exception(Business)
    try_to(ours.call, fail)
    assert ours.current_state == "open"


def test_ending_the_process_counts_as_a_failure(workers: Workers):
    def interrupted() -> None:
        raise KeyboardInterrupt

    def after_interrupts(breaker: Any) -> str:
        for _ in range(2):
            with suppress(KeyboardInterrupt, pybreaker.CircuitBreakerError):
                breaker.call(interrupted)
        return breaker.current_state

    assert after_interrupts(workers.pybreakers(1, fail_max=2)[0]) == "open"
    assert after_interrupts(workers.ours(1)[0]) == "closed"


def test_an_abandoned_generator_counts_as_a_failure(workers: Workers):
    def work() -> Iterator[int]:
        yield 1

    def after_abandoning(breaker: Any) -> str:
        for _ in range(2):
            generator = breaker.call(work)
            next(generator)
            with suppress(RuntimeError, GeneratorExit, pybreaker.CircuitBreakerError):
                generator.close()
        return breaker.current_state

    assert after_abandoning(workers.pybreakers(1, fail_max=2)[0]) == "open"
    assert after_abandoning(workers.ours(1)[0]) == "closed"


def test_a_coroutine_is_a_success_before_it_ran(workers: Workers):
    async def work() -> None:
        raise Down

    def after_awaiting(breaker: Any) -> str:
        async def main() -> None:
            for _ in range(2):
                with suppress(Down, pybreaker.CircuitBreakerError):
                    await breaker(work)()

        asyncio.run(main())
        return breaker.current_state

    assert after_awaiting(workers.pybreakers(1, fail_max=2)[0]) == "closed"
    assert after_awaiting(workers.ours(1)[0]) == "open"


def test_the_storage_has_no_compare_and_set(clock: Clock):
    storage = pybreaker.CircuitMemoryStorage("open")
    first, second = storage.state, storage.state
    for _ in (first, second):
        storage.state = "half-open"  # both of them believe that they did it
    shared = MemoryBackend(clock=clock)
    policy = ServicePolicy(name="openai")
    from dagster_tidegate.breaker import state_machine as machine

    before = shared.read(["openai"]).services["openai"]
    after = machine.opened(before, policy, clock(), Verdict(VerdictKind.FAILURE, reason="503"), 0.0)
    assert [shared.change(before, after, "a"), shared.change(before, after, "b")] == [True, False]


def test_an_unknown_state_in_the_storage_breaks_every_call(workers: Workers):
    storage = pybreaker.CircuitMemoryStorage("closed")
    theirs = pybreaker.CircuitBreaker(state_storage=storage)
    storage.state = "half_open"
    with pytest.raises(ValueError, match="Unknown state"):
        theirs.call(int)
    # Ours can't be written at all: by the enum here, by a constraint in the database.
    with pytest.raises(ValueError, match="unknown state"):
        workers.ours(1)[0].state = "half_open"


def test_the_opening_has_the_time_of_the_workers_clock(workers: Workers, clock: Clock):
    theirs = workers.pybreakers(1)[0]
    theirs.open()
    opened_at = theirs._state_storage.opened_at
    assert opened_at is not None
    assert abs(opened_at.timestamp() - time.time()) < 60
    ours = workers.ours(1)[0]
    clock.advance(0.123456)
    ours.open()
    assert ours.status.opened_at == clock(), "the shared clock's, to the microsecond"
