"""What the breaker costs and how fast it is: `python -m tests.benchmarks.breaker [--json FILE]`."""

import argparse
import asyncio
import json
import multiprocessing
import multiprocessing.dummy
import sqlite3
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import psycopg
import pybreaker
import sqlalchemy as sa
from sqlalchemy import event

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.breaker import Breaker
from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.events import ChangeLearned, StateChanged, StoreLost
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.window import WindowDelta, bucket_of
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from tests.benchmarks.servers import Databases, databases

REPEATS = 7
# Forked, not spawned: 200 interpreters would not import at once on a small machine.
processes = multiprocessing.get_context("fork")


def policy(**fields: Any) -> ServicePolicy:
    return ServicePolicy(**{"name": "bench", "reset_timeout_s": 600.0, "jitter": 0.0} | fields)


def nothing() -> int:
    return 1


async def nothing_async() -> int:
    return 1


def fail() -> None:
    raise ConnectionError("down")


# --- one process ---------------------------------------------------------------------------------


def closed_overhead(url: str) -> float:
    """Overhead of a closed call / that of pybreaker in memory."""
    fleet = Fleet(SqlBackend(Store(url)), [policy()])
    ours, theirs = fleet.breaker("bench"), pybreaker.CircuitBreaker()

    def seconds(call: Callable[[Callable], Any]) -> float:
        began = time.perf_counter()
        for _ in range(50_000):
            call(nothing)
        return time.perf_counter() - began

    def ratio() -> float:
        bare = seconds(lambda func: func())
        return (seconds(lambda func: ours.call(func)) - bare) / (
            seconds(lambda func: theirs.call(func)) - bare
        )

    ratios = [ratio() for _ in range(REPEATS)]
    fleet.close()
    return statistics.median(ratios)


def closed_overhead_async(url: str) -> float:
    """The same for coroutine functions: the slower of decorator and `call_async`."""
    fleet = Fleet(SqlBackend(Store(url)), [policy()])
    ours, theirs = fleet.breaker("bench"), pybreaker.CircuitBreaker()
    decorated = ours(nothing_async)

    async def seconds(call: Callable[[], Awaitable]) -> float:
        began = time.perf_counter()
        for _ in range(50_000):
            await call()
        return time.perf_counter() - began

    async def ratio() -> float:
        bare = await seconds(nothing_async)
        guarded = max(
            await seconds(decorated),
            await seconds(lambda: ours.call_async(nothing_async)),
        )
        return (guarded - bare) / (await seconds(lambda: theirs.call(nothing_async)) - bare)

    ratios = [asyncio.run(ratio()) for _ in range(REPEATS)]
    fleet.close()
    return statistics.median(ratios)


def store_statements(url: str) -> float:
    """Statements a second of one process that calls one service as fast as it can."""
    store = Store(url)
    fleet = Fleet(SqlBackend(store), [policy()])
    breaker = fleet.breaker("bench")
    count = 0

    @event.listens_for(store.engine, "before_cursor_execute")
    def _count(*_: Any) -> None:
        nonlocal count
        count += 1

    seconds = 15.0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for _ in range(1000):
            breaker.call(nothing)
    counted = count
    fleet.close()
    return counted / seconds


def failure_write(url: str) -> tuple[float, float]:
    """A failure recorded and the state read back / one bare UPSERT and COMMIT.

    The bare one goes once through the same store, and once past it, straight to the driver.
    """
    rule = policy(consecutive_failures=100_000)
    store = Store(url)
    backend = SqlBackend(store)
    backend.read([rule.name])
    table = "CREATE TABLE bare (service text, worker text, failed int, PRIMARY KEY(service,worker))"
    with store.begin() as conn:
        conn.execute(sa.text(table))
    upsert = (
        "INSERT INTO bare (service, worker, failed) VALUES ('bench', 'w', 1) "
        "ON CONFLICT (service, worker) DO UPDATE SET failed = bare.failed + 1"
    )
    statement = sa.text(upsert)
    driver: Any
    if store.is_sqlite:
        driver = sqlite3.connect(store.url.database or "", isolation_level=None)
        driver.execute("PRAGMA synchronous=FULL")
    else:
        address = store.url.set(drivername="postgresql").render_as_string(hide_password=False)
        driver = psycopg.connect(address, autocommit=True)

    def through_the_driver() -> None:
        driver.execute("BEGIN")
        driver.execute(upsert)
        driver.execute("COMMIT")

    def through_the_store() -> None:
        with store.begin() as conn:
            conn.execute(statement)

    def record() -> None:
        now = datetime.now(UTC)
        seen = WindowDelta(
            "bench",
            0,
            "w",
            bucket_of(rule, now),
            now,
            failed=1,
            failed_in_row=1,
            row_since=now,
            last_failed_at=now,
        )
        backend.record(rule, seen)

    def seconds(step: Callable[[], Any]) -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    def ratios() -> tuple[float, float]:
        # By turns, so that all meet the same disk.
        steps = (record, through_the_store, through_the_driver)
        rounds = [[seconds(step) for step in steps] for _ in range(200)]
        ours, store_s, driver_s = (
            statistics.median(column) for column in zip(*rounds, strict=True)
        )
        return ours / store_s, ours / driver_s

    found = [ratios() for _ in range(REPEATS)]
    driver.close()
    store.dispose()
    return statistics.median(a for a, _ in found), statistics.median(b for _, b in found)


