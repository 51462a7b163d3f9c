"""Assets that run outside of jobs, in an outage: by "Materialize" and by automation."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterRunStatus

from dagster_tidegate.dagster_api.locations import location_code
from dagster_tidegate.store import runs
from tests.integration.gate_deployment import LOCATION, Deployment, deployment

PROJECT = Path(__file__).parent / "assets_project" / "definitions.py"
ASSETS = f"{LOCATION}:assets"
AUTOMATION = ("eager_and_eager_and_free", "custom", "once", "minutely")


@pytest.fixture(scope="module")
def shared(module_store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("assets") / "home"
    monitoring = {"enabled": True, "free_slots_after_run_end_seconds": 1}
    with deployment(home, module_store_url, project=PROJECT, run_monitoring=monitoring) as deployed:
        yield deployed


@pytest.fixture
def deployed(shared: Deployment) -> Iterator[Deployment]:
    """The deployment, as if nothing had happened yet, and its services are up."""
    for service in ("crm", "geo"):
        shared.up(service)
    shared.gate()
    yield shared
    shared.forget()
    keys = shared.instance.all_asset_keys()
    shared.instance.wipe_assets(list(keys))
    shared.forget_triggers()


def work(deployed: Deployment, rounds: int = 1) -> None:
    """Let the queue be looked at, and wait for what it launches."""
    for _ in range(rounds):
        deployed.dequeue()
        for run in unfinished(deployed, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED):
            deployed.wait(run.run_id)


def unfinished(deployed: Deployment, *statuses: DagsterRunStatus) -> list[dg.DagsterRun]:
    return list(deployed.instance.get_runs(dg.RunsFilter(statuses=list(statuses))))


def materialized(deployed: Deployment, asset: str) -> bool:
    return deployed.instance.get_latest_materialization_event(dg.AssetKey(asset)) is not None


def test_a_materialization_pauses_and_resumes_with_its_assets(deployed: Deployment) -> None:
    deployed.down("crm")
    run_id = deployed.launch("__ASSET_JOB", "d1", assets=["contacts"], tags={"team": "sales"})
    work(deployed)
    assert deployed.status(run_id) is DagsterRunStatus.CANCELED
    assert not deployed.calls()
    deployed.up("crm")
    deployed.until(lambda: materialized(deployed, "contacts"))
    assert sorted(deployed.calls()) == [f"contacts/d1-{n}" for n in range(3)]
    [resumed] = [run for run in deployed.instance.get_runs() if run.run_id != run_id]
    assert resumed.status is DagsterRunStatus.SUCCESS
    assert resumed.asset_selection == {dg.AssetKey("contacts")}
    assert resumed.tags["team"] == "sales"
    with deployed.store.read() as conn:
        assert list(runs.counts(conn)) == [ASSETS]


def test_assets_that_need_no_held_service_resume_while_others_wait(deployed: Deployment) -> None:
    """Both are runs of one generated job; each waits for its own services."""
    for service in ("crm", "geo"):
        deployed.down(service)
    waiting = deployed.launch("__ASSET_JOB", "d1", assets=["contacts"])
    deployed.launch("__ASSET_JOB", assets=["places"])
    work(deployed)
    free = deployed.launch("__ASSET_JOB", assets=["free"])
    deployed.gate()
    work(deployed)
    assert deployed.status(free) is DagsterRunStatus.SUCCESS
    deployed.up("geo")
    deployed.until(lambda: materialized(deployed, "places"))
    assert sorted(deployed.calls()) == ["free", *(f"places-{n}" for n in range(3))]
    assert deployed.status(waiting) is DagsterRunStatus.CANCELED
    deployed.up("crm")
    deployed.until(lambda: materialized(deployed, "contacts"))
    assert sorted(deployed.calls()[4:]) == [f"contacts/d1-{n}" for n in range(3)]


def test_what_build_definitions_adds_is_none_of_the_users_jobs(deployed: Deployment) -> None:
    context = deployed.workspace.create_request_context()
    code = location_code(LOCATION, context.get_code_location(LOCATION), deployed.instance)
    assert ASSETS in code.jobs
    ops = {op.name for ops in code.jobs.values() for op in ops}
    assert not [name for name in {*code.jobs, *ops} if name.startswith("tidegate_")]
