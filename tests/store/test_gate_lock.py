"""One gate at a time changes Dagster, and nobody else waits for it; on both databases."""

import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.reconcile import Direction, reconcile
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import gate_lock as module
from dagster_tidegate.store import holds, runs, takeovers
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.gate_lock import GateBusyError, gate_lock
from tests.support.clock import Clock
from tests.unit.simulated_dagster import Fuse, SimulatedDagster

MAIL = Target(TargetKind.SERVICE, "mail")


@pytest.fixture
def other(store_url: str, clock: Clock) -> Iterator[Store]:
    """The store as another process sees it."""
    other = Store(store_url, clock=clock)
    yield other
    other.dispose()


def test_a_second_gate_waits_for_the_first_and_gives_up(store: Store, other: Store):
    with gate_lock(store, 0) as still_held:
        with pytest.raises(GateBusyError, match=r"for 0\.1 s"), gate_lock(other, 0.1):
            pass
        still_held()
    with gate_lock(other, 0), pytest.raises(GateBusyError), gate_lock(store, 0):
        pass


def test_a_second_gate_goes_on_when_the_first_has_finished(store: Store, other: Store):
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with gate_lock(store, 0):
            entered.set()
            leave.wait(30)

    with ThreadPoolExecutor() as pool:
        working = pool.submit(first)
        assert entered.wait(30)
        threading.Timer(0.2, leave.set).start()
        with gate_lock(other, 30):
            assert leave.is_set()
        working.result()


def _hold_for_ever(url: str, entered) -> None:
    with gate_lock(Store(url), 0):
        entered.set()
        time.sleep(600)


def test_the_lock_of_a_gate_that_was_killed_is_free(store: Store, store_url: str):
    context = multiprocessing.get_context("spawn")
    entered = context.Event()
    gate = context.Process(target=_hold_for_ever, args=(store_url, entered))
    gate.start()
    try:
        assert entered.wait(60)
        with pytest.raises(GateBusyError), gate_lock(store, 0):
            pass
    finally:
        gate.kill()
        gate.join()
    with gate_lock(store, 10):
        pass


def test_postgres_takes_the_lock_from_a_gate_that_says_nothing(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "IDLE_TIMEOUT_S", 1)
    silent, other = Store(postgres_url), Store(postgres_url)
    with gate_lock(silent, 0) as still_held:
        with gate_lock(other, 30):
            pass
        with pytest.raises(Exception, match="idle-in-transaction timeout"):
            still_held()
    for store in (silent, other):
        store.dispose()


class SlowDagster(SimulatedDagster):
    """A Dagster whose database takes its time to write."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(Fuse(), clock, None)
        self.writing, self.answer = threading.Event(), threading.Event()

    def set_pool(self, name: str, value: str) -> None:
        self.writing.set()
        assert self.answer.wait(60)
        super().set_pool(name, value)


def test_while_dagster_is_slow_the_records_of_the_fleet_advance(
    store: Store, other: Store, clock: Clock
):
    with store.begin() as conn:
        holds.place(conn, clock(), MAIL, source=HoldSource.OPERATOR, reason="test", actor="ann")
    dagster = SlowDagster(clock)
    specs = [CampaignSpec("letters", "here", "none", ops={"send": "mail"})]
    policies = {"mail": ServicePolicy(name="mail", ramp_interval_s=0)}
    gate = Gate(dagster, store, policies, "here", specs)

    def pause() -> None:
        reconcile(
            gate,
            Direction.TIGHTEN,
            deadline=time.monotonic() + 60,
            missed_ticks=lambda _takeover, _until: None,
        )

    with ThreadPoolExecutor() as pool:
        pausing = pool.submit(pause)
        assert dagster.writing.wait(30)
        # SQLite lets one write at a time: this would wait for 30 s, and fail.
        with other.begin() as conn:
            run = runs.ensure(conn, clock(), "letters", "a")
            runs.begin_attempt(conn, clock(), run, "dagster-run", owner_is_over=True)
        with other.read() as conn:
            [pending] = takeovers.live(conn)
            found = runs.find(conn, "letters", "a")
        assert pending.pending
        assert found is not None
        assert found.status is RunStatus.PROCESSING
        assert not pausing.done()
        dagster.answer.set()
        pausing.result()
    with other.read() as conn:
        [written] = takeovers.live(conn)
    assert (written.pending, dagster.pools()) == (False, {"mail": "0"})