def threads(url: str) -> float:
    """Calls per second of 32 threads, each call 20 ms / the same unguarded."""
    fleet = Fleet(SqlBackend(Store(url)), [policy()])
    breaker = fleet.breaker("bench")

    def per_second(call: Callable[[], Any]) -> float:
        began = time.perf_counter()
        with ThreadPoolExecutor(32) as pool:
            for _ in pool.map(lambda _: call(), range(32 * 20)):
                pass
        return 32 * 20 / (time.perf_counter() - began)

    def ratio() -> float:
        return per_second(lambda: breaker.call(time.sleep, 0.02)) / per_second(
            lambda: time.sleep(0.02)
        )

    ratios = [ratio() for _ in range(REPEATS)]
    fleet.close()
    return statistics.median(ratios)


def tasks(url: str) -> float:
    """The same for 200 asyncio tasks."""
    fleet = Fleet(SqlBackend(Store(url)), [policy()])
    breaker = fleet.breaker("bench")

    async def per_second(call: Callable[[], Awaitable]) -> float:
        async def worker() -> None:
            for _ in range(20):
                await call()

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(200)))
        return 200 * 20 / (time.perf_counter() - began)

    async def ratio() -> float:
        guarded = await per_second(lambda: breaker.call_async(asyncio.sleep, 0.02))
        return guarded / await per_second(lambda: asyncio.sleep(0.02))

    ratios = [asyncio.run(ratio()) for _ in range(REPEATS)]
    fleet.close()
    return statistics.median(ratios)


# --- a fleet of processes ------------------------------------------------------------------------


def run_fleet(
    workers: int, body: Callable[..., Any], url: str, *args: Any, timeout_s: float = 120
) -> list[Any]:
    """Run `body(number, url, barrier, dead, *args)` in so many processes; return their results."""
    barrier, dead = processes.Barrier(workers), processes.Event()
    results: list[Any] = []
    pipes = []
    started = []
    for number in range(workers):
        reader, writer = processes.Pipe(duplex=False)
        process = processes.Process(
            target=_send_result, args=(writer, body, number, url, barrier, dead, *args)
        )
        process.start()
        writer.close()
        pipes.append(reader)
        started.append(process)
    for reader in pipes:
        if not reader.poll(timeout_s):
            raise TimeoutError("a worker of the benchmark gave no result")
        results.append(reader.recv())
    for process in started:
        process.join(timeout_s)
    return results


def _send_result(writer: Any, body: Callable[..., Any], *args: Any) -> None:
    writer.send(body(*args))


def _call_until_open(breaker: Breaker, call: Callable[[], Any], until: float) -> int:
    """Call until refused; return how many calls failed."""
    failures = 0

    def counted() -> None:
        nonlocal failures
        try:
            call()
        except ConnectionError:
            failures += 1
            raise

    while time.monotonic() < until:
        try:
            breaker.call(counted)
        except BreakerOpenError:
            if breaker.status.state != BreakerState.CLOSED:
                break
        except ConnectionError:
            pass
    return failures


