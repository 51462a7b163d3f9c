"""Alerts are sent to real HTTP targets that accept, fail, hang and recover."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import apprise
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from pydantic import SecretStr
from rich.console import Console

from dagster_tidegate import Budget
from dagster_tidegate.alerts import loop
from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.alerts.loop import Monitor, StoreOutage
from dagster_tidegate.alerts.rules import AlertChanges
from dagster_tidegate.alerts.sender import CLAIM_LASTS, MAX_TRIES, Sender
from dagster_tidegate.alerts.targets import Targets
from dagster_tidegate.alerts.text import Text
from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.cli import main, status
from dagster_tidegate.control import situation
from dagster_tidegate.control.models import AlertHealth
from dagster_tidegate.holds import HoldSource, SystemActor, Target, TargetKind
from dagster_tidegate.settings import AlertSettings, SettingsError
from dagster_tidegate.statuses import BreakerState, RecordStatus, RunStatus
from dagster_tidegate.store import alerts, breakers, campaigns, heartbeats, holds
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.alerts import AlertCounts, AlertStatus
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.event_reader import EventReader, newest
from dagster_tidegate.text import utc
from demo.up import ports
from tests.integration.api import api
from tests.support.clock import Clock
from tests.support.databases import both_databases
from tests.support.polling import wait_until

MAIL = Target(TargetKind.SERVICE, "mail")
LETTERS = Target(TargetKind.CAMPAIGN, "letters")
NEVER = threading.Event()


class Receiver:
    """A web server that receives messages; tests set how it answers."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.bodies: list[str] = []
        self.types: list[str] = []
        self.answer = 200
        self.answers = threading.Event()
        self.answers.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.titles.append(message["title"])
                receiver.bodies.append(message["message"])
                receiver.types.append(message["type"])
                receiver.answers.wait(60)
                self.send_response(receiver.answer)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def make_receiver() -> Iterator[Callable[[], Receiver]]:
    made: list[Receiver] = []

    def make() -> Receiver:
        made.append(Receiver())
        return made[-1]

    yield make
    for receiver in made:
        receiver.answers.set()
        receiver.server.shutdown()
        receiver.server.server_close()


@pytest.fixture
def receiver(make_receiver: Callable[[], Receiver]) -> Receiver:
    return make_receiver()


class Bench:
    """A store, and the parts of an alert sender."""

    def __init__(self, store: Store, clock: Clock, *urls: str) -> None:
        self.store, self.clock = store, clock
        self.settings = AlertSettings(urls=tuple(SecretStr(url) for url in urls), per_minute=600)
        self.targets = Targets(self.settings.urls)
        self.restart()
        with store.begin() as conn:
            breakers.ensure(conn, clock(), ["mail"])
            spec = CampaignSpec("letters", "here", "none", ops={"send": "mail"})
            campaigns.save(conn, clock(), "here", [spec])
        self.beat()
        self.monitor.check()

    def restart(self) -> None:
        self.monitor = Monitor(self.store, self.settings)
        self.sender = Sender(self.store, self.targets, self.settings.per_minute)

    def beat(self) -> None:
        with self.store.begin() as conn:
            for part in ("pause", "resume", "breaker"):
                heartbeats.beat(conn, self.clock(), location="here", part=part, summary="")

    def step(self, seconds: float = 1.0) -> None:
        self.clock.advance(seconds)
        self.beat()
        self.check_and_send()

    def check_and_send(self) -> None:
        self.monitor.check()
        self.sender.send(NEVER)

    def turn(self, state: BreakerState) -> None:
        with self.store.begin() as conn:
            before = breakers.read_one(conn, "mail")
            reason = "503 x5" if state is BreakerState.OPEN else None
            after = before.__class__(
                "mail",
                changed_at=self.clock(),
                state=state,
                generation=before.generation + 1,
                reason=reason,
            )
            assert breakers.change(conn, self.clock(), before, after)

    def run(
        self, status: RunStatus, *, partition: str = "monday", attempts: tuple[str | None, ...] = ()
    ) -> int:
        with self.store.begin() as conn:
            run = conn.scalar(
                t.campaign_runs.insert()
                .values(
                    campaign="letters",
                    partition=partition,
                    status=status,
                    attempt=len(attempts),
                    paused_at=self.clock() if status is RunStatus.PAUSED else None,
                    created_at=self.clock(),
                    changed_at=self.clock(),
                )
                .returning(t.campaign_runs.c.id)
            )
            assert run is not None
            for number, outcome in enumerate(attempts, 1):
                conn.execute(
                    t.attempts.insert().values(
                        campaign_run=run,
                        number=number,
                        dagster_run=f"{partition}-{number}",
                        started_at=self.clock(),
                        ended_at=None if outcome is None else self.clock(),
                        outcome=outcome,
                    )
                )
        return run

    def all(self) -> dict[str, AlertStatus]:
        with self.store.read() as conn:
            return {alert.title: alert.status for alert in alerts.listed(conn, limit=100)}


