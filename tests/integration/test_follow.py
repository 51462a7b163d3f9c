"""What the gate makes of Dagster's runs: their identity, their history, and one that is broken."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.gate import follow as gate_follow
from dagster_tidegate.gate.follow import Audit, Followed, follow
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.missed_ticks import MissedTickPlanner
from dagster_tidegate.gate.ticks import pause_tick, resume_tick
from dagster_tidegate.holds import TargetKind, named
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.runs import CampaignRun
from tests.support.databases import both_databases
from tests.unit.simulated_dagster import Fuse, SimulatedDagster
from tests.unit.test_gate_properties import Clock

ASSETS = CampaignSpec("here:assets", "here", "none", ops={"leads": "mail"})
SUCCESS, STARTED = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.STARTED
LONG = [
    "s3://bucket/" + "folder/" * 68 + "report, final.csv",
    "日" * 500,
    "x" * 500,
]


class World:
    """A gate of one implicit asset job, on a real store and a simulated Dagster."""

    def __init__(self, url: str) -> None:
        self.clock = Clock()
        self.store = Store(url, clock=self.clock)
        self.dagster = SimulatedDagster(Fuse(), self.clock, None)
        policies = {"mail": ServicePolicy(name="mail")}
        self.gate = Gate(self.dagster, self.store, policies, "here", [ASSETS])
        self.planner = MissedTickPlanner(self.gate, None)  # type: ignore[arg-type] -- nothing was missed

    def create(
        self, partition: str, *assets: str, status: dg.DagsterRunStatus = STARTED
    ) -> dg.DagsterRun:
        tags = {"dagster/partition": partition}
        run = self.dagster.create("__ASSET_JOB", ASSETS.pools, tags, status)
        keys = frozenset(dg.AssetKey.from_user_string(asset) for asset in assets)
        run = dg.DagsterRun(
            **{name: getattr(run, name) for name in ("job_name", "run_id", "status", "tags")},
            remote_job_origin=run.remote_job_origin,
            run_op_concurrency=run.run_op_concurrency,
            asset_selection=keys,
        )
        self.dagster.put(run)
        return run

    def follow(self) -> Followed:
        now = self.clock()
        return follow(self.gate, now - timedelta(hours=1), now, time.monotonic() + 60)

    def find(self, name: str) -> CampaignRun:
        with self.store.read() as conn:
            found = runs.find(conn, "here:assets", name)
        assert found is not None
        return found

    def names(self) -> set[str]:
        with self.store.read() as conn:
            return {run.name for run in runs.newest(conn, limit=99)}


@pytest.fixture
def world(store_url: str) -> Iterator[World]:
    world = World(store_url)
    yield world
    world.store.dispose()


def test_a_run_from_before_the_gate_is_recorded_as_what_it_is(world: World) -> None:
    run = world.create("2026-03-01", "leads", status=SUCCESS)
    world.clock.time += timedelta(minutes=10)
    pause_tick(world.gate, world.planner, Audit(), new_code=True)
    found = world.find("2026-03-01@leads")
    assert (found.status, found.reason) == (
        RunStatus.COMPLETED,
        f"Dagster run {run.run_id} is SUCCESS",
    )
    assert found.changed_at <= world.dagster.changed[run.run_id]


def test_a_campaign_run_whose_end_was_missed_ends_as_its_run_did(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_follow, "AUDIT_S", 0)
    run = world.create("2026-03-01", "leads")
    deleted = world.create("2026-03-02", "leads")
    world.follow()
    world.dagster.set_status(run.run_id, SUCCESS)
    world.dagster.delete(deleted.run_id)
    audit = Audit()
    assert (audit(world.gate), audit(world.gate)) == (0, 2)
    assert world.find("2026-03-01@leads").status is RunStatus.COMPLETED
    cancelled = world.find("2026-03-02@leads")
    assert (cancelled.status, cancelled.reason) == (
        RunStatus.CANCELLED,
        "its Dagster run was deleted",
    )


@both_databases
@pytest.mark.parametrize("partition", LONG, ids=["slashes", "unicode", "plain"])
def test_a_partition_of_500_characters_is_followed_held_and_resumed(
    world: World, partition: str
) -> None:
    run = world.create(partition, "leads")
    assert world.follow().errors == {}
    [name] = world.names()
    found = world.find(name.split("/", 1)[1])
    assert found.dagster_partition == partition
    assert named(TargetKind.CAMPAIGN_RUN, name).name == name
    with world.store.begin() as conn:
        runs.begin_attempt(conn, world.clock(), found, run.run_id, owner_is_over=True)
        found = runs.locked(conn, found.id)
        runs.move(conn, world.clock(), found, RunStatus.PAUSED, actor="test")
    world.dagster.end(run.run_id)
    _, [request] = resume_tick(world.gate, world.planner)
    assert request.job_name == "__ASSET_JOB"
    assert request.asset_selection == [dg.AssetKey("leads")]
    assert request.tags["dagster/partition"] == partition


@both_databases
def test_one_broken_run_stops_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = world.create("broken", "leads")
    world.create("fine", "leads")
    ensure = runs.ensure

    def refuse(conn: Any, now: Any, campaign: str, partition: str, *args: Any, **kwargs: Any):
        if partition == "broken":
            raise ValueError("this run is broken")
        return ensure(conn, now, campaign, partition, *args, **kwargs)

    monkeypatch.setattr(runs, "ensure", refuse)
    summary = pause_tick(world.gate, world.planner, Audit(), new_code=True)
    assert f"1 Dagster run could not be processed, such as {broken.run_id}: ValueError" in summary
    assert world.names() == {"here:assets/fine@leads"}


@both_databases
def test_runs_of_other_assets_of_a_partition_do_not_know_each_other(world: World) -> None:
    selections = [("leads",), ("mails",), ("leads", "mails")]
    for assets in selections:
        world.create("2026-03-01", *assets)
    world.follow()
    assert world.names() == {
        "here:assets/2026-03-01@leads",
        "here:assets/2026-03-01@mails",
        "here:assets/2026-03-01@leads+mails",
    }
    with world.store.begin() as conn:
        for number, assets in enumerate(selections):
            run = runs.ensure(conn, world.clock(), "here:assets", "2026-03-01", assets)
            attempt = runs.begin_attempt(
                conn, world.clock(), run, f"run-{number}", owner_is_over=False
            )
            assert attempt.number == 1, "no other owns it"
