"""Which runs the gate requests, and what it does when Dagster refuses a change."""

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta

import dagster as dg
import pytest

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api.lineage import canary_tags, tags_for_next, tried_by
from dagster_tidegate.gate import apply as gate_apply
from dagster_tidegate.gate import reconcile as gate_reconcile
from dagster_tidegate.gate.apply import apply
from dagster_tidegate.gate.follow import Audit
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.missed_ticks import MissedTickPlanner
from dagster_tidegate.gate.observe import observe
from dagster_tidegate.gate.plan import MAX_ENDING, Observation, plan
from dagster_tidegate.gate.reconcile import Direction, reconcile
from dagster_tidegate.gate.resume import MAX_REQUESTS, request_runs
from dagster_tidegate.gate.ticks import pause_tick, resume_tick
from dagster_tidegate.holds import EVERYTHING, HoldSource, Target, TargetKind
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import heartbeats, holds, runs, takeovers
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.store.tables import metadata, services
from tests.unit.simulated_dagster import FragileStore, Fuse, SimulatedDagster
from tests.unit.test_gate_properties import Clock

SHAPES = [
    CampaignSpec("slow", "here", "none", ops={"send": "mail"}),
    CampaignSpec("urgent", "here", "none", priority=5, ops={"send": "mail"}),
    CampaignSpec("other", "here", "none", ops={"ask": "maps"}),
]
GONE = CampaignSpec("gone", "here", "none", ops={"send": "mail"})
MAIL = Target(TargetKind.SERVICE, "mail")
MAPS = Target(TargetKind.SERVICE, "maps")


class World:
    """A gate, its store and a simulated Dagster."""

    def __init__(self) -> None:
        self.fuse, self.clock = Fuse(), Clock()
        self.store = FragileStore("sqlite://", self.fuse, clock=self.clock)
        metadata.create_all(self.store.engine)
        self.dagster = SimulatedDagster(self.fuse, self.clock, None)
        policies = {
            "mail": ServicePolicy(name="mail", ramp_interval_s=30),
            "maps": ServicePolicy(name="maps", ramp_interval_s=0),
        }
        self.gate = Gate(self.dagster, self.store, policies, "here", SHAPES)
        self.planner = MissedTickPlanner(self.gate, None)  # type: ignore[arg-type] -- nothing was missed

    def paused(self, campaign: str, partition: str, priority: int = 0) -> None:
        request = dg.RunRequest(job_name=campaign, tags={"dagster/partition": partition})
        self.pause(self.begin(request, priority))

    def begin(self, request: dg.RunRequest, priority: int = 0) -> dg.DagsterRun:
        assert request.job_name is not None
        spec = next((spec for spec in SHAPES if spec.name == request.job_name), GONE)
        run = self.dagster.create(request.job_name, spec.pools, request.tags)
        self._attempt(run, priority)
        return run

    def pause(self, run: dg.DagsterRun) -> str:
        """Pause a run, and return the name of its campaign run."""
        campaign_run = self._attempt(run)
        with self.store.begin() as conn:
            runs.move(conn, self.clock(), campaign_run, RunStatus.PAUSED, actor=run.run_id)
        self.dagster.end(run.run_id)
        return campaign_run.name

    def _attempt(self, run: dg.DagsterRun, priority: int = 0) -> CampaignRun:
        partition = run.tags["dagster/partition"]
        with self.store.begin() as conn:
            campaign_run = runs.ensure(
                conn, self.clock(), run.job_name, partition, priority=priority
            )
            runs.begin_attempt(conn, self.clock(), campaign_run, run.run_id, owner_is_over=True)
            return runs.ensure(conn, self.clock(), run.job_name, partition)

    def hold(self, target: Target) -> None:
        with self.store.begin() as conn:
            holds.place(
                conn,
                self.clock(),
                target,
                source=HoldSource.OPERATOR,
                reason="test",
                actor="ann",
            )

    def release(self, target: Target) -> None:
        with self.store.begin() as conn:
            holds.release(conn, self.clock(), target, source=HoldSource.OPERATOR, actor="ann")

    def half_open(self, service: str) -> None:
        with self.store.begin() as conn:
            conn.execute(
                services.insert().values(
                    name=service, state=BreakerState.HALF_OPEN, changed_at=self.clock()
                )
            )
            holds.place(
                conn,
                self.clock(),
                Target(TargetKind.SERVICE, service),
                source=HoldSource.BREAKER,
                reason="503",
                actor="breaker",
            )

    def failed_trial(self) -> str:
        """Let a canary be chosen and fail, and return its campaign run."""
        requests = self.requests()
        if requests:
            [request] = requests
            canary = self.begin(request)
        else:
            [canary] = self.dagster.canaries()
        return self.pause(canary)

    def reconcile(self, direction: Direction, timeout_s: float = 60) -> list[str]:
        _, report = reconcile(
            self.gate,
            direction,
            deadline=time.monotonic() + timeout_s,
            missed_ticks=lambda _takeover, _until: None,
        )
        return report.changes

    def requests(self) -> Sequence[dg.RunRequest]:
        return request_runs(self.gate, observe(self.gate, resuming=True), self.planner)[0]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.store.dispose()