@pytest.fixture
def bench(store: Store, clock: Clock, receiver: Receiver) -> Bench:
    return Bench(store, clock, receiver.url)


# --- what raises an alert ------------------------------------------------------------------------


@both_databases
def test_a_trip_and_its_recovery_are_sent_once_each_across_restarts(
    bench: Bench, receiver: Receiver
) -> None:
    bench.turn(BreakerState.OPEN)
    for _ in range(3):
        bench.step()
        bench.restart()
    assert receiver.titles == ["mail is down: 503 x5"]
    assert "Affected campaigns: letters" in receiver.bodies[0]
    bench.turn(BreakerState.CLOSED)
    for _ in range(3):
        bench.restart()
        bench.step()
    assert receiver.titles == ["mail is down: 503 x5", "mail has recovered"]
    assert set(bench.all().values()) == {AlertStatus.SENT}


@both_databases
def test_a_budget_of_which_little_is_left_is_reported_once_per_period(
    bench: Bench, receiver: Receiver
) -> None:
    fleet = Fleet(SqlBackend(bench.store), [ServicePolicy(name="mail", budget=Budget(100))])
    benches = [bench, Bench(bench.store, bench.clock, receiver.url)]

    def spend(amount: float) -> None:
        fleet.breaker("mail").spend(amount)
        fleet.flush(final=True)
        for _ in range(3):
            bench.clock.advance(1)
            bench.beat()
            with ThreadPoolExecutor() as both_senders:
                list(both_senders.map(Bench.check_and_send, benches))
            for each in benches:
                each.restart()

    spend(79)
    assert receiver.titles == []
    spend(5)
    assert receiver.titles == ["84% of the budget of mail is used up"]
    spend(20)
    assert len(receiver.titles) == 1
    bench.clock.advance(86_400)
    spend(1)  # of yesterday: the process learns of the new period by its report
    spend(79)
    assert len(receiver.titles) == 1
    spend(2)
    assert receiver.titles[1:] == ["81% of the budget of mail is used up"]
    fleet.close()


def test_events_from_while_no_sender_ran_are_sent_later(bench: Bench, receiver: Receiver) -> None:
    bench.turn(BreakerState.OPEN)
    bench.clock.advance(60)
    bench.turn(BreakerState.CLOSED)
    bench.restart()
    bench.step()
    assert receiver.titles == ["mail is down: 503 x5"]
    bench.step()
    assert receiver.titles[1:] == ["mail has recovered"]


def test_events_from_before_the_first_check_are_not_sent(
    store: Store, clock: Clock, receiver: Receiver
) -> None:
    with store.begin() as conn:
        breakers.ensure(conn, clock(), ["mail"])
        before = breakers.read_one(conn, "mail")
        after = before.__class__(
            "mail", changed_at=clock(), state=BreakerState.OPEN, generation=1, reason="old"
        )
        breakers.change(conn, clock(), before, after)
    bench = Bench(store, clock, receiver.url)
    bench.step()
    assert receiver.titles == []


def test_a_flapping_service_causes_few_messages_that_count_every_trip(
    bench: Bench, receiver: Receiver
) -> None:
    for _ in range(20):
        bench.turn(BreakerState.OPEN)
        bench.step(60)
        bench.turn(BreakerState.CLOSED)
        bench.step(60)
    for _ in range(20):
        bench.step(60)
    downs = [title for title in receiver.titles if "down" in title]
    counts = [int(title.split()[3]) if "more times" in title else 1 for title in downs]
    assert sum(counts) == 20
    assert len(downs) < 8
    assert receiver.titles.count("mail has recovered") <= len(downs)


