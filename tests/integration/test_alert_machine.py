"""Every trip is sent once or counted in a later message, and none twice, in any order of events."""

import re
import threading
from datetime import UTC, datetime, timedelta

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.alerts.loop import Monitor
from dagster_tidegate.alerts.rules import BURST
from dagster_tidegate.alerts.sender import MAX_TRIES, Sender
from dagster_tidegate.alerts.text import Text
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.settings import AlertSettings
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import alerts, breakers, holds
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store
from tests.support.examples import share_of_examples

SERVICES = ("mail", "maps")
ACTORS = ("ana", "bob")
LETTERS = Target(TargetKind.CAMPAIGN, "letters")
SETTINGS = AlertSettings(per_minute=600)
NEVER = threading.Event()


class SenderDied(BaseException):
    """The sender's process ended while it was sending."""


class FakeTargets:
    """Receives messages in place of `Targets`, or fails."""

    names = frozenset({"ops"})

    def __init__(self) -> None:
        self.messages: list[tuple[str, Text]] = []
        self.behavior = "accepts"

    def send(self, text: Text, kind: str, *, to: object) -> dict[str, str | None]:
        assert to == ["ops"]
        if self.behavior == "kills":
            self.behavior = "accepts"
            raise SenderDied
        if self.behavior == "rejects":
            return {"ops": "HTTP status 500"}
        self.messages.append((kind, text))
        return {"ops": None}


