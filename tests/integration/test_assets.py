"""Assets that run outside of jobs, in an outage: by "Materialize" and by automation."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterRunStatus
from dagster._core.execution.plan.resume_retry import ReexecutionStrategy

from dagster_tidegate.dagster_api.locations import location_code
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import runs
from tests.integration.gate_deployment import LOCATION, Deployment, deployment

PROJECT = Path(__file__).parent / "assets_project" / "definitions.py"
ASSETS = f"{LOCATION}:assets"
CRM = Target(TargetKind.SERVICE, "crm")


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


def paused_by_an_outage(deployed: Deployment) -> None:
    """Let the queue's run pause, and hold its service, so that nothing tries it."""
    work(deployed)
    [run] = deployed.instance.get_runs()
    assert run.status is DagsterRunStatus.CANCELED
    deployed.hold(CRM)


def recovered(deployed: Deployment, asset: str) -> None:
    deployed.up("crm")
    deployed.release(CRM)
    deployed.until(lambda: materialized(deployed, asset))


class Cron:
    """What Dagster's automation says about `minutely`, minute by minute."""

    def __init__(self, deployed: Deployment) -> None:
        # It reads the environment of the deployment.
        from tests.integration.assets_project.definitions import defs

        self._deployed, self._defs, self._cursor = deployed, defs, None

    def requests(self, minute: float) -> bool:
        """Return whether a run is requested at a time, and put it into the queue."""
        result = dg.evaluate_automation_conditions(
            self._defs,
            self._deployed.instance,
            asset_selection=dg.AssetSelection.assets("minutely"),
            cursor=self._cursor,
            evaluation_time=datetime(2030, 1, 1, tzinfo=UTC) + timedelta(minutes=minute),
        )
        self._cursor = result.cursor
        is_requested = result.get_num_requested(dg.AssetKey("minutely")) > 0
        if is_requested:
            self._deployed.launch("__ASSET_JOB", assets=["minutely"])
        return is_requested


def test_what_on_cron_requests_in_an_outage_waits_and_is_the_next_attempt(
    deployed: Deployment,
) -> None:
    deployed.down("crm")
    cron = Cron(deployed)
    assert not cron.requests(0.5)
    assert cron.requests(1)
    paused_by_an_outage(deployed)
    deployed.gate()
    assert not cron.requests(1.5)
    assert cron.requests(2)
    for _ in range(2):
        deployed.gate()
        work(deployed)
    assert not cron.requests(2.5)
    statuses = Counter(run.status for run in deployed.instance.get_runs())
    assert statuses == {DagsterRunStatus.CANCELED: 1, DagsterRunStatus.QUEUED: 1}
    recovered(deployed, "minutely")
    for _ in range(2):
        deployed.gate()
        work(deployed)
    assert len(deployed.instance.get_runs()) == 2
    assert sorted(deployed.calls()) == [f"minutely-{n}" for n in range(3)]
    assert not cron.requests(2.9)  # Dagster sees the materialization, and requests none beside it
    assert cron.requests(3)


def test_re_executed_from_asset_failure_only_the_failed_assets_run_and_go_on(
    deployed: Deployment,
) -> None:
    """As the button in Dagster's UI does: the new run selects fewer assets than the failed one."""
    failed = deployed.launch("__ASSET_JOB", assets=["receipts", "invoices"])
    work(deployed)
    assert deployed.status(failed) is DagsterRunStatus.FAILURE
    deployed.gate()
    calls = [f"{asset}-{n}" for asset in ("invoices", "receipts") for n in range(3)]
    assert sorted(deployed.calls()) == calls
    deployed.up("printer")
    again = deployed.re_execute(failed, ReexecutionStrategy.FROM_ASSET_FAILURE)
    work(deployed)
    deployed.gate()
    run = deployed.instance.get_run_by_id(again)
    assert run is not None
    assert run.status is DagsterRunStatus.SUCCESS
    assert run.asset_selection == {dg.AssetKey("invoices")}
    assert sorted(deployed.calls()) == calls  # its records were done
    assert materialized(deployed, "invoices")
    assert materialized(deployed, "receipts")
    with deployed.store.read() as conn:
        assert runs.counts(conn)[ASSETS] == {RunStatus.COMPLETED: 1}


def test_what_build_definitions_adds_is_none_of_the_users_jobs(deployed: Deployment) -> None:
    context = deployed.workspace.create_request_context()
    code = location_code(LOCATION, context.get_code_location(LOCATION), deployed.instance)
    assert ASSETS in code.jobs
    ops = {op.name for ops in code.jobs.values() for op in ops}
    assert not [name for name in {*code.jobs, *ops} if name.startswith("tidegate_")]