def test_an_operators_hold_its_expiry_and_its_release_are_sent(
    bench: Bench, receiver: Receiver
) -> None:
    with bench.store.begin() as conn:
        holds.place(
            conn,
            bench.clock(),
            LETTERS,
            source=HoldSource.OPERATOR,
            reason="new copy",
            actor="ana",
            expires_at=bench.clock() + timedelta(hours=1),
        )
    bench.step()
    bench.step(50 * 60 - 1)
    with bench.store.begin() as conn:
        holds.release(conn, bench.clock(), LETTERS, source=HoldSource.OPERATOR, actor="bob")
    bench.step()
    assert receiver.titles == [
        "ana placed a hold on campaign letters: new copy",
        "The hold on campaign letters expires in 10 min",
        "The hold of ana on campaign letters was released",
    ]
    assert "released by bob" in receiver.bodies[-1]


def test_an_expired_hold_is_sent_before_the_gate_has_recorded_it(
    bench: Bench, receiver: Receiver
) -> None:
    target = Target(TargetKind.CAMPAIGN_RUN, "account_digest/next_week")
    ends = bench.clock() + timedelta(hours=1)
    with bench.store.begin() as conn:
        holds.place(
            conn,
            bench.clock(),
            target,
            source=HoldSource.OPERATOR,
            reason="new copy",
            actor="ana",
            expires_at=ends,
        )
    bench.step()
    bench.step(3600)
    assert receiver.titles == [
        "ana placed a hold on campaign run account_digest/next_week: new copy",
        "The hold of ana on campaign run account_digest/next_week expired",
    ]
    assert f"expired at {utc(ends)}" in receiver.bodies[-1]


def test_a_maintenance_window_alerts_nobody(bench: Bench, receiver: Receiver) -> None:
    with bench.store.begin() as conn:
        holds.place(
            conn,
            bench.clock(),
            Target(TargetKind.SERVICE, "mail"),
            source=HoldSource.OPERATOR,
            reason="their database",
            actor=SystemActor.WINDOW,
            expires_at=bench.clock() + timedelta(hours=1),
        )
    bench.step()
    bench.step(59 * 60)
    bench.step(120)
    assert receiver.titles == []


def test_a_stale_gate_is_sent_without_dagster(bench: Bench, receiver: Receiver) -> None:
    bench.clock.advance(170)
    bench.check_and_send()
    assert receiver.titles == []
    bench.clock.advance(20)
    bench.check_and_send()
    bench.check_and_send()
    assert receiver.titles == ["The gate of here is stale"]


def test_records_in_doubt_are_sent_after_their_attempt_was_cut_off(
    bench: Bench, receiver: Receiver, clock: Clock
) -> None:
    run = bench.run(RunStatus.FAILED, attempts=("failed",))
    working = bench.run(RunStatus.PROCESSING, partition="tuesday", attempts=(None,))
    dead = bench.run(RunStatus.PROCESSING, partition="wednesday", attempts=(None,))
    with bench.store.begin() as conn:
        for each in (run, working, dead):
            for position, status in enumerate((RecordStatus.STARTED, RecordStatus.DONE)):
                conn.execute(
                    t.ledger.insert().values(
                        campaign_run=each,
                        op="send",
                        key=f"k{position}",
                        status=status,
                        position=position,
                        attempt=1,
                        at=clock(),
                    )
                )
        for each, lease_s in ((working, 3600), (dead, 30)):
            conn.execute(
                t.loops.insert().values(
                    campaign_run=each,
                    op="send",
                    attempt=1,
                    worker="w",
                    lease_until=clock() + timedelta(seconds=lease_s),
                )
            )
    bench.restart()
    bench.step(290)
    assert receiver.titles == []
    bench.restart()
    bench.step(60)
    assert sorted(receiver.titles) == [
        "1 record of letters/monday in doubt",
        "1 record of letters/wednesday in doubt",
    ]


