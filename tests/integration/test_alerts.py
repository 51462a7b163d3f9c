"""People are told: by real HTTP targets that answer, fail, hang and recover."""

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

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from pydantic import SecretStr
from rich.console import Console

from dagster_tidegate.alerts import loop
from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.alerts.loop import Outage, Watch
from dagster_tidegate.alerts.rules import Verdict
from dagster_tidegate.alerts.sender import CLAIMED_FOR, MAX_TRIES, Sender
from dagster_tidegate.alerts.targets import Targets
from dagster_tidegate.alerts.text import Text
from dagster_tidegate.breaker.breaker import BreakerOpenError
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.cli import main, status
from dagster_tidegate.control import situation
from dagster_tidegate.control.models import AlertHealth
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.settings import AlertSettings, SettingsError
from dagster_tidegate.statuses import BreakerState, RecordStatus, RunStatus
from dagster_tidegate.store import alerts, breakers, campaigns, heartbeats, holds
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.alerts import AlertStatus, Counts
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.event_reader import EventReader, newest
from dagster_tidegate.text import utc
from demo.up import ports
from tests.integration.api import api
from tests.support.clock import Clock
from tests.support.polling import wait_until

MAIL = Target(TargetKind.SERVICE, "mail")
LETTERS = Target(TargetKind.CAMPAIGN, "letters")
GO_ON = threading.Event()


class Receiver:
    """A web server that takes messages, or does not."""

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
    """A store, whoever looks at it, and where it is told."""

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
        self.watch.look()

    def restart(self) -> None:
        self.watch = Watch(self.store, self.settings)
        self.sender = Sender(self.store, self.targets, self.settings.per_minute)

    def beat(self) -> None:
        with self.store.begin() as conn:
            for part in ("pause", "resume", "breaker"):
                heartbeats.beat(conn, self.clock(), location="here", part=part, summary="")

    def go_on(self, seconds: float = 1.0) -> None:
        self.clock.advance(seconds)
        self.beat()
        self.look()

    def look(self) -> None:
        self.watch.look()
        self.sender.send(GO_ON)

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


# --- what is told --------------------------------------------------------------------------------


def test_a_trip_and_its_recovery_are_told_once_each_over_restarts(
    bench: Bench, receiver: Receiver
) -> None:
    bench.turn(BreakerState.OPEN)
    for _ in range(3):
        bench.go_on()
        bench.restart()
    assert receiver.titles == ["mail is down: 503 x5"]
    assert "Paused: letters" in receiver.bodies[0]
    bench.turn(BreakerState.CLOSED)
    for _ in range(3):
        bench.restart()
        bench.go_on()
    assert receiver.titles == ["mail is down: 503 x5", "mail is back"]
    assert set(bench.all().values()) == {AlertStatus.SENT}


def test_what_happened_while_nobody_looked_is_told(bench: Bench, receiver: Receiver) -> None:
    bench.turn(BreakerState.OPEN)
    bench.clock.advance(60)
    bench.turn(BreakerState.CLOSED)
    bench.restart()
    bench.go_on()
    assert receiver.titles == ["mail is down: 503 x5"]
    bench.go_on()
    assert receiver.titles[1:] == ["mail is back"]


