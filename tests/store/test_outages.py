"""What the store knows about an outage, and the report that is made of it."""

from contextlib import suppress
from datetime import timedelta

import pytest

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind
from dagster_tidegate.breaker.window import WindowDelta
from dagster_tidegate.control import report_reader
from dagster_tidegate.control.report_models import OutageReport
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import (
    breakers,
    campaigns,
    history,
    holds,
    ledger,
    missed_ticks,
    outages,
    runs,
    takeovers,
)
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.ledger import Progress
from dagster_tidegate.store.missed_ticks import MissedTick, TickOutcome
from dagster_tidegate.store.takeovers import Take, TakeoverKind, TakeoverOutcome
from tests.support.clock import Clock

MAIL, MAPS = ServicePolicy(name="mail"), ServicePolicy(name="maps")
DOWN = Verdict(VerdictKind.FAILURE, reason="503 x5", answer="try later")
WELL = Verdict(VerdictKind.SUCCESS)


@pytest.fixture(autouse=True)
def _campaigns(store: Store, clock: Clock) -> None:
    specs = [
        CampaignSpec("letters", "here", "all", ops={"send": "mail"}),
        CampaignSpec("guide", "here", "none", ops={"look_up": "maps"}),
    ]
    with store.begin() as conn:
        breakers.ensure(conn, clock(), ["mail", "maps"])
        campaigns.save(conn, clock(), "here", specs)


def trip(store: Store, clock: Clock, policy: ServicePolicy = MAIL) -> None:
    with store.begin() as conn:
        before = breakers.read_one(conn, policy.name)
        after = machine.opened(before, policy, clock(), DOWN, 0.0)
        assert breakers.change(conn, clock(), before, after, actor="worker-1")


def probe(store: Store, clock: Clock, verdict: Verdict, policy: ServicePolicy = MAIL) -> None:
    with store.begin() as conn:
        before = breakers.read_one(conn, policy.name)
        tried = machine.half_opened(before, clock())
        assert breakers.change(conn, clock(), before, tried, actor="worker-1")
        after = machine.after_trial(tried, policy, verdict, clock(), 0.0)
        assert breakers.change(conn, clock(), tried, after, actor="worker-1")


def start(store: Store, clock: Clock, name: str) -> None:
    campaign, partition = name.split("/")
    with store.begin() as conn:
        run = runs.ensure(conn, clock(), campaign, partition)
        runs.begin_attempt(conn, clock(), run, f"{name} 1", owner_is_over=True)


def pause(store: Store, clock: Clock, name: str, service: str = "mail") -> None:
    campaign, partition = name.split("/")
    details = {"services": [service], "done": 40, "total": 100}
    with store.begin() as conn:
        run = runs.find(conn, campaign, partition)
        assert run is not None
        paused = RunStatus.PAUSED
        runs.move(conn, clock(), run, paused, reason="x", actor=f"{name} 1", details=details)


def resume_and_finish(store: Store, clock: Clock, name: str, done: int) -> None:
    campaign, partition = name.split("/")
    with store.begin() as conn:
        run = runs.find(conn, campaign, partition)
        assert run is not None
        attempt = runs.begin_attempt(conn, clock(), run, f"{name} 2", owner_is_over=True)
        ledger.write_progress(conn, clock(), attempt, "send", Progress(done=done, total=100))
        run = runs.get(conn, run.id)
        assert run is not None
        runs.move(conn, clock(), run, RunStatus.COMPLETED, actor="dagster")


def newest_report(store: Store, clock: Clock, service: str = "mail") -> OutageReport:
    with store.read() as conn:
        since = clock() - timedelta(days=1)
        listed = report_reader.of_service(conn, service, since, clock()).outages
        report = report_reader.of_outage(conn, clock(), listed[0].id)
    assert report is not None
    return report


def test_a_trip_says_how_long_calls_took(store: Store, clock: Clock) -> None:
    policy = ServicePolicy(name="mail", slow_call_s=60)
    fleets = [Fleet(SqlBackend(store), [policy]) for _ in range(2)]
    for fleet, usual_s, slow_s in zip(fleets, (0.1, 0.2), (2.0, 4.0), strict=True):
        for took_s in [usual_s] * 56 + [slow_s] * 8:
            fleet.breaker("mail").call(clock.advance, took_s)
        fleet.flush()

    def lost() -> None:
        raise ConnectionError

    for _ in range(20):
        with suppress(ConnectionError, BreakerOpenError):
            fleets[0].breaker("mail").call(lost)
    with store.read() as conn:
        trip = history.read(conn, name="mail", kinds=[EventKind.SERVICE], limit=1)[0]
    assert trip.after is not None
    assert trip.after["p95_s"] == pytest.approx(3, abs=0.1)