def test_runs_that_end_with_many_failed_records_are_sent(bench: Bench, receiver: Receiver) -> None:
    ended = {
        "monday": (RunStatus.COMPLETED, 8, 12),
        "tuesday": (RunStatus.COMPLETED, 1, 9),
        "wednesday": (RunStatus.PROCESSING, 9, 1),
    }
    for partition, (ended_as, failed, done) in ended.items():
        run = bench.run(ended_as, partition=partition, attempts=("completed",))
        with bench.store.begin() as conn:
            conn.execute(
                t.progress.insert().values(
                    campaign_run=run, op="send", done=done, failed=failed, position=0, series=1,
                    exact=True, updated_at=bench.clock(),
                )
            )  # fmt: skip
    bench.restart()
    bench.step(60)
    assert receiver.titles == ["letters/monday is completed, 8 records failed"]
    assert "8 of 20 records of letters/monday failed" in receiver.bodies[0]


def test_runs_that_fail_after_a_pause_or_do_not_resume_are_sent(
    bench: Bench, receiver: Receiver
) -> None:
    bench.run(RunStatus.FAILED, attempts=("paused", "failed"))
    bench.run(RunStatus.FAILED, partition="tuesday", attempts=("failed",))
    bench.run(RunStatus.PAUSED, partition="wednesday", attempts=("paused",))
    bench.restart()
    bench.step(590)
    assert receiver.titles == ["letters/monday failed after resuming"]
    bench.restart()
    bench.step(20)
    assert receiver.titles[1:] == ["letters is not resuming: 1 paused run without a hold"]


# --- sending -------------------------------------------------------------------------------------


def test_a_rejected_message_is_retried_only_for_the_target_that_rejected_it(
    store: Store, clock: Clock, make_receiver: Callable[[], Receiver]
) -> None:
    healthy, failing = make_receiver(), make_receiver()
    failing.answer = 500
    bench = Bench(store, clock, f"ops={healthy.url}", f"team={failing.url}")
    bench.turn(BreakerState.OPEN)
    bench.step()
    with store.read() as conn:
        [alert] = alerts.listed(conn, limit=9)
        counts = alerts.counts(conn, clock())
    assert alert.status is AlertStatus.RETRYING
    assert (alert.error, alert.delivered_to) == ("team: HTTP status 500", ["ops"])
    assert counts.failing == 1
    bench.step()  # not yet
    assert len(failing.titles) == 1
    bench.restart()
    bench.step(10)
    assert len(failing.titles) == 2
    failing.answer = 200
    bench.step(20)
    assert (len(healthy.titles), len(failing.titles)) == (1, 3)
    assert bench.all() == {"mail is down: 503 x5": AlertStatus.SENT}


def test_a_message_that_is_always_rejected_is_given_up(bench: Bench, receiver: Receiver) -> None:
    receiver.answer = 403
    bench.turn(BreakerState.OPEN)
    bench.step()
    for _ in range(2 * MAX_TRIES):
        bench.step(900)
    assert len(receiver.titles) == MAX_TRIES
    assert bench.all()["mail is down: 503 x5"] is AlertStatus.GIVEN_UP
    bench.turn(BreakerState.CLOSED)
    receiver.answer = 200
    bench.step()
    assert "mail has recovered" not in receiver.titles, "its trip alert was never sent"


def test_alerts_with_the_same_name_are_sent_in_order(bench: Bench, receiver: Receiver) -> None:
    receiver.answer = 500
    bench.turn(BreakerState.OPEN)
    bench.step()
    bench.turn(BreakerState.CLOSED)
    bench.step()
    receiver.answer = 200
    receiver.titles.clear()
    for _ in range(3):
        bench.step(20)
    assert receiver.titles == ["mail is down: 503 x5", "mail has recovered"]


def test_a_failing_target_delays_no_other(
    store: Store, clock: Clock, make_receiver: Callable[[], Receiver]
) -> None:
    healthy, failing = make_receiver(), make_receiver()
    failing.answer = 500
    bench = Bench(store, clock, f"healthy={healthy.url}", f"failing={failing.url}")
    bench.turn(BreakerState.OPEN)
    bench.step(1)
    bench.turn(BreakerState.CLOSED)
    bench.step(1)
    assert healthy.titles == ["mail is down: 503 x5", "mail has recovered"]