def test_what_happened_before_anybody_ever_looked_is_not_told(
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
    bench.go_on()
    assert receiver.titles == []


def test_a_service_that_comes_and_goes_makes_few_messages_and_none_is_lost(
    bench: Bench, receiver: Receiver
) -> None:
    for _ in range(20):
        bench.turn(BreakerState.OPEN)
        bench.go_on(60)
        bench.turn(BreakerState.CLOSED)
        bench.go_on(60)
    for _ in range(20):
        bench.go_on(60)
    downs = [title for title in receiver.titles if "down" in title]
    counts = [int(title.split()[3]) if "more times" in title else 1 for title in downs]
    assert sum(counts) == 20
    assert len(downs) < 8
    assert receiver.titles.count("mail is back") <= len(downs)


def test_a_hold_of_a_person_and_its_release_are_told(bench: Bench, receiver: Receiver) -> None:
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
    bench.go_on()
    bench.go_on(50 * 60 - 1)
    with bench.store.begin() as conn:
        holds.release(conn, bench.clock(), LETTERS, source=HoldSource.OPERATOR, actor="bob")
    bench.go_on()
    assert receiver.titles == [
        "ana holds campaign letters: new copy",
        "the hold on campaign letters ends in 10 min",
        "campaign letters is not held by ana any more",
    ]
    assert "released by bob" in receiver.bodies[-1]


def test_a_hold_that_expired_is_told_with_its_end_before_the_gate_has_seen_it(
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
    bench.go_on()
    bench.go_on(3600)
    assert receiver.titles == [
        "ana holds campaign run account_digest/next_week: new copy",
        "campaign run account_digest/next_week is not held by ana any more",
    ]
    assert f"expired at {utc(ends)}" in receiver.bodies[-1]


def test_a_stale_gate_is_told_while_nothing_of_dagster_runs(
    bench: Bench, receiver: Receiver
) -> None:
    bench.clock.advance(170)
    bench.look()
    assert receiver.titles == []
    bench.clock.advance(20)
    bench.look()
    bench.look()
    assert receiver.titles == ["the gate of here is stale"]


def test_records_in_doubt_are_told_when_their_attempt_was_cut_off(
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
    bench.go_on(290)
    assert receiver.titles == []
    bench.restart()
    bench.go_on(60)
    assert sorted(receiver.titles) == [
        "1 record of letters/monday in doubt",
        "1 record of letters/wednesday in doubt",
    ]


def test_runs_that_fail_after_a_pause_or_do_not_resume_are_told(
    bench: Bench, receiver: Receiver
) -> None:
    bench.run(RunStatus.FAILED, attempts=("paused", "failed"))
    bench.run(RunStatus.FAILED, partition="tuesday", attempts=("failed",))
    bench.run(RunStatus.PAUSED, partition="wednesday", attempts=("paused",))
    bench.restart()
    bench.go_on(590)
    assert receiver.titles == ["letters/monday failed after it resumed"]
    bench.restart()
    bench.go_on(20)
    assert receiver.titles[1:] == ["letters does not resume: 1 paused run, and no hold"]


# --- how it is sent ------------------------------------------------------------------------------


def test_a_message_that_is_refused_is_sent_again_and_only_where_it_is_missing(
    store: Store, clock: Clock, make_receiver: Callable[[], Receiver]
) -> None:
    well, ill = make_receiver(), make_receiver()
    ill.answer = 500
    bench = Bench(store, clock, f"ops={well.url}", f"team={ill.url}")
    bench.turn(BreakerState.OPEN)
    bench.go_on()
    with store.read() as conn:
        [alert] = alerts.listed(conn, limit=9)
        counts = alerts.counts(conn, clock())
    assert alert.status is AlertStatus.RETRYING
    assert (alert.error, alert.delivered_to) == ("team: it answered 500", ["ops"])
    assert counts.failing == 1
    bench.go_on()  # not yet
    assert len(ill.titles) == 1
    bench.restart()
    bench.go_on(10)
    assert len(ill.titles) == 2
    ill.answer = 200
    bench.go_on(20)
    assert (len(well.titles), len(ill.titles)) == (1, 3)
    assert bench.all() == {"mail is down: 503 x5": AlertStatus.SENT}


def test_a_message_that_can_not_be_sent_is_given_up_and_seen(
    bench: Bench, receiver: Receiver
) -> None:
    receiver.answer = 403
    bench.turn(BreakerState.OPEN)
    bench.go_on()
    for _ in range(2 * MAX_TRIES):
        bench.go_on(900)
    assert len(receiver.titles) == MAX_TRIES
    assert bench.all()["mail is down: 503 x5"] is AlertStatus.GIVEN_UP
    bench.turn(BreakerState.CLOSED)
    receiver.answer = 200
    bench.go_on()
    assert "mail is back" not in receiver.titles, "nobody was told that it was down"


def test_what_is_told_of_a_thing_is_told_in_order(bench: Bench, receiver: Receiver) -> None:
    receiver.answer = 500
    bench.turn(BreakerState.OPEN)
    bench.go_on()
    bench.turn(BreakerState.CLOSED)
    bench.go_on()
    receiver.answer = 200
    receiver.titles.clear()
    for _ in range(3):
        bench.go_on(20)
    assert receiver.titles == ["mail is down: 503 x5", "mail is back"]


def test_a_target_that_fails_holds_up_no_other(
    store: Store, clock: Clock, make_receiver: Callable[[], Receiver]
) -> None:
    well, ill = make_receiver(), make_receiver()
    ill.answer = 500
    bench = Bench(store, clock, f"well={well.url}", f"ill={ill.url}")
    bench.turn(BreakerState.OPEN)
    bench.go_on(1)
    bench.turn(BreakerState.CLOSED)
    bench.go_on(1)
    assert well.titles == ["mail is down: 503 x5", "mail is back"]


def test_a_target_that_hangs_stops_no_other_and_gets_nothing_more_meanwhile(
    make_receiver: Callable[[], Receiver],
) -> None:
    well, hanging = make_receiver(), make_receiver()
    hanging.answers.clear()
    targets = Targets([SecretStr(f"well={well.url}"), SecretStr(f"ill={hanging.url}?rto=60")])

    def send(title: str) -> dict[str, str | None]:
        text = Text(title, "all of it")
        return dict(targets.send(text, AlertKind.TEST, to=["ill", "well"], timeout_s=3))

    assert send("one") == {"well": None, "ill": "no answer in 3 s"}
    assert send("two") == {"well": None, "ill": "it still has not answered to a message before"}
    assert (well.titles, hanging.titles) == (["one", "two"], ["one"])
    hanging.answers.set()
    for thread in threading.enumerate():
        if thread.name == "tidegate-alert-ill":
            thread.join(60)
    assert send("three") == {"well": None, "ill": None}


def test_of_two_senders_one_sends(bench: Bench, receiver: Receiver) -> None:
    for _ in range(10):
        bench.turn(BreakerState.OPEN)
        bench.turn(BreakerState.CLOSED)
        bench.clock.advance(1000)
        bench.beat()
        bench.watch.look()
    with bench.store.read() as conn:
        raised = alerts.listed(conn, limit=100)
    together = threading.Barrier(4)

    def send(_number: int) -> None:
        sender = Sender(bench.store, Targets(bench.settings.urls), 600)
        for _ in range(len(raised)):
            together.wait(60)
            sender.send(GO_ON)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(send, range(4)))
    assert len(raised) == 20
    assert sorted(receiver.titles) == sorted(alert.title for alert in raised)


def test_of_two_who_look_one_raises(bench: Bench) -> None:
    together = threading.Barrier(4)
    watches = [Watch(bench.store, bench.settings) for _ in range(4)]

    def look(watch: Watch) -> None:
        together.wait(60)
        watch.look()

    for state in 5 * (BreakerState.OPEN, BreakerState.CLOSED):
        bench.turn(state)
        bench.clock.advance(1000)
        bench.beat()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(look, watches))
    with bench.store.read() as conn:
        kinds = [alert.kind for alert in alerts.listed(conn, limit=100)]
    assert (kinds.count("trip"), kinds.count("recovery")) == (5, 5)


def test_what_a_sender_had_in_hand_when_it_died_is_sent_by_another(
    bench: Bench, receiver: Receiver
) -> None:
    bench.turn(BreakerState.OPEN)
    bench.watch.look()
    with bench.store.begin() as conn:
        [alert] = alerts.due(conn, bench.clock(), limit=9)
        assert alerts.claim(conn, alert, bench.clock() + CLAIMED_FOR)
        assert not alerts.claim(conn, alert, bench.clock() + CLAIMED_FOR)
    bench.go_on()
    assert receiver.titles == []
    bench.go_on(CLAIMED_FOR.total_seconds())
    assert receiver.titles == ["mail is down: 503 x5"]


def test_too_much_at_once_shares_a_message(bench: Bench, receiver: Receiver) -> None:
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
    bench.go_on()
    assert len(receiver.titles) == 3
    assert receiver.titles[-1] == "38 alerts"
    assert "campaign run letters/39" in receiver.bodies[-1]
    assert set(bench.all().values()) == {AlertStatus.SENT}
    bench.turn(BreakerState.OPEN)
    bench.go_on()
    assert len(receiver.titles) == 3, "the minute is not over"


def test_a_store_that_can_not_be_reached_is_told_and_so_is_its_return(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOST_AFTER_S", 0.0)
    gone = Store(f"postgresql://127.0.0.1:{ports.free()}/none")
    settings = AlertSettings(urls=(SecretStr(receiver.url),))
    stop = threading.Event()
    thread = threading.Thread(
        target=loop.run, args=(gone, settings, stop), kwargs={"look_every_s": 0.01}, daemon=True
    )
    thread.start()
    for _ in range(6000):
        if receiver.titles or stop.wait(0.01):
            break
    stop.set()
    thread.join(60)
    assert receiver.titles == ["the store of Tidegate can't be reached"]
    gone.dispose()

    outage = Outage(Targets(settings.urls), timedelta(0))
    outage.lost(OSError("away"))
    outage.lost(OSError("away"))
    outage.over(store)
    Sender(store, Targets(settings.urls), 10).send(stop := threading.Event())
    outage.over(store)
    Sender(store, Targets(settings.urls), 10).send(stop)
    assert receiver.titles[1:] == [
        "the store of Tidegate can't be reached",
        "the store of Tidegate is back",
    ]


def test_a_short_outage_of_the_store_is_not_told(store: Store, receiver: Receiver) -> None:
    ticks = [0.0]
    outage = Outage(Targets([SecretStr(receiver.url)]), timedelta(0), ticks=lambda: ticks[0])
    outage.lost(OSError("away"))
    ticks[0] = 29
    outage.lost(OSError("away"))
    outage.over(store)
    assert receiver.titles == []
    with store.read() as conn:
        assert alerts.listed(conn, limit=9) == []


# --- what must not get out -----------------------------------------------------------------------


def test_no_url_is_shown_anywhere(
    store: Store, clock: Clock, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.answer = 500
    secret = "s3cr3t-of-ops"
    address = receiver.url.removeprefix("json://")
    bench = Bench(store, clock, f"json://user:{secret}@{address}/{secret}?token={secret}")
    bench.turn(BreakerState.OPEN)
    bench.go_on()
    with store.read() as conn:
        rows = conn.execute(sa.select(t.alerts)).all()
    assert rows[0].error == "json: it answered 500"
    assert secret not in str(rows) + caplog.text + repr(bench.settings) + repr(vars(bench.targets))


@pytest.mark.parametrize("url", ["nothing-s3cr3t", "nothing://s3cr3t", "slack://s3cr3t"])
def test_a_url_that_apprise_does_not_know_is_refused_without_repeating_it(
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


def test_names_and_reasons_are_data_where_messages_are_html(
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
    bench.go_on()
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
        assert read(store, reader, 0) == [], "the first may still come"
    assert read(store, reader, 0) == ["first", "second"]
    with pytest.raises(InterruptedError), writing(store, "rolled back"):
        raise InterruptedError
    with writing(store, "third"):
        pass
    with store.read() as conn:
        last = newest(conn)
    assert last == 4
    assert read(store, reader, 2) == ["third"], "nobody is at work who could fill the hole"
    store.dispose()


# --- what nobody thought of ----------------------------------------------------------------------


@contextmanager
def sending(bench: Bench) -> Iterator[None]:
    """The loop, in a thread as a server has it."""
    stop = threading.Event()
    thread = threading.Thread(
        target=loop.run, args=(bench.store, bench.settings, stop), kwargs={"look_every_s": 0.02}
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()


def test_an_alert_of_a_newer_version_is_sent_and_stops_no_other(
    bench: Bench, receiver: Receiver
) -> None:
    with bench.store.begin() as conn:
        for kind in ("future_kind", AlertKind.SEVERAL):
            alerts.raise_alert(
                conn, bench.clock(), kind=kind, name=kind, title=kind, body="-", lasts=False
            )
    with sending(bench):
        wait_until(lambda: len(receiver.titles) == 2)
    assert receiver.titles == ["future_kind", "several"]
    assert receiver.types == ["warning", "warning"]


def test_an_error_that_nobody_thought_of_is_logged_and_the_sender_goes_on(
    bench: Bench,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    looks = []

    def judge(*_args: object) -> Verdict:
        looks.append(1)
        raise ZeroDivisionError("a slip")

    monkeypatch.setattr(loop, "judge", judge)
    bench.turn(BreakerState.OPEN)
    with bench.store.begin() as conn:
        alerts.raise_alert(
            conn, bench.clock(), kind=AlertKind.TEST, name="x", title="x", body="-", lasts=True
        )
    with sending(bench):
        wait_until(lambda: len(looks) > 3 and receiver.titles)
        assert receiver.titles == ["x"], "what was raised before goes out"
        monkeypatch.undo()
        wait_until(lambda: len(receiver.titles) == 2)
    assert receiver.titles[1] == "mail is down: 503 x5"
    logged = [record for record in caplog.records if record.exc_info]
    assert len(logged) == 1, "once a minute, and not at each turn"
    assert "a slip" in caplog.text


def test_that_nobody_sends_alerts_is_told(
    bench: Bench, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIDEGATE_ALERT_URLS", raising=False)

    def told() -> str:
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

    def health_of(conn: sa.Connection) -> Counts:
        return alerts.counts(conn, bench.clock())

    assert told() == ""
    bench.clock.advance(150)
    assert told() == "", "nobody is to be told anything"
    monkeypatch.setenv("TIDEGATE_ALERT_URLS", receiver.url)
    assert "no sender of alerts has looked since" in told()
    bench.watch.look()
    assert told() == ""
    bench.turn(BreakerState.OPEN)
    bench.watch.look()
    bench.clock.advance(310)
    assert "an alert waits since" in told()
    bench.watch.look()
    assert "though a sender is at work" in told()
    monkeypatch.delenv("TIDEGATE_ALERT_URLS")
    bench.clock.advance(150)
    assert "no sender of alerts has looked since" in told(), "an alert waits"
    bench.look()
    assert told() == ""


# --- the API -------------------------------------------------------------------------------------


def test_the_api_lists_alerts_page_by_page(bench: Bench, receiver: Receiver) -> None:
    receiver.answer = 500
    bench.turn(BreakerState.OPEN)
    bench.go_on()
    bench.turn(BreakerState.CLOSED)
    bench.go_on()
    with api(bench.store) as asked:
        first = asked.get("/alerts", limit=1)
        second = asked.get("/alerts", limit=1, cursor=first["next_cursor"])
    [newest], [oldest] = first["items"], second["items"]
    assert (newest["title"], newest["status"]) == ("mail is back", "pending")
    assert (oldest["status"], oldest["error"]) == ("retrying", "json: it answered 500")
    assert second["next_cursor"] is None


# --- commands ------------------------------------------------------------------------------------


def test_the_commands_list_alerts_and_try_the_targets(
    store_url: str, make_receiver: Callable[[], Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    well, ill = make_receiver(), make_receiver()
    ill.answer = 503
    monkeypatch.setenv("TIDEGATE_STORE_URL", store_url)
    monkeypatch.setenv("TIDEGATE_ALERT_URLS", f"ops={well.url} {ill.url}")
    store = Store(store_url)

    def tidegate(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["alerts", *words], catch_exceptions=False)
        return done.exit_code, done.output

    assert tidegate("list") == (0, "nobody was told of anything yet\n")
    code, output = tidegate("test")
    assert code == 1
    assert "ops: it has the message" in output
    assert "json: it answered 503" in output
    assert well.titles == ["a test of Tidegate's alerts"]
    ill.answer = 200
    assert tidegate("test")[0] == 0

    with store.begin() as conn:
        alerts.raise_alert(
            conn,
            store.now(conn),
            kind=AlertKind.GATE_STALE,
            name="here",
            title="the gate of here is stale",
            body="",
            lasts=True,
        )
    assert "the gate of here is stale" in tidegate("list")[1]
    [listed] = json.loads(tidegate("list", "--json")[1])
    assert (listed["status"], listed["ended_at"]) == ("pending", None)
    store.dispose()


def test_the_command_refuses_to_run_without_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDEGATE_ALERT_URLS", raising=False)
    for command in ("run", "test"):
        done = CliRunner().invoke(main, ["alerts", command])
        assert done.exit_code == 1
        assert "TIDEGATE_ALERT_URLS" in done.output


def test_a_process_of_its_own_sends_alerts_until_it_is_told_to_end(
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
            fleet = Fleet(store, [ServicePolicy(name="mail", consecutive_failures=1)])
            with pytest.raises(BreakerOpenError):
                fleet.breaker("mail").call(_fail)
            wait_until(lambda: bool(receiver.titles))
            fleet.close()
            sender.send_signal(signal.SIGTERM)
            assert sender.wait(60) == 0
        finally:
            sender.kill()
    assert receiver.titles == ["mail is down: ConnectionError x1"]
    assert receiver.bodies[0].endswith("https://dagster.example.org")
    store.dispose()


def _fail() -> None:
    raise ConnectionError


def _looked(store: Store) -> bool:
    with store.read() as conn:
        return alerts.read_cursor(conn) is not None