def _busy(number: int, url: str, barrier: Barrier, dead: Event, call_s: float) -> int:
    fleet = Fleet(SqlBackend(Store(url)), [policy(consecutive_failures=10)])
    breaker = fleet.breaker("bench")

    def call() -> None:
        time.sleep(call_s)
        if dead.is_set():
            raise ConnectionError("down")

    barrier.wait()
    if number == 0:
        multiprocessing.dummy.Process(target=lambda: (time.sleep(2.5), dead.set())).start()
    failures = _call_until_open(breaker, call, time.monotonic() + 20)
    fleet.close()
    return failures


def failures_before_trip(url: str) -> int:
    """Failed calls until 8 busy workers, with a threshold of 10, all stopped."""
    return sum(run_fleet(8, _busy, url, 0.005))


def _slow(
    number: int, url: str, barrier: Barrier, dead: Event
) -> tuple[list[float], float | None, float | None]:
    known: list[float] = []
    tripped: list[float] = []

    def hook(event: Any) -> None:
        if isinstance(event, ChangeLearned):
            known.append(time.monotonic())
        if isinstance(event, StateChanged):
            known.append(time.monotonic())

    fleet = Fleet(SqlBackend(Store(url)), [policy(consecutive_failures=10)], hooks=[hook])
    breaker = fleet.breaker("bench")
    begun: list[float] = []

    def call() -> None:
        begun.append(time.monotonic())
        time.sleep(0.005 if number == 0 else 0.1)
        if dead.is_set():
            if number == 0:
                tripped[:] = [time.monotonic()]  # the last failure before it is known trips
            raise ConnectionError("down")

    barrier.wait()
    if number == 0:
        multiprocessing.dummy.Process(target=lambda: (time.sleep(1.5), dead.set())).start()
    _call_until_open(breaker, call, time.monotonic() + 20)
    learned = known[0] if known else None
    fleet.close()
    opened = breaker.status.opened_at
    offset = time.time() - time.monotonic()
    return begun, learned, None if opened is None else opened.timestamp() - offset


def calls_after_trip(url: str) -> tuple[int, int]:
    """Calls begun after the trip by 1 busy and 7 slow workers; and after their process knew."""
    results = run_fleet(8, _slow, url)
    opened = min(opened for _, _, opened in results if opened is not None)
    after = sum(at > opened for begun, _, _ in results for at in begun)
    knowing = sum(
        at > learned for begun, learned, _ in results if learned is not None for at in begun
    )
    return after, knowing


def _learn(
    number: int, url: str, barrier: Barrier, dead: Event, rounds: int
) -> list[tuple[int, float]]:
    learned: list[tuple[int, float]] = []

    def hook(event: Any) -> None:
        if isinstance(event, ChangeLearned):
            learned.append((event.after.generation, time.monotonic()))

    fleet = Fleet(SqlBackend(Store(url)), [policy()], hooks=[hook])
    breaker = fleet.breaker("bench")
    made: list[tuple[int, float]] = []
    time.sleep(0.5)  # until everybody listens
    barrier.wait()
    if number == 0:
        for _ in range(rounds):
            before, now = fleet.refresh().services["bench"], fleet.now()
            if before.state == BreakerState.CLOSED:
                after = machine.opened_by_hand(before, breaker.policy, now, 0.0)
            else:
                after = machine.closed(before, now)
            began = time.monotonic()
            fleet.state.change(before, after)
            made.append((after.generation, began))
            time.sleep(0.25)
        dead.set()
    dead.wait(120)
    fleet.close()
    return made if number == 0 else learned


def propagation_p99_ms(url: str) -> float:
    """From the beginning of the trip's transaction to 8 other processes knowing, 99th centile."""
    results = run_fleet(9, _learn, url, 40)
    made = dict(results[0])
    delays = [
        (at - made[generation]) * 1000
        for learned in results[1:]
        for generation, at in learned
        if generation in made
    ]
    if len(delays) < 0.9 * 8 * len(made):
        raise RuntimeError(f"only {len(delays)} of {8 * len(made)} changes were learned one by one")
    return statistics.quantiles(delays, n=100)[98]


def _try(
    number: int, url: str, barrier: Barrier, _dead: Event, permitted: int
) -> list[tuple[float, float]]:
    rule = policy(trial_calls=permitted, success_threshold=100)
    fleet = Fleet(SqlBackend(Store(url)), [rule])
    breaker = fleet.breaker("bench")
    if number == 0:
        breaker.half_open()
    calls: list[tuple[float, float]] = []

    def call() -> None:
        began = time.monotonic()
        time.sleep(0.2)  # too long for the 100 successes that would close it
        calls.append((began, time.monotonic()))

    barrier.wait()
    fleet.refresh()
    until = time.monotonic() + 4
    while time.monotonic() < until:
        with suppress(BreakerOpenError):
            breaker.call(call)
        time.sleep(0.001)
    fleet.close()
    return calls