def test_the_report_of_an_outage_from_its_trip_to_the_last_run(store: Store, clock: Clock) -> None:
    start(store, clock, "letters/monday")
    start(store, clock, "guide/rome")
    with store.begin() as conn:
        counted = WindowDelta("mail", 0, "worker-1", clock(), clock(), ok=15, failed=5)
        breakers.add(conn, [counted])
    clock.advance(10)
    trip(store, clock)
    clock.advance(1)
    pause(store, clock, "letters/monday")
    pause(store, clock, "guide/rome", "maps")
    with store.begin() as conn:
        runs.ensure(conn, clock(), "letters", "tuesday")
        target = Target(TargetKind.SERVICE, "mail")
        operator = HoldSource.OPERATOR
        holds.place(conn, clock(), target, source=operator, reason="wait", actor="ana")
        take = Take(TakeoverKind.POOL, "mail", "mail", None, "here", former="5", set_to="0")
        [pool] = takeovers.take(conn, clock(), [take], newest=0)
        tick = MissedTick("letters", "daily", clock(), TickOutcome.LAUNCHED)
        missed_ticks.record(conn, clock(), [tick])
    clock.advance(29)
    probe(store, clock, DOWN)
    clock.advance(30)
    probe(store, clock, WELL)
    clock.advance(40)
    resume_and_finish(store, clock, "letters/monday", 100)
    with store.begin() as conn:
        takeovers.end(conn, clock(), pool, TakeoverOutcome.RESTORED)

    report = newest_report(store, clock)
    assert (report.seconds, report.failed_probes, report.answer) == (60, 1, "try later")
    assert (report.calls.before, report.calls.failed_before, report.calls.seconds) == (20, 5, 10)
    assert [(run.run, run.seconds) for run in report.runs] == [("letters/monday", 99)]
    assert report.last_resumed_at == clock()
    assert [(c.campaign, c.paused, c.queued) for c in report.campaigns] == [("letters", 1, 1)]
    assert [(a.actor, a.reason) for a in report.actions] == [("ana", "wait")]
    assert [(s.name, s.outcome) for s in report.stopped] == [("pool mail", "restored")]
    assert [(t.schedule, t.launched) for t in report.ticks] == [("daily", 1)]
    records = report.records
    assert (records.delayed, records.done_since, records.lost, records.repeated) == (60, 60, 0, 0)


def test_records_that_are_missing_in_a_completed_run_are_lost(store: Store, clock: Clock) -> None:
    start(store, clock, "letters/monday")
    trip(store, clock)
    pause(store, clock, "letters/monday")
    probe(store, clock, WELL)
    resume_and_finish(store, clock, "letters/monday", 99)
    assert newest_report(store, clock).records.lost == 1


def test_every_change_of_an_outage_leads_to_its_report(store: Store, clock: Clock) -> None:
    for _ in range(2):
        trip(store, clock)
        clock.advance(30)
        probe(store, clock, DOWN)
        clock.advance(30)
        probe(store, clock, WELL)
        clock.advance(30)
    with store.read() as conn:
        events = outages.transitions(conn, clock() - timedelta(hours=1), clock(), "mail")
        reports = [report_reader.of_outage(conn, clock(), event.id) for event in events]
        assert len(reports) == 10
        assert {report.id for report in reports if report} == {events[0].id, events[5].id}
        assert all(report and report.seconds == 60 for report in reports)


def test_an_event_that_is_no_change_of_a_breaker_has_no_report(store: Store, clock: Clock) -> None:
    start(store, clock, "letters/monday")
    with store.read() as conn:
        assert report_reader.of_outage(conn, clock(), 1) is None
        assert report_reader.of_outage(conn, clock(), 999) is None


def test_an_outage_from_before_the_period_is_counted_from_its_beginning(
    store: Store, clock: Clock
) -> None:
    trip(store, clock)
    clock.advance(3600)
    probe(store, clock, DOWN)
    since = clock.advance(3600)
    clock.advance(60)
    probe(store, clock, WELL)
    clock.advance(60)
    with store.read() as conn:
        report = report_reader.of_service(conn, "mail", since, clock())
    assert (report.summary.outages, report.summary.minutes) == (1, 1)
    assert report.outages[0].seconds == 7260


def test_an_outage_that_ends_after_the_period_has_ended_all_the_same(
    store: Store, clock: Clock
) -> None:
    trip(store, clock)
    until = clock.advance(60)
    clock.advance(60)
    probe(store, clock, WELL)
    with store.read() as conn:
        report = report_reader.of_service(conn, "mail", until - timedelta(days=1), until)
    assert (report.summary.minutes, report.summary.open) == (1, True)
    assert (report.outages[0].closed_at, report.outages[0].seconds) == (clock(), 120)


def test_the_summary_has_every_service_of_the_store(store: Store, clock: Clock) -> None:
    trip(store, clock)
    clock.advance(30)
    probe(store, clock, WELL)
    with store.read() as conn:
        summary = report_reader.summary(conn, clock() - timedelta(days=30), clock())
    by_name = {each.service: each for each in summary.services}
    assert (by_name["mail"].outages, by_name["mail"].mttr_s) == (1, 30)
    assert by_name["maps"].outages == 0


def test_a_breaker_that_is_not_enforced_makes_no_outage(store: Store, clock: Clock) -> None:
    trip(store, clock, ServicePolicy(name="mail", enforce=False))
    with store.read() as conn:
        report = report_reader.of_service(conn, "mail", clock() - timedelta(days=1), clock())
    assert report.summary.outages == 0
