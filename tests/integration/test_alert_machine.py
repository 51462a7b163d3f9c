"""Whatever happens, in whatever order: every trip is told once or summed up, and none twice."""

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
from dagster_tidegate.alerts.loop import Watch
from dagster_tidegate.alerts.rules import BURST
from dagster_tidegate.alerts.sender import MAX_TRIES, Sender
from dagster_tidegate.alerts.text import Text
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.settings import AlertSettings
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import alerts, breakers, holds
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store

SERVICES = ("mail", "maps")
ACTORS = ("ana", "bob")
LETTERS = Target(TargetKind.CAMPAIGN, "letters")
SETTINGS = AlertSettings(per_minute=600)
GO_ON = threading.Event()


class SenderDied(BaseException):
    """The process ended in mid-sentence."""


class Target_:
    """Where messages arrive; the real ones have tests of their own."""

    names = frozenset({"ops"})

    def __init__(self) -> None:
        self.messages: list[tuple[str, Text]] = []
        self.mood = "well"

    def send(self, text: Text, kind: str, *, to: object) -> dict[str, str | None]:
        assert to == ["ops"]
        if self.mood == "kills":
            self.mood = "well"
            raise SenderDied
        if self.mood == "ill":
            return {"ops": "it answered 500"}
        self.messages.append((kind, text))
        return {"ops": None}


class Alerts(RuleBasedStateMachine):
    """Breakers and holds change, time passes, senders die, targets fail; people are told."""

    @initialize()
    def begin(self) -> None:
        self.time = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
        self.store = Store("sqlite://", clock=lambda: self.time)
        t.metadata.create_all(self.store.engine)
        self.target = Target_()
        self.trips: dict[str, int] = dict.fromkeys(SERVICES, 0)
        with self.store.begin() as conn:
            breakers.ensure(conn, self.time, SERVICES)
        self.restart()
        self.watch.look()

    @rule()
    def restart(self) -> None:
        """The sender's process ends, and another begins."""
        self.watch = Watch(self.store, SETTINGS)
        self.sender = Sender(self.store, self.target, SETTINGS.per_minute)  # type: ignore[arg-type] -- all of it that is used

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
        looks=st.booleans(),
        sends=st.booleans(),
    )
    def flap(self, service: str, times: int, looks: bool, sends: bool) -> None:
        for state in (times * [BreakerState.OPEN, BreakerState.CLOSED])[: 2 * times - 1]:
            self.change(service, state)
            if looks:
                self.look()
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
    def look(self) -> None:
        self.watch.look()

    @rule()
    def send(self) -> None:
        try:
            self.sender.send(GO_ON)
        except SenderDied:
            self.restart()

    @rule(mood=st.sampled_from(["well", "ill", "kills"]))
    def feel(self, mood: str) -> None:
        self.target.mood = mood

    @rule()
    def settle(self) -> None:
        """Everybody is well for long enough: then all is told."""
        self.target.mood = "well"
        for _ in range(3 * MAX_TRIES):
            self.time += timedelta(seconds=1000)
            self.look()
            self.sender.send(GO_ON)
            if not self.waiting():
                break
        assert self.waiting() == []
        with self.store.read() as conn:
            open_now = {
                name
                for name, circuit in breakers.read(conn).items()
                if circuit.state is not BreakerState.CLOSED
            }
        given_up = self.given_up()
        for service in SERVICES:
            told = sum(
                times_told(text.title, service)
                for kind, text in self.target.messages
                if kind == AlertKind.TRIP
            )
            lost = sum(times_told(title, service) for title in given_up)
            assert told + lost == self.trips[service]
        if not given_up:
            assert self.last_told() == open_now

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

    def last_told(self) -> set[str]:
        """The services that are down, for all that people know."""
        down: set[str] = set()
        for kind, text in self.target.messages:
            service = text.title.split()[0]
            if kind == AlertKind.RECOVERY or text.title.endswith("back now"):
                down.discard(service)
            elif kind == AlertKind.TRIP:
                down.add(service)
        return down

    @invariant()
    def every_recovery_is_of_a_trip_that_was_told(self) -> None:
        for service in SERVICES:
            kinds = [
                kind for kind, text in self.target.messages if text.title.split()[0] == service
            ]
            down = 0
            for kind in kinds:
                if kind == AlertKind.TRIP:
                    down = 1
                elif kind == AlertKind.RECOVERY:
                    assert down, "it was told to be back, and not to be down"
                    down = 0

    @invariant()
    def no_alert_is_told_twice(self) -> None:
        with self.store.read() as conn:
            raised = alerts.listed(conn, limit=10_000)
        sent = [alert for alert in raised if alert.sent_at is not None]
        assert len(self.target.messages) == len(sent)

    @invariant()
    def there_are_few_messages(self) -> None:
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
            self.no_alert_is_told_twice()
            self.store.dispose()


def times_told(title: str, service: str) -> int:
    """How many trips of a service a message tells of."""
    if not title.startswith(f"{service} "):
        return 0
    many = re.search(r"went down (\d+) (more )?times", title)
    if many:
        return int(many[1])
    return 1 if "went down once" in title or " is down" in title else 0


Alerts.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a shorter example would take minutes
)
TestAlerts = Alerts.TestCase