def trial_calls_max(url: str, permitted: int) -> int:
    """Most trial calls at once, when 32 processes want one."""
    calls = [call for calls in run_fleet(32, _try, url, permitted) for call in calls]
    edges = sorted([(began, 1) for began, _ in calls] + [(ended, -1) for _, ended in calls])
    running = most = 0
    for _, step in edges:
        running += step
        most = max(most, running)
    return most


def _storm(_number: int, url: str, barrier: Barrier, _dead: Event) -> tuple[int, float, int]:
    errors = 0
    agreed: list[float] = []

    def hook(event: Any) -> None:
        nonlocal errors
        if isinstance(event, StoreLost):
            errors += 1
        if isinstance(event, StateChanged):
            agreed.append(time.monotonic())

    fleet = Fleet(SqlBackend(Store(url)), [policy(consecutive_failures=10)], hooks=[hook])
    breaker = fleet.breaker("bench")
    barrier.wait()
    began = time.monotonic()
    _call_until_open(breaker, fail, began + 120)
    took = time.monotonic() - began
    fleet.close()
    return errors, took, len(agreed)


def storm(url: str, workers: int = 200) -> tuple[int, float, int]:
    """Workers that all fail at once: lost stores, seconds until all agree, and trips."""
    results = run_fleet(workers, _storm, url, timeout_s=300)
    return (
        sum(errors for errors, _, _ in results),
        max(took for _, took, _ in results),
        sum(trips for _, _, trips in results),
    )


def measure(made: Databases) -> dict[str, float]:
    """Measure everything, and print each figure as soon as it is known."""
    figures: dict[str, float] = {}

    def note(name: str, value: float, bar: str = "") -> None:
        figures[name] = round(value, 3)
        print(f"{name:36} {value:10.3f}   {bar}", flush=True)

    note("closed_overhead_ratio", closed_overhead(made.make("sqlite")), "at most 0.6")
    note("closed_overhead_async_ratio", closed_overhead_async(made.make("sqlite")), "at most 0.6")
    both = ("sqlite", "postgres")
    for kind in both:
        note(f"store_statements_per_second_{kind}", store_statements(made.make(kind)), "at most 2")
        by_store, by_driver = failure_write(made.make(kind))
        note(f"failure_write_ratio_{kind}", by_store, "at most 2")
        note(f"failure_write_ratio_{kind}_driver", by_driver)
    note("threads_ratio", threads(made.make("sqlite")), "at least 0.95")
    note("asyncio_ratio", tasks(made.make("sqlite")), "at least 0.95")
    for kind in both:
        runs = [failures_before_trip(made.make(kind)) for _ in range(REPEATS)]
        note(f"failures_before_trip_{kind}", statistics.median(runs), f"at most 18; {sorted(runs)}")
        after = [calls_after_trip(made.make(kind)) for _ in range(REPEATS)]
        counts = [calls for calls, _ in after]
        note(f"calls_after_trip_{kind}", statistics.median(counts), f"at most 8; {sorted(counts)}")
        note(f"calls_after_knowing_{kind}", max(k for _, k in after), "0")
        bar = "at most 150" if kind == "sqlite" else "at most 50"
        note(f"propagation_p99_ms_{kind}", propagation_p99_ms(made.make(kind)), bar)
        for permitted in (1, 3):
            most = trial_calls_max(made.make(kind), permitted)
            note(f"trial_calls_max_{kind}_of_{permitted}", most, f"exactly {permitted}")
        errors, seconds, trips = storm(made.make(kind))
        note(f"storm_errors_{kind}", errors, "0")
        note(f"storm_trips_{kind}", trips, "1")
        note(f"storm_seconds_{kind}", seconds)
    for name in (
        "store_statements_per_second",
        "failure_write_ratio",
        "failures_before_trip",
        "calls_after_trip",
        "storm_errors",
    ):
        figures[name] = max(figures[f"{name}_{kind}"] for kind in both)
    figures["trial_calls_max"] = max(figures[f"trial_calls_max_{kind}_of_1"] for kind in both)
    return figures


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    with databases() as made:
        figures = measure(made)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