def partitions(requests: Sequence[dg.RunRequest]) -> list[str]:
    return [request.tags["dagster/partition"] for request in requests]


def test_paused_runs_resume_by_priority_and_then_in_the_order_of_their_pause(world: World):
    for partition in ("s1", "s2"):
        world.paused("slow", partition)
    for partition in ("u1", "u2"):
        world.paused("urgent", partition, priority=5)
    assert partitions(world.requests()) == ["u1", "u2", "s1", "s2"]


def test_the_ramp_bounds_how_many_resume_and_others_do_not_wait_for_it(world: World):
    for partition in ("s1", "s2", "s3"):
        world.paused("slow", partition)
    world.paused("other", "o1")
    world.hold(MAIL)
    world.reconcile(Direction.TIGHTEN)
    assert partitions(world.requests()) == ["o1"]
    world.release(MAIL)
    world.reconcile(Direction.LOOSEN)
    assert world.dagster.pools() == {"mail": "1"}
    assert partitions(world.requests()) == ["s1", "o1"]
    world.clock.time += timedelta(seconds=31)
    world.reconcile(Direction.LOOSEN)
    assert world.dagster.pools() == {"mail": "2"}
    assert partitions(world.requests()) == ["s1", "s2", "o1"]


def test_after_a_recovery_a_hundred_runs_resume_twice_as_many_at_each_step(world: World):
    for n in range(100):
        world.paused("slow", f"s{n}")
    world.hold(MAIL)
    world.reconcile(Direction.TIGHTEN)
    world.release(MAIL)
    started, after_steps = 0, []
    while world.dagster.pools() or started < 100:
        for _ in range(4):  # a step takes 30 s, and a tick comes every 8 s
            world.reconcile(Direction.LOOSEN)
            for request in world.requests():
                world.begin(request)
                started += 1
            world.clock.time += timedelta(seconds=8)
        after_steps.append(started)
    assert after_steps == [1, 2, 4, 8, 16, 32, 64, 100]


def test_a_tick_requests_a_limited_number_of_runs(world: World):
    for n in range(MAX_REQUESTS + 5):
        world.paused("other", f"o{n}")
    assert len(world.requests()) == MAX_REQUESTS


def test_a_paused_run_with_its_own_hold_is_not_requested(world: World):
    world.paused("other", "o1")
    world.paused("other", "o2")
    world.hold(Target(TargetKind.CAMPAIGN_RUN, "other/o1"))
    assert partitions(world.requests()) == ["o2"]


def test_a_failed_change_does_not_block_the_others_and_is_repeated(world: World):
    world.hold(EVERYTHING)
    world.dagster.broken = {"mail"}
    changes = world.reconcile(Direction.TIGHTEN)
    assert changes[-1] == "failed while setting pool mail to 0: Dagster can't write mail"
    assert world.dagster.pools() == {"maps": "0"}
    world.dagster.broken = set()
    world.reconcile(Direction.TIGHTEN)
    assert world.dagster.pools() == {"maps": "0", "mail": "0"}
    with world.store.read() as conn:
        assert not any(takeover.pending for takeover in takeovers.live(conn))


