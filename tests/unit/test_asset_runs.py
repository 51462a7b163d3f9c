"""Runs of some assets of a code location: each waits for what its own assets need."""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg
import pytest
from dagster_shared.record import copy

from dagster_tidegate.gate.follow import Audit
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.missed_ticks import MissedTickPlanner
from dagster_tidegate.gate.ticks import pause_tick, resume_tick
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import campaigns, runs
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.runs import CampaignRun
from tests.unit.test_resume import GONE, MAIL, SHAPES, World

ASSETS = CampaignSpec(
    "here:assets",
    "here",
    "none",
    ops={"letters": "mail", "places": "maps"},
    assets={"letters": frozenset({"letters"}), "places": frozenset({"places"})},
)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    world.gate = Gate(world.dagster, world.store, world.gate.policies, "here", [ASSETS, *SHAPES])
    world.planner = MissedTickPlanner(world.gate, None)  # type: ignore[arg-type] -- nothing was missed
    yield world
    world.store.dispose()


def pause(world: World, *assets: str) -> CampaignRun:
    """Make a paused run of some assets."""
    pools = ASSETS.part(assets).pools
    dagster_run = world.dagster.create("__ASSET_JOB", pools, {"dagster/partition": "d1"})
    with world.store.begin() as conn:
        run = runs.ensure(conn, world.clock(), ASSETS.name, "d1", assets)
        runs.begin_attempt(conn, world.clock(), run, dagster_run.run_id, owner_is_over=True)
        run = runs.ensure(conn, world.clock(), ASSETS.name, "d1", assets)
        runs.move(conn, world.clock(), run, RunStatus.PAUSED, actor=dagster_run.run_id)
    world.dagster.end(dagster_run.run_id)
    return run


def resumed(world: World) -> str:
    """What a tick says that it resumes or tries."""
    summary, _ = resume_tick(world.gate, world.planner)
    return summary


def test_a_run_resumes_while_a_service_is_held_that_only_other_assets_need(world: World):
    waiting, free = pause(world, "letters"), pause(world, "places")
    world.hold(MAIL)
    summary = resumed(world)
    assert f"{free.name} resumes" in summary
    assert f"{waiting.name} resumes" not in summary
    world.release(MAIL)
    assert f"{waiting.name} resumes" in resumed(world)


def test_a_run_that_needs_a_held_service_too_is_no_canary_and_another_is(world: World):
    both, one = pause(world, "letters", "places"), pause(world, "places")
    world.hold(MAIL)
    world.half_open("maps")
    summary = resumed(world)
    assert f"{one.name} tries maps" in summary
    assert both.name not in summary


def test_a_run_that_does_not_call_a_service_is_not_its_canary(world: World):
    pause(world, "letters")
    world.half_open("maps")
    world.hold(MAIL)
    assert "tries maps" not in resumed(world)


def test_when_a_job_was_renamed_its_paused_run_does_not_say_any_more_that_it_resumes(world: World):
    with world.store.begin() as conn:
        campaigns.save(conn, world.clock(), "here", [GONE])
    world.paused("gone", "g1")
    with world.store.begin() as conn:
        run = runs.find(conn, "gone", "g1")
        assert run is not None
        runs.set_reason(conn, run, "Paused at 3/10: mail is open; resumes automatically")
    [dagster_run] = world.dagster.all_runs.values()
    world.dagster.add_tags(dagster_run.run_id, {"tidegate/reason": "x; resumes automatically"})
    summary = pause_tick(world.gate, world.planner, Audit(), new_code=True)
    assert "1 paused campaign run can't resume: the job no longer exists" in summary
    with world.store.read() as conn:
        run = runs.find(conn, "gone", "g1")
    assert run is not None
    assert (run.reason or "").startswith("Paused at 3/10: mail is open; resumes only once a gate")
    after = world.dagster.run(dagster_run.run_id)
    assert isinstance(after, dg.DagsterRun)
    assert after.tags["tidegate/reason"].startswith(
        "x; resumes only once a gate knows the campaign"
    )


def pause_unpartitioned(world: World, *assets: str) -> CampaignRun:
    dagster_run = queue(world, *assets)
    with world.store.begin() as conn:
        run = runs.ensure(conn, world.clock(), ASSETS.name, dagster_run.run_id, assets)
        runs.begin_attempt(conn, world.clock(), run, dagster_run.run_id, owner_is_over=True)
        run = runs.ensure(conn, world.clock(), ASSETS.name, dagster_run.run_id, assets)
        runs.move(conn, world.clock(), run, RunStatus.PAUSED, actor=dagster_run.run_id)
    world.dagster.end(dagster_run.run_id)
    return run


def queue(world: World, *assets: str, **tags: str) -> dg.DagsterRun:
    """Let automation request a run of some assets, which waits in the queue."""
    run = world.dagster.create("__ASSET_JOB", ASSETS.part(assets).pools, tags)
    selection = frozenset(dg.AssetKey(asset) for asset in assets)
    run = copy(run, asset_selection=selection)
    world.dagster.put(run)
    return run


def tick(world: World) -> str:
    pause_tick(world.gate, world.planner, Audit(), new_code=True)
    return resumed(world)


def status_of(world: World, run: CampaignRun) -> RunStatus:
    with world.store.read() as conn:
        current = runs.get(conn, run.id)
    assert current is not None
    return current.status


def test_a_run_that_a_condition_requests_meanwhile_is_the_next_attempt(world: World):
    """Such as of `missing() & ~in_progress()`, to which a paused run is no longer in progress."""
    world.hold(MAIL)
    paused = pause_unpartitioned(world, "letters")
    relaunched = queue(world, "letters")
    assert "resumes" not in tick(world)
    after = world.dagster.run(relaunched.run_id)
    assert after is not None
    assert after.tags["tidegate/partition"] == paused.dagster_partition
    assert "tidegate/afresh" not in after.tags
    assert status_of(world, paused) is RunStatus.PENDING
    world.release(MAIL)
    assert "resumes" not in tick(world), "it has a run in the queue"


def test_a_run_requested_since_an_input_has_changed_starts_afresh(world: World):
    world.hold(MAIL)
    paused = pause_unpartitioned(world, "letters")
    world.clock.time += timedelta(seconds=60)
    world.dagster.input_changed_at = world.clock()
    relaunched = queue(world, "letters")
    tick(world)
    after = world.dagster.run(relaunched.run_id)
    assert after is not None
    assert after.tags["tidegate/partition"] == paused.dagster_partition
    assert "input has changed" in after.tags["tidegate/afresh"]


def test_a_run_of_other_assets_is_one_of_its_own(world: World):
    paused = pause_unpartitioned(world, "letters")
    other = queue(world, "places")
    tick(world)
    after = world.dagster.run(other.run_id)
    assert after is not None
    assert "tidegate/partition" not in after.tags
    assert status_of(world, paused) is RunStatus.PAUSED


def test_a_paused_run_whose_assets_other_runs_have_materialized_since_is_not_resumed(world: World):
    paused = pause(world, "letters")
    world.clock.time += timedelta(seconds=60)
    world.dagster.materialized_at = world.clock()
    assert "resumes" not in resumed(world)
    assert status_of(world, paused) is RunStatus.CANCELLED