class Alerts(RuleBasedStateMachine):
    """Breakers and holds change, time passes, senders die, targets fail."""

    @initialize()
    def begin(self) -> None:
        self.time = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
        self.store = Store("sqlite://", clock=lambda: self.time)
        t.metadata.create_all(self.store.engine)
        self.targets = FakeTargets()
        self.trips: dict[str, int] = dict.fromkeys(SERVICES, 0)
        with self.store.begin() as conn:
            breakers.ensure(conn, self.time, SERVICES)
        self.restart()
        self.monitor.check()

    @rule()
    def restart(self) -> None:
        """The sender's process ends, and another begins."""
        self.monitor = Monitor(self.store, SETTINGS)
        self.sender = Sender(self.store, self.targets, SETTINGS.per_minute)  # type: ignore[arg-type] -- has what a sender uses

    @rule(service=st.sampled_from(SERVICES), state=st.sampled_from(BreakerState))
    def change(self, service: str, state: BreakerState) -> None:
        with self.store.begin() as conn:
            before = breakers.read_one(conn, service)
            if before.state is state or (
                before.state is BreakerState.CLOSED and state is BreakerState.HALF_OPEN
            ):
                return
            after = type(before)(
                service,
                changed_at=self.time,
                state=state,
                generation=before.generation + 1,
                reason=None if state is BreakerState.CLOSED else "503",
            )
            assert breakers.change(conn, self.time, before, after)
        self.trips[service] += before.state is BreakerState.CLOSED

    @rule(
        service=st.sampled_from(SERVICES),
        times=st.integers(1, 4),
        checks=st.booleans(),
        sends=st.booleans(),
    )
    def flap(self, service: str, times: int, checks: bool, sends: bool) -> None:
        for state in (times * [BreakerState.OPEN, BreakerState.CLOSED])[: 2 * times - 1]:
            self.change(service, state)
            if checks:
                self.check()
            if sends:
                self.send()

    @rule(actor=st.sampled_from(ACTORS), minutes=st.sampled_from([None, 5, 120]))
    def hold(self, actor: str, minutes: int | None) -> None:
        until = None if minutes is None else self.time + timedelta(minutes=minutes)
        with self.store.begin() as conn:
            holds.place(
                conn,
                self.time,
                LETTERS,
                source=HoldSource.OPERATOR,
                reason="copy",
                actor=actor,
                expires_at=until,
            )

    @rule()
    def release(self) -> None:
        with self.store.begin() as conn:
            holds.release(conn, self.time, LETTERS, source=HoldSource.OPERATOR, actor="ana")

    @rule(seconds=st.sampled_from([1, 30, 300, 700, 4000]))
    def wait(self, seconds: int) -> None:
        self.time += timedelta(seconds=seconds)

    @rule()
    def check(self) -> None:
        self.monitor.check()

    @rule()
    def send(self) -> None:
        try:
            self.sender.send(NEVER)
        except SenderDied:
            self.restart()

    @rule(behavior=st.sampled_from(["accepts", "rejects", "kills"]))
    def change_targets(self, behavior: str) -> None:
        self.targets.behavior = behavior

    @rule()
    def settle(self) -> None:
        """Everything works for long enough: then every alert is sent."""
        self.targets.behavior = "accepts"
        for _ in range(3 * MAX_TRIES):
            self.time += timedelta(seconds=1000)
            self.check()
            self.sender.send(NEVER)
            if not self.waiting():
                break
        assert self.waiting() == []
        with self.store.read() as conn:
            open_now = {
                name
                for name, status in breakers.read(conn).items()
                if status.state is not BreakerState.CLOSED
            }
        given_up = self.given_up()
        for service in SERVICES:
            sent = sum(
                trips_in(text.title, service)
                for kind, text in self.targets.messages
                if kind == AlertKind.TRIP
            )
            lost = sum(trips_in(title, service) for title in given_up)
            assert sent + lost == self.trips[service]
        if not given_up:
            assert self.reported_down() == open_now

    def waiting(self) -> list[alerts.Alert]:
        with self.store.read() as conn:
            raised = alerts.listed(conn, limit=10_000)
        return [alert for alert in raised if alert.next_try_at or alert.withheld]

    def given_up(self) -> list[str]:
        with self.store.read() as conn:
            return [
                alert.title
                for alert in alerts.listed(conn, limit=10_000)
                if alert.status is alerts.AlertStatus.GIVEN_UP
            ]

    def reported_down(self) -> set[str]:
        """The services that are down according to the messages."""
        down: set[str] = set()
        for kind, text in self.targets.messages:
            service = text.title.split()[0]
            if kind == AlertKind.RECOVERY or text.title.endswith("up now"):
                down.discard(service)
            elif kind == AlertKind.TRIP:
                down.add(service)
        return down

    @invariant()
    def every_recovery_follows_a_trip(self) -> None:
        for service in SERVICES:
            kinds = [
                kind for kind, text in self.targets.messages if text.title.split()[0] == service
            ]
            down = 0
            for kind in kinds:
                if kind == AlertKind.TRIP:
                    down = 1
                elif kind == AlertKind.RECOVERY:
                    assert down, "a recovery was sent without a trip"
                    down = 0

    @invariant()
    def no_alert_is_sent_twice(self) -> None:
        with self.store.read() as conn:
            raised = alerts.listed(conn, limit=10_000)
        sent = [alert for alert in raised if alert.sent_at is not None]
        assert len(self.targets.messages) == len(sent)

    @invariant()
    def messages_are_rate_limited(self) -> None:
        with self.store.read() as conn:
            raised = alerts.listed(conn, limit=10_000)
        for service in SERVICES:
            times = sorted(a.raised_at for a in raised if (a.kind, a.name) == ("trip", service))
            for first, last in zip(times, times[BURST:], strict=False):
                spaced = timedelta(seconds=SETTINGS.repeat_after_s)
                assert last - first >= spaced or last - first >= timedelta(hours=1)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.settle()
            self.no_alert_is_sent_twice()
            self.store.dispose()


def trips_in(title: str, service: str) -> int:
    """How many trips of a service a message counts."""
    if not title.startswith(f"{service} "):
        return 0
    many = re.search(r"went down (\d+) (more )?times", title)
    if many:
        return int(many[1])
    return 1 if "went down once" in title or " is down" in title else 0


Alerts.TestCase.settings = settings(
    max_examples=share_of_examples(3),
    stateful_step_count=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take minutes
)
TestAlerts = Alerts.TestCase