def test_a_failed_change_blocks_no_heartbeat_and_no_paused_run(world: World):
    world.paused("other", "o1")
    world.hold(MAIL)
    world.dagster.broken = {"mail"}
    with pytest.raises(ExceptionGroup, match="1 changes failed"):
        pause_tick(world.gate, world.planner, Audit(), new_code=True)
    world.dagster.broken = set()
    pause_tick(world.gate, world.planner, Audit(), new_code=False)
    world.release(MAIL)
    world.dagster.broken = {"mail"}
    summary, requests = resume_tick(world.gate, world.planner)
    assert [request.tags["dagster/partition"] for request in requests] == ["o1"]
    with world.store.read() as conn:
        beats = {beat.part: beat.summary for beat in heartbeats.read(conn)}
    assert beats["resume"] == summary
    assert "failed while setting pool mail" in summary
    world.dagster.create("other", SHAPES[2].pools, requests[0].tags)
    with pytest.raises(ExceptionGroup, match="1 changes failed"):
        resume_tick(world.gate, world.planner)


@pytest.mark.parametrize("former", [{}, {"dagster/priority": "7"}])
def test_a_canary_has_its_former_priority_again_in_the_next_attempt(former: dict[str, str]):
    once = {**former, **canary_tags(former, {"mail"})}
    twice = {**once, **canary_tags(once, {"mail", "maps"})}
    assert twice["tidegate/canary"] == "mail,maps"
    assert "" not in twice.values()
    tags = tags_for_next(dg.DagsterRun(job_name="other", tags=twice))
    assert tags.get("dagster/priority") == former.get("dagster/priority")


def test_a_queued_run_is_the_canary_if_each_paused_run_has_one_in_the_queue(world: World):
    world.paused("slow", "s1")
    again = world.dagster.create("slow", SHAPES[0].pools, {"dagster/partition": "s1"})
    world.half_open("mail")
    assert world.requests() == []
    assert tried_by(world.dagster.all_runs[again.run_id]) == {"mail"}


def test_each_campaign_and_each_of_its_runs_gets_a_turn_as_the_canary(world: World):
    world.paused("urgent", "u1", priority=5)
    world.paused("urgent", "u2", priority=5)
    world.paused("slow", "s1")
    world.half_open("mail")
    turns = [world.failed_trial() for _ in range(6)]
    assert turns == ["urgent/u1", "slow/s1", "urgent/u2", "slow/s1", "urgent/u1", "slow/s1"]


def test_a_queued_run_of_another_campaign_tries_before_a_paused_one_that_failed(world: World):
    world.paused("urgent", "u1", priority=5)
    world.dagster.create("slow", SHAPES[0].pools, {"dagster/partition": "s1"})
    world.half_open("mail")
    assert [world.failed_trial(), world.failed_trial()] == ["urgent/u1", "slow/s1"]


def test_a_run_of_a_campaign_that_is_gone_keeps_no_other_from_trying_and_is_named(world: World):
    world.paused("gone", "g1", priority=9)
    world.paused("slow", "s1")
    world.half_open("mail")
    pause_tick(world.gate, world.planner, Audit(), new_code=True)
    summary, [request] = resume_tick(world.gate, world.planner)
    assert request.tags["dagster/partition"] == "s1"
    assert (
        "gone has 1 paused run that nothing resumes, because no gate knows the campaign" in summary
    )
    assert summary.endswith("tidegate runs cancel gone")


def test_a_service_that_no_run_can_try_is_named_with_who_could(world: World):
    world.half_open("mail")
    summary, _ = resume_tick(world.gate, world.planner)
    assert "no run can try mail: start one of slow, urgent" in summary


def test_paused_runs_whose_dagster_runs_have_not_ended_are_named_and_no_run_is_asked_for(
    world: World,
):
    for partition in ("s1", "s2"):
        world.paused("slow", partition)
    for run in list(world.dagster.all_runs):
        world.dagster.set_status(run, dg.DagsterRunStatus.CANCELING)
    world.half_open("mail")
    summary, requests = resume_tick(world.gate, world.planner)
    assert not requests
    assert "2 paused runs wait until Dagster has ended their runs; then one tries mail" in summary
    assert "no run can try mail" not in summary
    world.dagster.end(next(iter(world.dagster.all_runs)))
    summary, [request] = resume_tick(world.gate, world.planner)
    assert request.tags["dagster/partition"] == "s1"
    assert "wait until" not in summary