def test_a_hanging_target_delays_no_other_and_gets_no_further_message(
    make_receiver: Callable[[], Receiver],
) -> None:
    healthy, hanging = make_receiver(), make_receiver()
    hanging.answers.clear()
    targets = Targets(
        [SecretStr(f"healthy={healthy.url}"), SecretStr(f"failing={hanging.url}?rto=60")]
    )

    def send(title: str) -> dict[str, str | None]:
        text = Text(title, "all of it")
        return dict(targets.send(text, AlertKind.TEST, to=["failing", "healthy"], timeout_s=3))

    assert send("one") == {"healthy": None, "failing": "no answer within 3 s"}
    busy = "still waiting for its answer to an earlier message"
    assert send("two") == {"healthy": None, "failing": busy}
    assert (healthy.titles, hanging.titles) == (["one", "two"], ["one"])
    hanging.answers.set()
    for thread in threading.enumerate():
        if thread.name == "tidegate-alert-failing":
            thread.join(60)
    assert send("three") == {"healthy": None, "failing": None}


def test_an_exception_in_apprise_is_an_error_without_its_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    targets = Targets([SecretStr("json://127.0.0.1:9/s3cr3t")])

    def fail(*_args: object, **_values: object) -> None:
        raise ValueError("s3cr3t")

    monkeypatch.setattr(apprise.Apprise, "notify", fail)
    text = Text("title", "body")
    assert targets.send(text, AlertKind.TEST, to=["json"]) == {"json": "ValueError"}


@both_databases
def test_each_alert_is_sent_by_one_of_several_senders(bench: Bench, receiver: Receiver) -> None:
    for _ in range(10):
        bench.turn(BreakerState.OPEN)
        bench.turn(BreakerState.CLOSED)
        bench.clock.advance(1000)
        bench.beat()
        bench.monitor.check()
    with bench.store.read() as conn:
        raised = alerts.listed(conn, limit=100)
    together = threading.Barrier(4)

    def send(_number: int) -> None:
        sender = Sender(bench.store, Targets(bench.settings.urls), 600)
        for _ in range(len(raised)):
            together.wait(60)
            sender.send(NEVER)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(send, range(4)))
    assert len(raised) == 20
    assert sorted(receiver.titles) == sorted(alert.title for alert in raised)


@both_databases
def test_each_alert_is_raised_by_one_of_several_monitors(bench: Bench) -> None:
    together = threading.Barrier(4)
    monitors = [Monitor(bench.store, bench.settings) for _ in range(4)]

    def check(monitor: Monitor) -> None:
        together.wait(60)
        monitor.check()

    for state in 5 * (BreakerState.OPEN, BreakerState.CLOSED):
        bench.turn(state)
        bench.clock.advance(1000)
        bench.beat()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(check, monitors))
    with bench.store.read() as conn:
        kinds = [alert.kind for alert in alerts.listed(conn, limit=100)]
    assert (kinds.count("trip"), kinds.count("recovery")) == (5, 5)


@both_databases
def test_the_claim_of_a_dead_sender_expires(bench: Bench, receiver: Receiver) -> None:
    bench.turn(BreakerState.OPEN)
    bench.monitor.check()
    with bench.store.begin() as conn:
        [alert] = alerts.due(conn, bench.clock(), limit=9)
        assert alerts.claim(conn, alert, bench.clock() + CLAIM_LASTS)
        assert not alerts.claim(conn, alert, bench.clock() + CLAIM_LASTS)
    bench.step()
    assert receiver.titles == []
    bench.step(CLAIM_LASTS.total_seconds())
    assert receiver.titles == ["mail is down: 503 x5"]


def test_alerts_beyond_the_rate_limit_share_a_message(bench: Bench, receiver: Receiver) -> None:
    with bench.store.begin() as conn:
        for n in range(40):
            target = Target(TargetKind.CAMPAIGN_RUN, f"letters/{n}")
            holds.place(
                conn,
                bench.clock(),
                target,
                source=HoldSource.OPERATOR,
                reason="x",
                actor="ana",
            )
    bench.sender = Sender(bench.store, bench.targets, 3)
    bench.step()
    assert len(receiver.titles) == 3
    assert receiver.titles[-1] == "38 alerts"
    assert "campaign run letters/39" in receiver.bodies[-1]
    assert set(bench.all().values()) == {AlertStatus.SENT}
    bench.turn(BreakerState.OPEN)
    bench.step()
    assert len(receiver.titles) == 3, "the rate limit still applies"


