"""Maintenance windows: the gate pauses a service in time, says so before, and resumes it."""

from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from dagster_tidegate.breaker.policy import MaintenanceWindow, ServicePolicy
from dagster_tidegate.cli import main
from dagster_tidegate.control import operations, situation
from dagster_tidegate.control.models import ServiceOut
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.why import ObstacleKind, why
from dagster_tidegate.gate.follow import Audit
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.missed_ticks import MissedTickPlanner
from dagster_tidegate.gate.ticks import pause_tick, resume_tick
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.records.record import Record
from dagster_tidegate.store import breakers, history
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.web.pages import now as now_page
from dagster_tidegate.web.pages.services import services
from tests.integration.record_loop import Stopped, Work, go_through
from tests.support.clock import Clock
from tests.support.databases import both_databases
from tests.unit.simulated_dagster import Fuse, SimulatedDagster

MAIL = Target(TargetKind.SERVICE, "mail")
SUNDAY = MaintenanceWindow(
    cron="0 10 * * SUN", duration_s=7200, timezone="Europe/Berlin", reason="their database"
)
LETTERS = CampaignSpec("letters", "here", "none", ops={"send": "mail"})
BEGINS = datetime(2026, 3, 1, 9, tzinfo=UTC)  # a Sunday
ENDS = datetime(2026, 3, 1, 11, tzinfo=UTC)


class Gates:
    """A gate whose sensors tick when they are told to."""

    def __init__(self, store: Store, clock: Clock, *windows: MaintenanceWindow) -> None:
        self.store, self.clock = store, clock
        self.dagster = SimulatedDagster(Fuse(), clock, None)
        self.dagster.edit_pool("mail", "4")
        self.declare(*windows)

    def declare(self, *windows: MaintenanceWindow) -> None:
        """Deploy code with these windows."""
        policy = ServicePolicy(name="mail", windows=windows, ramp_interval_s=0)
        self.gate = Gate(self.dagster, self.store, {"mail": policy}, "here", [LETTERS])
        self.new_code = True

    def tick(self) -> str:
        planner = MissedTickPlanner(self.gate, None)  # type: ignore[arg-type] -- no schedules
        said = pause_tick(self.gate, planner, Audit(), new_code=self.new_code)
        self.new_code = False
        for _ in range(4):  # the ramp
            resume_tick(self.gate, planner)
        return said

    @property
    def limit(self) -> str:
        return self.dagster.pools()["mail"]

    def situation(self) -> Situation:
        with self.store.read() as conn:
            return situation.read(conn, self.clock())

    def release(self) -> None:
        with self.store.begin() as conn:
            operations.release(conn, self.clock(), MAIL, actor="ann")


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime(2026, 3, 1, 8, 40, tzinfo=UTC))


@both_databases
def test_a_window_pauses_a_service_at_its_start_and_resumes_it_at_its_end(
    store: Store, clock: Clock
) -> None:
    gates = Gates(store, clock, SUNDAY)
    gates.tick()
    assert gates.limit == "4"
    [coming] = gates.situation().windows_of("mail")
    assert coming.announcement(clock()) == (
        "mail pauses in 20 min, until 2026-03-01 11:00:00 UTC (their database)"
    )
    clock.time = BEGINS
    assert "maintenance of mail until 2026-03-01 11:00:00 UTC: their database" in gates.tick()
    assert gates.limit == "0"
    answer = why(gates.situation(), Target(TargetKind.CAMPAIGN, "letters"))
    assert answer.retry_at == ENDS
    assert "in a maintenance window until 2026-03-01 11:00:00 UTC" in answer.summary
    clock.advance(7199)
    gates.tick()
    assert gates.limit == "0"
    clock.advance(1)
    gates.tick()
    assert gates.limit == "4"
    [following] = gates.situation().windows
    assert following.starts_at == datetime(2026, 3, 8, 9, tzinfo=UTC)