def test_a_paused_run_that_dagster_does_not_end_keeps_a_service_from_being_tried_not_for_ever(
    world: World,
):
    world.paused("slow", "s1")
    world.dagster.set_status(next(iter(world.dagster.all_runs)), dg.DagsterRunStatus.CANCELING)
    world.half_open("mail")
    summary, _ = resume_tick(world.gate, world.planner)
    waits = "slow/s1 waits until Dagster has ended its run, and then tries mail"
    assert waits in summary
    assert "no run can try mail" not in summary
    world.clock.time += MAX_ENDING
    summary, _ = resume_tick(world.gate, world.planner)
    assert waits in summary
    assert "no run can try mail: start one of slow, urgent" in summary


def test_a_canary_of_an_earlier_outage_says_nothing_about_this_one(world: World):
    world.paused("urgent", "u1", priority=5)
    world.paused("slow", "s1")
    world.half_open("mail")
    assert world.failed_trial() == "urgent/u1"
    with world.store.begin() as conn:
        conn.execute(services.delete())
        holds.release(conn, world.clock(), MAIL, source=HoldSource.BREAKER, actor="breaker")
    world.half_open("mail")
    assert world.failed_trial() == "urgent/u1"


def test_after_the_deadline_changes_are_left_to_the_next_tick(world: World):
    world.hold(EVERYTHING)
    assert world.reconcile(Direction.TIGHTEN, timeout_s=0.0) == []
    assert world.dagster.pools() == {}
    world.reconcile(Direction.TIGHTEN)
    assert world.dagster.pools() == {"mail": "0", "maps": "0"}


def test_a_pool_that_ramps_meanwhile_is_closed_in_the_same_tick(world: World):
    world.hold(MAIL)
    world.reconcile(Direction.TIGHTEN)
    world.release(MAIL)
    world.reconcile(Direction.LOOSEN)
    world.clock.time += timedelta(seconds=31)
    ramping = observe(world.gate)
    world.hold(MAIL)
    world.dagster.between = lambda: _apply(world.gate, ramping)
    world.reconcile(Direction.TIGHTEN)
    assert world.dagster.pools() == {"mail": "0"}


def test_where_no_other_gate_interferes_the_queue_is_stopped_after_one_look(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    looks = []
    monkeypatch.setattr(
        gate_reconcile, "observe", lambda *a, **k: looks.append(1) or observe(*a, **k)
    )
    world.hold(EVERYTHING)
    world.reconcile(Direction.TIGHTEN)
    assert world.dagster.pools() == {"mail": "0", "maps": "0"}
    assert len(looks) == 1


def _apply(gate: Gate, observation: Observation) -> None:
    apply(
        gate,
        observation,
        plan(observation),
        deadline=time.monotonic() + 60,
        missed_ticks=lambda _takeover, _until: None,
    )


def test_with_tidegate_switched_off_nothing_stays_held(world: World):
    world.hold(EVERYTHING)
    world.reconcile(Direction.TIGHTEN)
    off = Gate(world.gate.dagster, world.store, world.gate.policies, "here", SHAPES, enabled=False)
    world.gate = off
    world.reconcile(Direction.LOOSEN)
    assert world.dagster.pools() == {}  # at once: no ramp


def test_no_gate_acts_between_anothers_read_of_dagster_and_its_write(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gate_apply, "PATIENCE_S", 0)
    world.hold(MAPS)
    observation = observe(world.gate)
    world.release(MAPS)
    changes = []
    world.dagster.before_write = lambda: changes.extend(world.reconcile(Direction.LOOSEN))
    _apply(world.gate, observation)
    assert changes == ["another gate has been changing Dagster for 0 s: the next tick continues"]
    assert world.dagster.pools() == {"maps": "0"}
    world.reconcile(Direction.LOOSEN)
    assert world.dagster.pools() == {}, "closed for ever by a write that came late"