@both_databases
def test_an_outage_of_the_store_and_its_end_are_sent(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "OUTAGE_AFTER_S", 0.0)
    gone = Store(f"postgresql://127.0.0.1:{ports.free()}/none")
    settings = AlertSettings(urls=(SecretStr(receiver.url),))
    stop = threading.Event()
    thread = threading.Thread(
        target=loop.run, args=(gone, settings, stop), kwargs={"check_interval_s": 0.01}, daemon=True
    )
    thread.start()
    for _ in range(6000):
        if receiver.titles or stop.wait(0.01):
            break
    stop.set()
    thread.join(60)
    assert receiver.titles == ["Tidegate's store is unreachable"]
    assert receiver.bodies[0].endswith("Runbook: tidegate runbook store_lost")
    gone.dispose()

    outage = StoreOutage(Targets(settings.urls), timedelta(0))
    outage.failed(OSError("away"))
    outage.failed(OSError("away"))
    outage.recovered(store)
    Sender(store, Targets(settings.urls), 10).send(stop := threading.Event())
    outage.recovered(store)
    Sender(store, Targets(settings.urls), 10).send(stop)
    assert receiver.titles[1:] == [
        "Tidegate's store is unreachable",
        "Tidegate's store is reachable again",
    ]


@both_databases
def test_a_short_outage_of_the_store_is_not_sent(store: Store, receiver: Receiver) -> None:
    ticks = [0.0]
    outage = StoreOutage(Targets([SecretStr(receiver.url)]), timedelta(0), ticks=lambda: ticks[0])
    outage.failed(OSError("away"))
    ticks[0] = 29
    outage.failed(OSError("away"))
    outage.recovered(store)
    assert receiver.titles == []
    with store.read() as conn:
        assert alerts.listed(conn, limit=9) == []


# --- secrets and escaping ------------------------------------------------------------------------