def test_what_a_person_releases_in_a_window_stays_released_until_the_next(
    store: Store, clock: Clock
) -> None:
    gates = Gates(store, clock, SUNDAY)
    gates.tick()
    clock.time = BEGINS
    gates.tick()
    gates.release()
    for _ in range(3):
        clock.advance(600)
        gates.tick()
        assert gates.limit == "4"
    gates.new_code = True  # the code server starts again
    gates.tick()
    assert gates.limit == "4"
    clock.time = datetime(2026, 3, 8, 9, tzinfo=UTC)
    gates.tick()
    assert gates.limit == "0"


def test_a_gate_that_was_away_at_the_start_pauses_the_rest_of_the_window(
    store: Store, clock: Clock
) -> None:
    gates = Gates(store, clock, SUNDAY)
    gates.tick()
    clock.advance(14 * 86400 + 5400)  # two Sundays later, in the window
    gates.tick()
    assert gates.limit == "0"
    assert gates.situation().holds[0].expires_at == datetime(2026, 3, 15, 11, tzinfo=UTC)


def test_a_window_in_new_code_counts_at_once_and_one_that_is_removed_no_more(
    store: Store, clock: Clock
) -> None:
    clock.time = BEGINS.replace(minute=30)
    gates = Gates(store, clock)
    gates.tick()
    assert gates.limit == "4"
    gates.declare(SUNDAY)
    gates.tick()
    assert gates.limit == "0"
    gates.declare()
    gates.tick()
    assert gates.situation().windows == []
    assert gates.limit == "0", "its hold ends in its time, or when somebody releases it"
    clock.time = ENDS
    gates.tick()
    assert gates.limit == "4"


def test_a_switched_off_gate_places_no_hold(store: Store, clock: Clock) -> None:
    gates = Gates(store, clock, SUNDAY)
    clock.time = BEGINS
    gates.gate = Gate(gates.dagster, store, gates.gate.policies, "here", [LETTERS], enabled=False)
    gates.tick()
    assert gates.situation().holds == []


def test_the_record_loop_stops_after_its_record(store_url: str) -> None:
    work = Work(store_url)
    with work.store.read() as conn:
        now = work.store.now(conn)
    always = MaintenanceWindow(cron="* * * * *", duration_s=3600, reason="their database")
    policy = ServicePolicy(name="openai", windows=[always])
    dagster = SimulatedDagster(Fuse(), lambda: now, None)
    gate = Gate(dagster, work.store, {"openai": policy}, "here", [])
    done = []

    def send(record: Record) -> None:
        planner = MissedTickPlanner(gate, None)  # type: ignore[arg-type] -- no schedules
        pause_tick(gate, planner, Audit(), new_code=True)
        work.fleet.refresh()
        done.append(record.key)

    with pytest.raises(Stopped) as stopped:
        go_through(work.records(list("abc")), send)
    assert done == ["a"]
    assert [hold.reason for hold in stopped.value.reason.holds] == ["their database"]
    work.close()


def test_every_surface_says_it_before_it_begins(store: Store, store_url: str, clock: Clock) -> None:
    gates = Gates(store, clock, SUNDAY)
    gates.tick()
    with store.begin() as conn:
        breakers.ensure(conn, clock(), ["mail"])
    with store.read() as conn:
        [row] = services(conn, gates.situation())
    assert (row.state.status, row.state.next_what, row.state.next_at) == (
        "closed",
        "pauses",
        BEGINS,
    )
    [window] = ServiceOut.of(gates.situation(), "mail").windows
    assert (window.starts_at, window.ends_at, window.cron) == (BEGINS, ENDS, "0 10 * * SUN")
    # The command has the time of this machine.
    daily = MaintenanceWindow(cron="0 0 * * *", duration_s=3600, reason="their database")
    clock.time = datetime.now(UTC)
    gates.declare(daily)
    gates.tick()
    env = {"TIDEGATE_STORE_URL": store_url, "COLUMNS": "200"}
    listed = CliRunner().invoke(main, ["windows"], env=env)
    assert listed.exit_code == 0, listed.output
    assert "0 0 * * *" in listed.output
    assert "their database" in listed.output
    status = CliRunner().invoke(main, ["status"], env=env)
    assert "mail pauses in " in status.output


