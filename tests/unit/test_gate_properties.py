"""In any order of events, everything is restored in the end, and every run has finished."""

import time
from datetime import UTC, datetime, timedelta
from unittest import mock

import dagster as dg
import hypothesis.strategies as st
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api.lineage import is_resume, partition_of, tried_by
from dagster_tidegate.dagster_api.triggers import TriggerState
from dagster_tidegate.gate import apply as gate_apply
from dagster_tidegate.gate import follow as gate_follow
from dagster_tidegate.gate.apply import apply
from dagster_tidegate.gate.failed_launches import MAX_IN_A_ROW
from dagster_tidegate.gate.follow import Audit, follow
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.missed_ticks import MissedTickPlanner
from dagster_tidegate.gate.observe import observe
from dagster_tidegate.gate.plan import Action, Observation, plan, same_pool
from dagster_tidegate.gate.reconcile import Direction, reconcile
from dagster_tidegate.gate.resume import request_runs
from dagster_tidegate.holds import EVERYTHING, Hold, HoldSource, Target, TargetKind, covering
from dagster_tidegate.pools import needs
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import holds, runs, takeovers
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.campaigns import CampaignSpec, Trigger
from dagster_tidegate.store.takeovers import (
    DECLARED_IN_CODE,
    DEFAULT,
    RUNNING,
    STOPPED,
    UNSET,
    Takeover,
    TakeoverKind,
)
from dagster_tidegate.store.upsert import insert
from tests.support.examples import share_of_examples
from tests.unit.simulated_dagster import FragileStore, Fuse, Killed, SimulatedDagster

SERVICES = {
    "s1": ServicePolicy(name="s1", ramp_interval_s=10),
    "s2": ServicePolicy(name="s2", ramp_interval_s=0),
}
SHAPES = [
    CampaignSpec(
        "A",
        "here",
        "none",
        ops={"one": "s1", "two": "s1+s2"},
        triggers=(
            Trigger(TakeoverKind.SCHEDULE, "a1", "A-1", False),
            Trigger(TakeoverKind.SCHEDULE, "a2", "A-2", True),
        ),
    ),
    CampaignSpec(
        "B",
        "here",
        "none",
        ops={"one": "s2@B"},
        triggers=(Trigger(TakeoverKind.SENSOR, "b1", "B-1", True),),
    ),
    CampaignSpec("C", "here", "none", ops={"one": "@C", "two": "foreign"}),
]
SHAPE = {spec.name: spec for spec in SHAPES}
POOLS = ["s1", "s1+s2", "s2", "s2@B", "@C", "foreign"]
TRIGGERS = {trigger.selector_id: trigger for spec in SHAPES for trigger in spec.triggers}
TARGETS = [
    EVERYTHING,
    *(Target(TargetKind.SERVICE, name) for name in SERVICES),
    *(Target(TargetKind.CAMPAIGN, name) for name in SHAPE),
    Target(TargetKind.CAMPAIGN_RUN, "A/p0"),
]
PARTITIONS = ["p0", "p1", "p2"]
pool_values = st.sampled_from([UNSET, "0", "1", "2", "3", "5", "20"])
ticks = st.sampled_from([None, "_pause", "_resume"])
statuses = st.sampled_from([RUNNING, STOPPED, DECLARED_IN_CODE])


