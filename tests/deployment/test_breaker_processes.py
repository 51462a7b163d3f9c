"""Breakers of real processes that share a real database."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import pytest
import sqlalchemy as sa

from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.events import StateChanged
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from tests.support.databases import both_databases
from tests.support.failing_service import Down, fail, policy
from tests.support.polling import MAX_S, wait_until

# Not forked from the process of the tests, whose threads and connections they would inherit.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__])
SOON = 60.0


def run(workers: int, body: Callable[..., Any], *args: Any) -> list[Any]:
    """Run `body(barrier, *args)` in so many processes at once; return what they return."""
    barrier = processes.Barrier(workers, timeout=SOON)
    started, readers = [], []
    for _ in range(workers):
        reader, writer = processes.Pipe(duplex=False)
        process = processes.Process(target=send_result, args=(writer, body, barrier, *args))
        process.start()
        writer.close()
        started.append(process)
        readers.append(reader)
    results = []
    for reader in readers:
        assert reader.poll(SOON), "a process gave no result"
        results.append(reader.recv())
    for process in started:
        process.join(SOON)
        assert process.exitcode == 0
    return results


def send_result(writer: Connection, body: Callable[..., Any], *args: Any) -> None:
    writer.send(body(*args))


def fail_until_open(barrier: Any, url: str) -> tuple[int, int]:
    changes: list[StateChanged] = []

    def hook(event: Any) -> None:
        if isinstance(event, StateChanged):
            changes.append(event)

    fleet = Fleet(SqlBackend(Store(url)), [policy(reset_timeout_s=600)], hooks=[hook])
    breaker = fleet.breaker("openai")
    failures = 0
    barrier.wait()
    while breaker.status.state == BreakerState.CLOSED:
        try:
            breaker.call(fail)
        except Down:
            failures += 1
        except BreakerOpenError:
            pass
    fleet.close()
    return len(changes), failures


@both_databases
def test_a_trip_happens_once_however_many_see_the_service_die(store_url: str):
    results = run(16, fail_until_open, store_url)
    assert sum(changes for changes, _ in results) == 1
    store = Store(store_url)
    with store.read() as conn:
        events = conn.execute(sa.select(t.events.c.kind, t.events.c.to_status)).all()
        live = conn.scalar(sa.select(sa.func.count()).select_from(t.holds))
    store.dispose()
    assert sorted(map(tuple, events)) == [("hold", "placed"), ("service", "open")]
    assert live == 1


def try_for(barrier: Any, url: str, seconds: float) -> list[tuple[float, float]]:
    rules = policy(trial_calls=2, success_threshold=100)
    fleet = Fleet(SqlBackend(Store(url)), [rules])
    breaker = fleet.breaker("openai")
    calls: list[tuple[float, float]] = []

    def call() -> None:
        began = time.monotonic()
        time.sleep(0.2)
        calls.append((began, time.monotonic()))

    barrier.wait()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(BreakerOpenError):
            breaker.call(call)
        fleet.wait_for_change(0.05)
    fleet.close()
    return calls


@both_databases
def test_never_more_trial_calls_at_once_than_permitted(store_url: str):
    fleet = Fleet(SqlBackend(Store(store_url)), [policy()])
    fleet.breaker("openai").half_open()
    fleet.close()
    calls = [call for calls in run(16, try_for, store_url, 3.0) for call in calls]
    edges = sorted([(began, 1) for began, _ in calls] + [(ended, -1) for _, ended in calls])
    running = most = 0
    for _, step in edges:
        running += step
        most = max(most, running)
    assert most == 2


def hang_in_a_trial_call(url: str, began: Connection) -> None:
    def hang() -> None:
        began.send(os.getpid())
        time.sleep(MAX_S)

    Fleet(SqlBackend(Store(url)), [policy(trial_lease_s=3)]).breaker("openai").call(hang)


def is_admitted(fleet: Fleet) -> bool:
    with suppress(BreakerOpenError):
        return fleet.breaker("openai").call(int) == 0
    return False


@both_databases
def test_a_worker_killed_in_its_trial_call_blocks_nobody(store_url: str):
    fleet = Fleet(SqlBackend(Store(store_url)), [policy(trial_lease_s=3)])
    breaker = fleet.breaker("openai")
    breaker.half_open()
    reader, writer = processes.Pipe(duplex=False)
    process = processes.Process(target=hang_in_a_trial_call, args=(store_url, writer))
    process.start()
    assert reader.poll(SOON)
    os.kill(reader.recv(), signal.SIGKILL)
    process.join(SOON)
    with pytest.raises(BreakerOpenError) as refused:
        breaker.call(int)
    assert refused.value.state == BreakerState.HALF_OPEN
    assert refused.value.retry_at is not None
    wait_until(lambda: is_admitted(fleet), "no other worker is admitted")
    assert breaker.status.state == BreakerState.CLOSED
    fleet.close()