def test_no_url_appears_in_the_store_or_the_logs(
    store: Store, clock: Clock, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.answer = 500
    secret = "s3cr3t-of-ops"
    address = receiver.url.removeprefix("json://")
    bench = Bench(store, clock, f"json://user:{secret}@{address}/{secret}?token={secret}")
    bench.turn(BreakerState.OPEN)
    bench.step()
    with store.read() as conn:
        rows = conn.execute(sa.select(t.alerts)).all()
    assert rows[0].error == "json: HTTP status 500"
    assert secret not in str(rows) + caplog.text + repr(bench.settings) + repr(vars(bench.targets))


@pytest.mark.parametrize("url", ["nothing-s3cr3t", "nothing://s3cr3t", "slack://s3cr3t"])
def test_an_unknown_url_is_rejected_without_repeating_it(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(SettingsError, match="number 2 of TIDEGATE_ALERT_URLS") as refused:
        Targets([SecretStr("json://127.0.0.1:9"), SecretStr(url)])
    assert "s3cr3t" not in str(refused.value) + caplog.text


def test_targets_have_names() -> None:
    urls = ["json://a", "json://b", "night-shift=json://c", "mailto://u:p@example.org"]
    assert Targets([SecretStr(url) for url in urls]).names == {
        "json",
        "json-2",
        "night-shift",
        "mailto",
    }
    with pytest.raises(SettingsError, match="named 'ops'"):
        Targets([SecretStr("ops=json://a"), SecretStr("ops=json://b")])


def test_names_and_reasons_are_escaped_in_html_messages(
    store: Store, clock: Clock, receiver: Receiver
) -> None:
    bench = Bench(store, clock, f"{receiver.url}?format=html")
    with bench.store.begin() as conn:
        holds.place(
            conn,
            clock(),
            LETTERS,
            source=HoldSource.OPERATOR,
            reason="<script>alert(1)</script> @everyone",
            actor="ana",
        )
    bench.step()
    assert "<script>" not in receiver.bodies[0]
    assert "&lt;script&gt;" in receiver.bodies[0]
    assert "@everyone" not in receiver.bodies[0] + receiver.titles[0]


# --- events in order -----------------------------------------------------------------------------


@contextmanager
def writing(store: Store, name: str) -> Iterator[sa.Connection]:
    with store.begin() as conn:
        conn.execute(
            t.events.insert().values(
                at=store.now(conn), kind="x", name=name, to_status="x", actor="x"
            )
        )
        yield conn


def read(store: Store, reader: EventReader, after: int) -> list[str]:
    with store.read() as conn:
        return [e.name for e in reader.read(conn, after=after, limit=100)]


def test_an_event_that_is_committed_after_a_later_one_is_not_missed(postgres_url: str) -> None:
    store = Store(postgres_url)
    reader = EventReader()
    with writing(store, "first"):
        with writing(store, "second"):
            pass
        assert read(store, reader, 0) == []
        assert read(store, reader, 0) == [], "the first may still be committed"
    assert read(store, reader, 0) == ["first", "second"]
    with pytest.raises(InterruptedError), writing(store, "rolled back"):
        raise InterruptedError
    with writing(store, "third"):
        pass
    with store.read() as conn:
        last = newest(conn)
    assert last == 4
    assert read(store, reader, 2) == ["third"], "no transaction is open that could fill the gap"
    store.dispose()


# --- unexpected errors ---------------------------------------------------------------------------


@contextmanager
def sending(bench: Bench) -> Iterator[None]:
    """Run the loop in a thread, as a server does."""
    stop = threading.Event()
    thread = threading.Thread(
        target=loop.run, args=(bench.store, bench.settings, stop), kwargs={"check_interval_s": 0.02}
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()


def test_an_alert_of_a_newer_version_is_sent_as_a_warning(bench: Bench, receiver: Receiver) -> None:
    with bench.store.begin() as conn:
        for kind in ("future_kind", AlertKind.SEVERAL):
            alerts.raise_alert(
                conn, bench.clock(), kind=kind, name=kind, title=kind, body="-", lasts=False
            )
    with sending(bench):
        wait_until(lambda: len(receiver.titles) == 2)
    assert receiver.titles == ["future_kind", "several"]
    assert receiver.types == ["warning", "warning"]


def test_an_unexpected_error_is_logged_and_the_sender_continues(
    bench: Bench,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    checks: list[int] = []

    def evaluate(*_args: object, **_options: object) -> AlertChanges:
        checks.append(1)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(loop, "evaluate", evaluate)
    bench.turn(BreakerState.OPEN)
    with bench.store.begin() as conn:
        alerts.raise_alert(
            conn, bench.clock(), kind=AlertKind.TEST, name="x", title="x", body="-", lasts=True
        )
    with sending(bench):
        wait_until(lambda: len(checks) > 3 and receiver.titles)
        assert receiver.titles == ["x"], "an alert raised earlier is sent"
        monkeypatch.undo()
        wait_until(lambda: len(receiver.titles) == 2)
    assert receiver.titles[1] == "mail is down: 503 x5"
    logged = [record for record in caplog.records if record.exc_info]
    assert len(logged) == 1, "at most once a minute"
    assert "a bug" in caplog.text


def test_status_and_health_report_that_no_sender_is_running(
    bench: Bench, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIDEGATE_ALERT_URLS", raising=False)

    def problem() -> str:
        with bench.store.read() as conn:
            health = AlertHealth.of(alerts.counts(conn, bench.clock()), bench.clock())
            shown = status.render(situation.read(conn, bench.clock()), health_of(conn))
        console = Console(record=True, width=300, file=io.StringIO())
        console.print(shown)
        with api(bench.store) as asked:
            answered = asked.get("/health/alerts")
        assert (answered["stale"], answered["text"]) == (health.stale, health.text)
        assert (f"{health.text[1:]}. See" in console.export_text()) == health.stale
        return health.text if health.stale else ""

    def health_of(conn: sa.Connection) -> AlertCounts:
        return alerts.counts(conn, bench.clock())

    assert problem() == ""
    bench.clock.advance(150)
    assert problem() == "", "no targets are configured"
    monkeypatch.setenv("TIDEGATE_ALERT_URLS", receiver.url)
    assert "no alert sender is running: the last check was at" in problem()
    bench.monitor.check()
    assert problem() == ""
    bench.turn(BreakerState.OPEN)
    bench.monitor.check()
    bench.clock.advance(310)
    assert "an alert has been waiting since" in problem()
    bench.monitor.check()
    assert "although a sender is running" in problem()
    monkeypatch.delenv("TIDEGATE_ALERT_URLS")
    bench.clock.advance(150)
    assert "no alert sender is running: the last check was at" in problem(), "an alert waits"
    bench.check_and_send()
    assert problem() == ""


# --- the API -------------------------------------------------------------------------------------


def test_the_api_lists_alerts_page_by_page(bench: Bench, receiver: Receiver) -> None:
    receiver.answer = 500
    bench.turn(BreakerState.OPEN)
    bench.step()
    bench.turn(BreakerState.CLOSED)
    bench.step()
    with api(bench.store) as asked:
        first = asked.get("/alerts", limit=1)
        second = asked.get("/alerts", limit=1, cursor=first["next_cursor"])
    [newest], [oldest] = first["items"], second["items"]
    assert (newest["title"], newest["status"]) == ("mail has recovered", "pending")
    assert (oldest["status"], oldest["error"]) == ("retrying", "json: HTTP status 500")
    assert second["next_cursor"] is None


# --- commands ------------------------------------------------------------------------------------


def test_the_commands_list_alerts_and_test_the_targets(
    store_url: str, make_receiver: Callable[[], Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy, failing = make_receiver(), make_receiver()
    failing.answer = 503
    monkeypatch.setenv("TIDEGATE_STORE_URL", store_url)
    monkeypatch.setenv("TIDEGATE_ALERT_URLS", f"ops={healthy.url} {failing.url}")
    store = Store(store_url)

    def tidegate(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["alerts", *words], catch_exceptions=False)
        return done.exit_code, done.output

    assert tidegate("list") == (0, "No alerts yet.\n")
    code, output = tidegate("test")
    assert code == 1
    assert "ops: sent" in output
    assert "json: HTTP status 503" in output
    assert healthy.titles == ["Test alert from Tidegate"]
    failing.answer = 200
    assert tidegate("test")[0] == 0

    with store.begin() as conn:
        alerts.raise_alert(
            conn,
            store.now(conn),
            kind=AlertKind.GATE_STALE,
            name="here",
            title="The gate of here is stale",
            body="",
            lasts=True,
        )
    assert "The gate of here is stale" in tidegate("list")[1]
    [listed] = json.loads(tidegate("list", "--json")[1])
    assert (listed["status"], listed["ended_at"]) == ("pending", None)
    store.dispose()


def test_an_empty_list_says_that_nobody_may_be_alerted(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_STORE_URL", sqlite_url)
    monkeypatch.delenv("TIDEGATE_ALERT_URLS", raising=False)
    done = CliRunner().invoke(main, ["alerts", "list"], catch_exceptions=False)
    assert "TIDEGATE_ALERT_URLS is not set here" in done.output


def test_the_command_refuses_to_run_without_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDEGATE_ALERT_URLS", raising=False)
    for command in ("run", "test"):
        done = CliRunner().invoke(main, ["alerts", command])
        assert done.exit_code == 1
        assert "TIDEGATE_ALERT_URLS" in done.output


def test_tidegate_alerts_run_sends_alerts_until_sigterm(
    sqlite_url: str, receiver: Receiver
) -> None:
    store = Store(sqlite_url)
    with store.begin() as conn:
        breakers.ensure(conn, store.now(conn), ["mail"])
    environment = {
        **os.environ,
        "TIDEGATE_STORE_URL": sqlite_url,
        "TIDEGATE_ALERT_URLS": receiver.url,
        "TIDEGATE_PUBLIC_URL": "https://dagster.example.org",
    }
    command = [Path(sys.executable).with_name("tidegate"), "alerts", "run"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as sender:
        try:
            wait_until(lambda: _looked(store))
            fleet = Fleet(SqlBackend(store), [ServicePolicy(name="mail", consecutive_failures=1)])
            with pytest.raises(BreakerOpenError):
                fleet.breaker("mail").call(_fail)
            wait_until(lambda: bool(receiver.titles))
            fleet.close()
            sender.send_signal(signal.SIGTERM)
            assert sender.wait(60) == 0
        finally:
            sender.kill()
    assert receiver.titles == ["mail is down: ConnectionError x1"]
    assert receiver.bodies[0].endswith(
        "Runbook: https://dagster.example.org/tidegate/runbooks#alert-trip\n"
        "https://dagster.example.org"
    )
    store.dispose()


def _fail() -> None:
    raise ConnectionError


def _looked(store: Store) -> bool:
    with store.read() as conn:
        return alerts.read_cursor(conn) is not None