class Clock:
    def __init__(self) -> None:
        self.time = datetime(2026, 3, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.time += timedelta(milliseconds=1)
        return self.time


class TheGate(RuleBasedStateMachine):
    """Trips, recoveries, holds, people, kills and two gates, in any order."""

    @initialize(
        limit=st.sampled_from([None, 4]),
        values=st.fixed_dictionaries(dict.fromkeys(POOLS, pool_values)),
        states=st.fixed_dictionaries(dict.fromkeys(TRIGGERS, statuses)),
    )
    def begin(self, limit: int | None, values: dict[str, str], states: dict[str, str]) -> None:
        self.fuse = Fuse()
        self.clock = Clock()
        self.store = FragileStore("sqlite://", self.fuse, clock=self.clock)
        t.metadata.create_all(self.store.engine)
        self.dagster = SimulatedDagster(self.fuse, self.clock, limit)
        for pool, value in values.items():
            self.dagster.edit_pool(pool, DEFAULT if value == UNSET and limit else value)
        for selector, status in states.items():
            self.dagster.states[selector] = TriggerState(status, self.clock.time)
        self.pools = {pool: self.dagster.pools().get(pool, UNSET) for pool in POOLS}
        self.triggers = dict(states)
        self.gate = Gate(self.dagster, self.store, SERVICES, "here", SHAPES)
        self.audit = Audit()
        self.deleted: set[str] = set()
        self.cursor = self.clock.time
        self.stale: tuple[Observation, list[Action]] | None = None
        self.edited: set[str] = set()
        self.requested: list[dg.RunRequest] = []
        self.keys: set[str] = set()
        self.refused = 0
        self.states = dict.fromkeys(SERVICES, BreakerState.CLOSED)

    # --- services and holds ---------------------------------------------------------------------

    @rule(service=st.sampled_from(list(SERVICES)))
    def trip(self, service: str) -> None:
        self._state(service, BreakerState.OPEN)
        with self.store.begin() as conn:
            holds.place(
                conn,
                self.clock(),
                Target(TargetKind.SERVICE, service),
                source=HoldSource.BREAKER,
                reason="503",
                actor="breaker",
            )

    @rule(service=st.sampled_from(list(SERVICES)))
    def half_open(self, service: str) -> None:
        if self.states[service] is BreakerState.OPEN:
            self._state(service, BreakerState.HALF_OPEN)

    @rule(service=st.sampled_from(list(SERVICES)))
    def recover(self, service: str) -> None:
        self._state(service, BreakerState.CLOSED)
        with self.store.begin() as conn:
            here = [
                hold
                for hold in holds.live(conn, self.clock())
                if hold.target.name == service and hold.source is HoldSource.BREAKER
            ]
            if here:
                holds.release(
                    conn, self.clock(), here[0].target, source=HoldSource.BREAKER, actor="breaker"
                )

    @rule(service=st.sampled_from(list(SERVICES)))
    def a_call_fails(self, service: str) -> None:
        now = self.clock()
        with self.store.begin() as conn:
            conn.execute(
                insert(conn, t.outcomes)
                .values(
                    service=service,
                    bucket=now,
                    worker="w",
                    generation=0,
                    failed=1,
                    last_failed_at=now,
                )
                .on_conflict_do_nothing()
            )

    @rule(on=st.sampled_from(TARGETS), expires=st.sampled_from([None, 5.0, 60.0]))
    def an_operator_holds(self, on: Target, expires: float | None) -> None:
        now = self.clock()
        with self.store.begin() as conn:
            holds.place(
                conn,
                now,
                on,
                source=HoldSource.OPERATOR,
                reason="because",
                actor="ann",
                expires_at=None if expires is None else now + timedelta(seconds=expires),
            )

    @rule(on=st.sampled_from(TARGETS))
    def an_operator_releases(self, on: Target) -> None:
        with self.store.begin() as conn:
            if any(
                hold.target == on and hold.source is HoldSource.OPERATOR
                for hold in holds.live(conn, self.clock())
            ):
                holds.release(conn, self.clock(), on, source=HoldSource.OPERATOR, actor="bob")

    @rule(seconds=st.sampled_from([0.5, 6.0, 11.0, 90.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.time += timedelta(seconds=seconds)

    # --- people ---------------------------------------------------------------------------------

    @rule(pool=st.sampled_from(POOLS), value=pool_values)
    def a_person_edits_a_pool(self, pool: str, value: str) -> None:
        if value == UNSET and self.dagster.limit:
            value = DEFAULT
        if self._looks_like_ours(TakeoverKind.POOL, pool, value):
            return
        if same_pool(self.dagster.pools().get(pool, UNSET), value):
            return
        self.dagster.edit_pool(pool, value)
        self.pools[pool] = value
        self.edited.add(pool)

    @rule(selector=st.sampled_from(list(TRIGGERS)), status=statuses)
    def a_person_switches_a_trigger(self, selector: str, status: str) -> None:
        kind = TRIGGERS[selector].kind
        if self._looks_like_ours(kind, selector, status):
            return
        if self.dagster.trigger(selector) == status:
            return
        self.dagster.edit_trigger(selector, status)
        self.triggers[selector] = status
        self.edited.add(selector)

    @rule(selector=st.sampled_from(list(TRIGGERS)))
    def the_daemon_writes_a_row_back_late(self, selector: str) -> None:
        with self.store.read() as conn:
            live = takeovers.live(conn)
        if any(t.name == selector and t.set_to == STOPPED and t.left_at is None for t in live):
            self.dagster.write_back(selector)

    # --- runs -----------------------------------------------------------------------------------

    @rule(campaign=st.sampled_from(list(SHAPE)), partition=st.sampled_from(PARTITIONS))
    def a_person_launches(self, campaign: str, partition: str) -> None:
        """Only what has never run, or has ended: two runs at once are somebody's mistake."""
        with self.store.read() as conn:
            run = runs.find(conn, campaign, partition)
        if run is not None or any(
            other.job_name == campaign and partition_of(other) == partition
            for other in self.dagster.all_runs.values()
        ):
            return
        self.dagster.create(campaign, SHAPE[campaign].pools, {"dagster/partition": partition})

    @rule()
    def dagster_submits(self) -> None:
        for request in self.requested:
            assert request.run_key is not None
            assert request.job_name is not None
            if request.run_key not in self.keys:
                self._create(request, dg.DagsterRunStatus.QUEUED)
            for run in self.dagster.runs(tags={"dagster/run_key": request.run_key}):
                if run.status is dg.DagsterRunStatus.NOT_STARTED:
                    self.dagster.set_status(run.run_id, dg.DagsterRunStatus.QUEUED)
        self.requested = []

    @rule()
    def dagster_dies_while_it_submits(self) -> None:
        """The first run is there, and not in the queue."""
        for request in self.requested[:1]:
            if request.run_key not in self.keys:
                self._create(request, dg.DagsterRunStatus.NOT_STARTED)
        self.requested = []

    def _create(self, request: dg.RunRequest, status: dg.DagsterRunStatus) -> None:
        assert request.run_key is not None
        assert request.job_name is not None
        self.keys.add(request.run_key)
        tags = {**request.tags, "dagster/run_key": request.run_key}
        self.dagster.create(request.job_name, SHAPE[request.job_name].pools, tags, status)

    @rule(which=st.integers(0, 8))
    def a_person_deletes_a_queued_run(self, which: int) -> None:
        for run in self.dagster.queued(which + 1)[which:]:
            self.deleted.add(f"{run.job_name}/{partition_of(run)}")
            self.dagster.delete(run.run_id)

    @rule()
    def dagster_launches(self) -> None:
        for queued in self.dagster.launchable():
            self.dagster.set_status(queued.run_id, dg.DagsterRunStatus.STARTED)
            with self.store.begin() as conn:
                run = runs.ensure(conn, self.clock(), queued.job_name, partition_of(queued))
                newest = runs.latest_attempt(conn, run.id)
                over = newest is None or self.dagster.all_runs[newest.dagster_run].is_finished
                runs.begin_attempt(conn, self.clock(), run, queued.run_id, owner_is_over=over)

    @rule()
    def dagster_fails_to_launch(self) -> None:
        """The run does nothing. Only so often in a row that the gate does not give up."""
        for queued in self.dagster.launchable():
            if not is_resume(queued):
                continue
            failures = self.dagster.failed_launches(queued, MAX_IN_A_ROW)
            if len(failures) < MAX_IN_A_ROW // 2:
                self.dagster.not_started.add(queued.run_id)
                self.dagster.set_status(queued.run_id, dg.DagsterRunStatus.FAILURE)

    @rule(finish=st.booleans())
    def runs_work(self, finish: bool) -> None:
        for run in list(self.dagster.all_runs.values()):
            if run.status is dg.DagsterRunStatus.STARTED:
                self._work(run, finish=finish)

    def _work(self, run: dg.DagsterRun, *, finish: bool) -> None:
        held = self._covering(run)
        if held:
            with self.store.begin() as conn:
                found = runs.find(conn, run.job_name, partition_of(run))
                assert found is not None
                runs.move(
                    conn, self.clock(), found, RunStatus.PAUSED, reason="held", actor=run.run_id
                )
            self.dagster.set_status(run.run_id, dg.DagsterRunStatus.CANCELED)
        elif finish:
            for service in tried_by(run):
                if self.states[service] is BreakerState.HALF_OPEN:
                    self.recover(service)
            self.dagster.set_status(run.run_id, dg.DagsterRunStatus.SUCCESS)

    # --- the gate -------------------------------------------------------------------------------

    @rule(finish=st.booleans())
    def the_daemon_goes_round(self, finish: bool) -> None:
        self.dagster_launches()
        self.runs_work(finish)
        self.pause_tick(None)
        self.resume_tick(None)
        self.dagster_submits()

    @rule(kill=st.none() | st.integers(0, 25))
    def pause_tick(self, kill: int | None) -> None:
        self._killable(kill, self._pause)

    @rule(kill=st.none() | st.integers(0, 25))
    def resume_tick(self, kill: int | None) -> None:
        self._killable(kill, self._resume)

    @precondition(lambda self: self.stale is None)
    @rule(between=ticks)
    def another_gate_observes(self, between: str | None) -> None:
        """The first gate may act between the second's reads of the store and of Dagster."""
        self.dagster.between = getattr(self, between) if between else None
        observation = observe(self.gate)
        self.dagster.between = None
        self.stale = observation, plan(observation)

    @precondition(lambda self: self.stale is not None)
    @rule(between=ticks, before_write=ticks)
    def the_other_gate_applies(self, between: str | None, before_write: str | None) -> None:
        """The first gate may act between the second's plan in the store and its writes.

        Or between its read of Dagster and its write, where only the lock helps.
        """
        assert self.stale is not None
        (observation, actions), self.stale = self.stale, None
        self.store.between = getattr(self, between) if between else None
        self.dagster.before_write = getattr(self, before_write) if before_write else None
        report = apply(
            self.gate,
            observation,
            actions,
            deadline=time.monotonic() + 60,
            missed_ticks=_no_ticks,
        )
        assert not report.errors
        self.store.between = self.dagster.before_write = None

    def _pause(self) -> None:
        _, report = reconcile(
            self.gate,
            Direction.TIGHTEN,
            deadline=time.monotonic() + 60,
            missed_ticks=_no_ticks,
        )
        assert not report.errors
        now = self.clock()
        self.cursor = follow(self.gate, self.cursor, now, time.monotonic() + 60).cursor
        self.audit(self.gate)

    def _resume(self) -> None:
        observation, report = reconcile(
            self.gate,
            Direction.LOOSEN,
            deadline=time.monotonic() + 60,
            missed_ticks=_no_ticks,
        )
        assert not report.errors
        planner = MissedTickPlanner(self.gate, None)  # type: ignore[arg-type] -- no ticks
        self.requested = list(request_runs(self.gate, observation, planner)[0])

    def _killable(self, kill: int | None, part) -> None:
        self.fuse.left = kill
        try:
            part()
        except Killed:
            self.requested = []  # of a tick that broke off, Dagster submits nothing
        finally:
            self.fuse.left = None

    # --- what must hold -------------------------------------------------------------------------

    @invariant()
    def never_two_attempts_at_once(self) -> None:
        active: set[tuple[str, str]] = set()
        for run in self.dagster.all_runs.values():
            if not run.is_finished:
                key = run.job_name, partition_of(run)
                assert key not in active, f"two runs of {key}"
                active.add(key)

    def teardown(self) -> None:
        if not hasattr(self, "states"):
            return
        self._all_holds_go()
        for _ in range(2):  # a run that is paused again and again
            self.time_passes(90)
            for _ in range(4):
                self.the_daemon_goes_round(False)
            self.an_operator_holds(EVERYTHING, None)
            self.the_daemon_goes_round(False)
            self.an_operator_releases(EVERYTHING)
        if self.stale is not None:
            self.the_other_gate_applies(None, None)
        for _ in range(60):
            before = self._picture()
            self.pause_tick(None)
            self.resume_tick(None)
            self.dagster_submits()
            self.dagster_launches()
            self.runs_work(True)
            self.clock.time += timedelta(seconds=11)
            live, *_ = picture = self._picture()
            if not live and picture == before:
                break
        for _ in range(2):  # a run must be missing twice
            self.pause_tick(None)
        self._everything_is_restored()
        self.store.dispose()

    def _all_holds_go(self) -> None:
        for service in SERVICES:
            self.recover(service)
        with self.store.begin() as conn:
            for hold in holds.live(conn, self.clock()):
                holds.release(conn, self.clock(), hold.target, source=hold.source, actor="end")

    def _everything_is_restored(self) -> None:
        with self.store.read() as conn:
            assert not takeovers.live(conn)
            every = runs.with_status(conn, *RunStatus)
            left = conn.scalars(
                sa.select(t.takeovers.c.name).where(
                    t.takeovers.c.outcome == takeovers.TakeoverOutcome.LEFT_TO_OPERATOR
                )
            ).all()
            attempts = {run.name: runs.attempts(conn, run.id) for run in every}
        assert set(left) <= self.edited, "left to a person who changed nothing"
        for pool, value in self.pools.items():
            assert same_pool(self.dagster.pools().get(pool, UNSET), value), pool
        for selector, status in self.triggers.items():
            assert self.dagster.trigger(selector) == status, selector
        for run in every:
            blocked = any(self.dagster._limit(pool) == 0 for pool in SHAPE[run.campaign].pools)
            if run.name in self.deleted and run.status is RunStatus.CANCELLED:
                assert run.reason == "its Dagster run was deleted"
            elif not blocked:
                assert run.status is RunStatus.COMPLETED, run
                ended = [attempt.outcome for attempt in attempts[run.name]]
                assert ended == [RunStatus.PAUSED] * (len(ended) - 1) + [RunStatus.COMPLETED]

    def _picture(self) -> tuple:
        with self.store.read() as conn:
            live = takeovers.live(conn)
            every = runs.with_status(conn, *RunStatus)
        return live, every, dict(self.dagster.rows), dict(self.dagster.all_runs)

    # --- helpers --------------------------------------------------------------------------------

    def _state(self, service: str, state: BreakerState) -> None:
        self.states[service] = state
        with self.store.begin() as conn:
            conn.execute(
                insert(conn, t.services)
                .values(name=service, state=state, changed_at=self.clock())
                .on_conflict_do_update(index_elements=["name"], set_={"state": state})
            )

    def _covering(self, run: dg.DagsterRun) -> list[Hold]:
        with self.store.read() as conn:
            live = holds.live(conn, self.clock())
        services = {
            service
            for pool in SHAPE[run.job_name].pools
            for service in needs(pool, SERVICES).services
        }
        found = covering(
            live,
            self.clock(),
            services=services,
            campaign=run.job_name,
            partition=partition_of(run),
        )
        return [
            hold
            for hold in found
            if not (
                hold.source is HoldSource.BREAKER
                and hold.target.name in tried_by(run)
                and self.states[hold.target.name] is not BreakerState.OPEN
            )
        ]

    def _looks_like_ours(self, kind: TakeoverKind, name: str, value: str) -> bool:
        """Whether a person's value could not be told from one that the gate is about to write."""
        with self.store.read() as conn:
            live = takeovers.live(conn)
        return any(
            takeover.kind is kind
            and takeover.name == name
            and takeover.left_at is None
            and value in (takeover.set_to, takeover.set_from)
            for takeover in live
        )


def _no_ticks(takeover: Takeover, until: datetime) -> None:
    assert takeover.kind is TakeoverKind.SCHEDULE
    assert until > takeover.taken_at


class TestTheGate(TheGate.TestCase):
    settings = settings(
        max_examples=share_of_examples(2),
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )

    def setUp(self) -> None:
        for target, name in ((gate_apply, "PATIENCE_S"), (gate_follow, "AUDIT_S")):
            patcher = mock.patch.object(target, name, 0)
            patcher.start()
            self.addCleanup(patcher.stop)
