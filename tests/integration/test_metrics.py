"""Metrics of the fleet and of a process, for Prometheus and OpenTelemetry."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse
from sqlalchemy import event

from dagster_tidegate import BreakerResource, ServiceConfig
from dagster_tidegate.breaker.errors import BreakerOpenError, Denied, Throttled
from dagster_tidegate.breaker.events import CallEnded, ChangeLearned, Event
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import alerts, campaigns, heartbeats, holds, service_stats
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.telemetry.collector import FleetCollector
from dagster_tidegate.telemetry.opentelemetry import OpenTelemetryHook
from dagster_tidegate.telemetry.prometheus import PrometheusHook
from demo.up import ports
from tests.integration.api import api
from tests.support.clock import Clock
from tests.support.databases import both_databases

MAIL = ServicePolicy(name="mail", consecutive_failures=3, reset_timeout_s=60, jitter=0)


@pytest.fixture
def make_fleet(store_url: str, clock: Clock) -> Iterator[Callable[..., Fleet]]:
    made: list[tuple[Fleet, Store]] = []

    def make(*hooks: Any, behind_s: float = 0.0) -> Fleet:
        store = Store(store_url, clock=lambda: clock() - timedelta(seconds=behind_s))
        fleet = Fleet(SqlBackend(store), [MAIL], hooks=hooks)
        made.append((fleet, store))
        return fleet

    yield make
    for fleet, store in made:
        fleet.close()
        store.dispose()


def fail() -> None:
    raise ConnectionError("down")


def trip(fleet: Fleet) -> None:
    for _ in range(3):
        with pytest.raises((ConnectionError, BreakerOpenError)):
            fleet.breaker("mail").call(fail)


def recover(fleet: Fleet, clock: Clock) -> None:
    clock.advance(121)
    fleet.breaker("mail").call(int)


class Scrape:
    """Reads the metrics of a store as Prometheus does."""

    def __init__(self, store: Store) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(FleetCollector(store, cache_s=0))

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"tidegate_{name}", labels)


# --- of the fleet --------------------------------------------------------------------------------


@both_databases
def test_metrics_of_breakers_and_calls(
    store: Store, make_fleet: Callable[..., Fleet], clock: Clock
) -> None:
    fleet = make_fleet()
    fleet.breaker("mail").call(int)
    fleet.flush()
    scrape = Scrape(store)
    assert scrape("store_up") == 1
    assert scrape("calls_total", service="mail", outcome="ok") == 0, "counters start at zero"
    assert scrape("breaker_state", service="mail", state="closed") == 1
    assert scrape("breaker_outage_seconds", service="mail") == 0

    fleet.breaker("mail").call(int)
    trip(fleet)
    clock.advance(20)
    assert scrape("calls_total", service="mail", outcome="ok") == 1
    assert scrape("calls_total", service="mail", outcome="failed") == 3
    assert scrape("breaker_state", service="mail", state="open") == 1
    assert scrape("breaker_state", service="mail", state="closed") == 0
    assert scrape("breaker_trips_total", service="mail") == 1
    assert scrape("breaker_outage_seconds", service="mail") == 20
    assert scrape("breaker_open_seconds_total", service="mail") == 20
    assert scrape("holds", source="breaker", target_kind="service") == 1
    assert scrape("hold_oldest_seconds", source="breaker") == 20
    assert scrape("hold_oldest_seconds", source="operator") == 0

    recover(fleet, clock)
    clock.advance(500)
    assert scrape("breaker_outage_seconds", service="mail") == 0
    assert scrape("breaker_open_seconds_total", service="mail") == 141
    trip(fleet)
    recover(fleet, clock)
    assert scrape("breaker_trips_total", service="mail") == 2
    assert scrape("breaker_open_seconds_total", service="mail") == 141 + 121
    assert Scrape(store)("breaker_trips_total", service="mail") == 0, (
        "counters start at zero in each process"
    )
    fleet.breaker("mail").half_open()
    assert scrape("breaker_trips_total", service="mail") == 3
    with store.read() as conn:
        assert service_stats.read(conn, clock())["mail"].trips == 3


def test_a_part_of_a_service_has_metrics_of_its_own(store: Store, clock: Clock) -> None:
    policy = ServicePolicy(name="apollo", parts=["people_match", "enrich"])
    fleet = Fleet(SqlBackend(store), [policy])
    scrape = Scrape(store)
    match = fleet.breaker("apollo/people_match")
    match.call(int)
    fleet.flush()
    scrape("store_up")
    day = Throttled("600 a day", until=clock() + timedelta(hours=4), scope="endpoint")
    with pytest.raises(BreakerOpenError):
        match.call(_throw, day)
    clock.advance(20)
    for service, is_open in (("apollo", 0), ("apollo/people_match", 1), ("apollo/enrich", 0)):
        assert scrape("breaker_state", service=service, state="open") == is_open
        assert scrape("breaker_trips_total", service=service) == is_open
        assert scrape("breaker_open_seconds_total", service=service) == 20 * is_open
        assert scrape("breaker_outage_seconds", service=service) == 20 * is_open
    assert scrape("holds", source="breaker", target_kind="service") == 1

    fleet.breaker("apollo/enrich").call(int)
    fleet.breaker("apollo").call(int)
    fleet.breaker("apollo").call(int)
    with pytest.raises(ConnectionError):
        fleet.breaker("apollo/enrich").call(fail)
    fleet.flush()
    for service, ok, failed in (
        ("apollo", 2, 0),
        ("apollo/people_match", 0, 0),
        ("apollo/enrich", 1, 1),
    ):
        assert scrape("calls_total", service=service, outcome="ok") == ok
        assert scrape("calls_total", service=service, outcome="failed") == failed
    fleet.close()


def test_a_service_that_is_not_enforced_is_closed_in_the_metrics_and_its_calls_are_counted(
    store: Store, clock: Clock
) -> None:
    fleet = Fleet(SqlBackend(store), [MAIL.model_copy(update={"enforce": False})])
    fleet.breaker("mail").call(int)
    fleet.flush()
    scrape = Scrape(store)
    scrape("store_up")
    for error in (*[ConnectionError()] * 4, Denied("dead key")):
        with pytest.raises(type(error)):
            fleet.breaker("mail").call(_throw, error)
    clock.advance(20)
    assert scrape("calls_total", service="mail", outcome="failed") == 4
    assert scrape("breaker_state", service="mail", state="closed") == 1
    assert scrape("breaker_trips_total", service="mail") == 0
    assert scrape("breaker_open_seconds_total", service="mail") == 0
    assert scrape("breaker_outage_seconds", service="mail") == 0
    assert scrape("holds", source="breaker", target_kind="service") == 0
    fleet.close()


def _throw(error: Exception) -> None:
    raise error


def test_calls_of_the_fleet_are_counted_once_and_never_decrease(
    store: Store, make_fleet: Callable[..., Fleet], clock: Clock
) -> None:
    here, there = make_fleet(), make_fleet()
    scrape = Scrape(store)
    scrape("store_up")
    for round in range(1, 31):
        for fleet in (here, there):
            fleet.breaker("mail").call(int)
            fleet.flush()
        clock.advance(MAIL.window_s / 5)
        SqlBackend(store).prune([MAIL])
        if round % 3 == 0:
            assert scrape("calls_total", service="mail", outcome="ok") == 2 * round


@both_databases
def test_metrics_of_campaigns_holds_gate_and_alerts(store: Store, clock: Clock) -> None:
    spec = CampaignSpec("letters", "here", "none", ops={"send": "mail"})
    with store.begin() as conn:
        campaigns.save(conn, clock(), "here", [spec])
        for partition, status, rate in (
            ("mon", RunStatus.PROCESSING, 2.5),
            ("tue", RunStatus.PAUSED, 7.0),
            ("wed", RunStatus.COMPLETED, 9.0),
        ):
            run = conn.scalar(
                t.campaign_runs.insert()
                .values(
                    campaign="letters",
                    partition=partition,
                    status=status,
                    paused_at=clock() if status is RunStatus.PAUSED else None,
                    created_at=clock(),
                    changed_at=clock(),
                )
                .returning(t.campaign_runs.c.id)
            )
            conn.execute(
                t.progress.insert().values(
                    campaign_run=run,
                    op="send",
                    done=10,
                    failed=1,
                    total=100,
                    rate=rate,
                    position=0,
                    series=1,
                    exact=True,
                    updated_at=clock(),
                )
            )
        target = Target(TargetKind.CAMPAIGN, "letters")
        holds.place(
            conn, clock(), target, source=HoldSource.OPERATOR, reason="new copy", actor="ana"
        )
        for part in ("pause", "resume"):
            heartbeats.beat(conn, clock(), location="here", part=part, summary="")
        alerts.raise_alert(
            conn, clock(), kind="gate_stale", name="here", title="", body="", lasts=True
        )
    clock.advance(30)
    scrape = Scrape(store)
    assert scrape("campaign_paused", campaign="letters") == 1
    assert scrape("campaign_runs", campaign="letters", status="paused") == 1
    assert scrape("campaign_runs", campaign="letters", status="failed") == 0
    assert scrape("paused_run_oldest_seconds", campaign="letters") == 30
    assert scrape("records", campaign="letters", op="send", status="done") == 20
    assert scrape("records", campaign="letters", op="send", status="failed") == 2
    assert scrape("records_expected", campaign="letters", op="send") == 200
    assert scrape("records_per_second", campaign="letters", op="send") == 2.5
    assert scrape("holds", source="operator", target_kind="campaign") == 1
    at = (clock() - timedelta(seconds=30)).timestamp()
    assert scrape("gate_tick_timestamp_seconds", location="here", part="pause") == at
    assert scrape("gate_stale", location="here") == 1, "the breaker sensor never ran"
    assert scrape("alerts", status="pending") == 1
    assert scrape("alerts_live", kind="gate_stale") == 1
    assert scrape("alert_oldest_pending_seconds") == 30
    assert scrape("takeovers", kind="pool") == 0
    clock.advance(31)
    scrape = Scrape(store)
    assert scrape("records_per_second", campaign="letters", op="send") == 0, (
        "its last update is more than a minute old"
    )


def test_without_a_store_only_store_up_and_the_version_are_reported(sqlite_url: str) -> None:
    scrape = Scrape(Store(f"postgresql://127.0.0.1:{ports.free()}/none"))
    assert scrape("store_up") == 0
    names = {metric.name for metric in scrape.registry.collect()}
    assert names == {"tidegate_build_info", "tidegate_store_up"}
    empty = Store("sqlite://")
    assert Scrape(empty)("store_up") == 0, "the tables are missing"
    assert Scrape(Store(sqlite_url))("store_up") == 1


def test_a_scrape_needs_few_queries_and_is_cached(
    store: Store, make_fleet: Callable[..., Fleet], count_statements: Callable[[Store], list[str]]
) -> None:
    make_fleet().breaker("mail").call(int)
    registry = CollectorRegistry()
    registry.register(FleetCollector(store, cache_s=60))
    registry.get_sample_value("tidegate_store_up")
    statements = count_statements(store)
    registry.get_sample_value("tidegate_store_up")
    assert statements == []
    Scrape(store)("store_up")
    assert 0 < len(statements) < 30


@pytest.fixture
def count_statements() -> Callable[[Store], list[str]]:
    def listen(store: Store) -> list[str]:
        statements: list[str] = []
        event.listen(
            store.engine, "before_cursor_execute", lambda *args: statements.append(args[2])
        )
        return statements

    return listen


def test_the_route_supports_both_formats(store: Store, make_fleet: Callable[..., Fleet]) -> None:
    make_fleet().breaker("mail").call(int)
    with api(store) as asked:
        plain = asked.client.get("/metrics")
        accept = "application/openmetrics-text; version=1.0.0"
        fancy = asked.client.get("/metrics", headers={"Accept": accept})
    assert plain.headers["content-type"].startswith("text/plain")
    assert fancy.headers["content-type"].startswith("application/openmetrics-text")
    for families in (parse(plain.text), parse_openmetrics(fancy.text)):
        by_name = {family.name: family for family in families}
        assert by_name["tidegate_store_up"].samples[0].value == 1
        assert any(
            sample.labels == {"service": "mail", "state": "closed"} and sample.value == 1
            for sample in by_name["tidegate_breaker_state"].samples
        )


def test_the_route_reports_an_unreachable_store_without_authentication() -> None:
    store = Store(f"postgresql://127.0.0.1:{ports.free()}/none")
    with api(store) as asked:
        answer = asked.client.get("/metrics")
        asked.get("/services", expect=503)
    assert answer.status_code == 200
    assert [
        (sample.name, sample.value) for family in parse(answer.text) for sample in family.samples
    ] == [("tidegate_store_up", 0.0)]
    store.dispose()


# --- of a process --------------------------------------------------------------------------------


def test_the_prometheus_hook_measures_a_process(
    make_fleet: Callable[..., Fleet], clock: Clock
) -> None:
    registry, learned = CollectorRegistry(), threading.Event()

    def note(event: Event) -> None:
        if isinstance(event, ChangeLearned):
            learned.set()

    fleet, other = make_fleet(PrometheusHook(registry), note), make_fleet(behind_s=0.7)

    def metric(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"tidegate_worker_{name}", {"service": "mail"} | labels)

    breaker = fleet.breaker("mail")
    breaker.call(clock.advance, 0.3)
    asyncio.run(breaker.call_async(_wait, clock))
    with breaker.calling():
        clock.advance(0.3)
    with pytest.raises(ConnectionError):
        breaker.call(fail)
    assert metric("call_duration_seconds_count", outcome="ok") == 3
    assert metric("call_duration_seconds_bucket", outcome="ok", le="0.25") == 0
    assert metric("call_duration_seconds_bucket", outcome="ok", le="0.5") == 3
    assert metric("call_duration_seconds_count", outcome="failed") == 1
    fleet.flush()
    clock.advance(1)
    trip(other)
    fleet.refresh()
    assert learned.wait(60)
    assert metric("propagation_seconds_count", to="open") == 1
    assert metric("propagation_seconds_sum", to="open") == pytest.approx(0.7)
    assert metric("breaker_state", state="open") == 1


async def _wait(clock: Clock) -> None:
    clock.advance(0.3)


def test_calls_are_timed_only_for_hooks_that_ask_for_it(
    make_fleet: Callable[..., Fleet],
) -> None:
    events: list[Event] = []
    fleet = make_fleet(events.append)
    fleet.breaker("mail").call(int)
    assert fleet.breaker("mail").engine.admission.fast
    assert not any(isinstance(each, CallEnded) for each in events)


def test_the_opentelemetry_hook_reports_metrics_and_span_events(
    make_fleet: Callable[..., Fleet], clock: Clock
) -> None:
    reader = InMemoryMetricReader()
    fleet = make_fleet(OpenTelemetryHook(MeterProvider([reader])))
    spans = InMemorySpanExporter()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    with tracing.get_tracer("test").start_as_current_span("op"):
        fleet.breaker("mail").call(clock.advance, 0.3)
        trip(fleet)
        with pytest.raises(BreakerOpenError):
            fleet.breaker("mail").call(int)
    fleet.flush()
    points = {
        (metric.name, *sorted((point.attributes or {}).items())): point
        for resource in reader.get_metrics_data().resource_metrics  # type: ignore[union-attr] -- calls were made
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }

    def point(name: str, **attributes: str) -> Any:
        names = {f"tidegate.{key}": value for key, value in attributes.items()}
        return points[name, *sorted({"tidegate.service": "mail", **names}.items())]

    assert point("tidegate.calls", outcome="ok").value == 1
    assert point("tidegate.calls", outcome="failed").value == 3
    assert point("tidegate.calls", outcome="refused").value == 1
    assert point("tidegate.call.duration", outcome="ok").sum == pytest.approx(0.3)
    assert point("tidegate.breaker.state", state="open").value == 1
    assert point("tidegate.breaker.changes", to="open").value == 1
    [span] = spans.get_finished_spans()
    events = [(event.name, (event.attributes or {}).get("tidegate.to")) for event in span.events]
    assert events == [("tidegate.breaker.changed", "open"), ("tidegate.call.refused", None)]


def test_the_opentelemetry_hook_works_without_an_sdk(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet(OpenTelemetryHook())
    fleet.breaker("mail").call(time.monotonic)
    trip(fleet)


@pytest.mark.parametrize(("setting", "hooks"), [("true", 1), ("false", 0), ("", 0)])
def test_a_setting_adds_the_opentelemetry_hook_to_runs_and_sensors(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, setting: str, hooks: int
) -> None:
    monkeypatch.setenv("TIDEGATE_OPENTELEMETRY", setting)
    monkeypatch.setenv("TIDEGATE_STORE_URL", sqlite_url)
    fleet = BreakerResource(services=[ServiceConfig(name="mail")]).fleet
    assert [type(hook) for hook in fleet.hooks].count(OpenTelemetryHook) == hooks
    fleet.close()