def test_no_run_starts_in_the_minute_before_a_window_and_those_at_work_go_on(
    store: Store, clock: Clock
) -> None:
    gates = Gates(store, clock, SUNDAY)
    with store.begin() as conn:
        breakers.ensure(conn, clock(), ["mail"])
    clock.time = BEGINS - timedelta(seconds=61)
    gates.tick()
    assert gates.limit == "4"
    clock.advance(2)
    said = gates.tick()
    assert gates.limit == "0"
    assert "no run starts before the maintenance at 2026-03-01 09:00:00 UTC: their database" in said
    assert gates.situation().holds == [], "nothing stops a run at work"
    answer = why(gates.situation(), Target(TargetKind.CAMPAIGN, "letters"))
    assert [each.text for each in answer.obstacles if each.kind is ObstacleKind.WINDOW] == [
        "no run starts before the maintenance window: mail pauses in 59 s, "
        "until 2026-03-01 11:00:00 UTC (their database)"
    ]
    clock.time = BEGINS
    gates.tick()
    assert [hold.reason for hold in gates.situation().holds] == ["their database"]


def test_before_a_short_window_runs_wait_no_longer_than_in_it(store: Store, clock: Clock) -> None:
    gates = Gates(store, clock, SUNDAY.model_copy(update={"duration_s": 5}))
    clock.time = BEGINS - timedelta(seconds=6)
    gates.tick()
    assert gates.limit == "4"
    clock.advance(1)
    gates.tick()
    assert gates.limit == "0"


def test_a_window_by_hand_outlasts_new_code_until_it_is_removed(
    store: Store, store_url: str, clock: Clock
) -> None:
    gates = Gates(store, clock, SUNDAY)

    def tick() -> None:
        clock.time = datetime.now(UTC)  # that of the commands
        gates.tick()

    with store.begin() as conn:
        breakers.ensure(conn, clock(), ["mail"])

    def tidegate(*words: str, exit_code: int = 0) -> str:
        env = {"TIDEGATE_STORE_URL": store_url, "COLUMNS": "200"}
        done = CliRunner().invoke(main, ["windows", *words], env=env)
        assert done.exit_code == exit_code, done.output
        return done.output

    always = ("add", "mail", "--cron", "* * * * *", "--for", "1h", "--reason", "their database")
    tick()
    assert "would pause" in tidegate(*always, "--dry-run")
    tick()
    assert gates.limit == "4"
    assert "mail pauses at" in tidegate(*always, "--actor", "ann")
    tick()
    assert gates.limit == "0"
    gates.declare()
    tick()
    assert "* * * * *" in tidegate()
    assert "would be removed" in tidegate("remove", "mail", "--dry-run")
    assert "no such window" in tidegate("remove", "mail", "--cron", "1 1 * * *", exit_code=1)
    assert "is removed: their database" in tidegate("remove", "mail", "--actor", "bob")
    assert gates.situation().windows == []
    assert gates.limit == "0", "its hold ends in its time, or when somebody releases it"
    with store.read() as conn:
        events = [event for event in history.read(conn, limit=20) if event.kind == "window"]
    assert {(event.name, event.to_status, event.actor) for event in events} == {
        ("mail", "added", "ann"),
        ("mail", "removed", "bob"),
    }
    assert "declared in the code" in tidegate("remove", "mail", exit_code=1)
    assert "not a cron expression" in tidegate(*always[:3], "x", *always[4:], exit_code=1)
    assert "not a time zone" in tidegate(*always, "--timezone", "Mars", exit_code=1)
    assert "did you mean" in tidegate("remove", "mial", exit_code=1)


def test_nobody_is_called_for_a_window(store: Store, clock: Clock) -> None:
    gates = Gates(store, clock, SUNDAY)
    clock.time = ENDS.replace(hour=10, minute=59)
    gates.tick()
    with store.read() as conn:
        page = now_page.now_page(conn, gates.situation())
    assert [pause.hold.actor for pause in page.pauses] == ["window"]
    assert page.needs == [], "nobody has to extend it"
