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


class Automation:
    """What Dagster's automation requests of an asset, minute by minute."""

    def __init__(self, deployed: Deployment, asset: str) -> None:
        # It reads the environment of the deployment.
        from tests.integration.assets_project.definitions import defs

        self._deployed, self._asset = deployed, asset
        self._defs, self._cursor = defs, None

    def requests(self, minute: float) -> list[str | None]:
        """Return the partitions for which a run is requested at a time, which is then queued.

        An asset without partitions has the one partition None.
        """
        result = dg.evaluate_automation_conditions(
            self._defs,
            self._deployed.instance,
            asset_selection=dg.AssetSelection.assets(self._asset),
            cursor=self._cursor,
            evaluation_time=datetime(2030, 1, 1, tzinfo=UTC) + timedelta(minutes=minute),
        )
        self._cursor = result.cursor
        key = dg.AssetKey(self._asset)
        partitions: list[str | None]
        if self._defs.resolve_assets_def(key).partitions_def is None:
            partitions = [None] * result.get_num_requested(key)
        else:
            requested = result.get_requested_partitions(key)
            partitions = sorted(requested, key=str)
        for partition in partitions:
            self._deployed.launch("__ASSET_JOB", partition, assets=[self._asset])
        return partitions


def nothing_more_happens(deployed: Deployment) -> None:
    """Let the gate and the queue go round, and expect no other run."""
    before = len(deployed.instance.get_runs())
    for _ in range(2):
        deployed.gate()
        work(deployed)
    assert len(deployed.instance.get_runs()) == before


def statuses(deployed: Deployment) -> Counter[DagsterRunStatus]:
    return Counter(run.status for run in deployed.instance.get_runs())


def test_what_on_cron_requests_in_an_outage_waits_and_is_the_next_attempt(
    deployed: Deployment,
) -> None:
    deployed.down("crm")
    cron = Automation(deployed, "minutely")
    assert cron.requests(0.5) == []
    assert cron.requests(1) == [None]
    paused_by_an_outage(deployed)
    deployed.gate()
    assert cron.requests(1.5) == []
    assert cron.requests(2) == [None]
    nothing_more_happens(deployed)
    assert cron.requests(2.5) == []
    assert statuses(deployed) == {DagsterRunStatus.CANCELED: 1, DagsterRunStatus.QUEUED: 1}
    recovered(deployed, "minutely")
    nothing_more_happens(deployed)
    assert len(deployed.instance.get_runs()) == 2
    assert sorted(deployed.calls()) == [f"minutely-{n}" for n in range(3)]
    assert cron.requests(2.9) == []  # Dagster sees the materialization
    assert cron.requests(3) == [None]


def test_what_is_missing_and_not_in_progress_is_requested_once_while_its_service_is_held(
    deployed: Deployment,
) -> None:
    """To Dagster, a paused run is over, and its asset is still missing."""
    deployed.down("crm")
    custom = Automation(deployed, "custom")
    assert custom.requests(1) == [None]
    paused_by_an_outage(deployed)
    deployed.gate()
    assert custom.requests(2) == [None]
    for minute in (3, 4):
        nothing_more_happens(deployed)
        assert custom.requests(minute) == []
    assert statuses(deployed) == {DagsterRunStatus.CANCELED: 1, DagsterRunStatus.QUEUED: 1}
    recovered(deployed, "custom")
    nothing_more_happens(deployed)
    assert custom.requests(5) == []
    assert len(deployed.instance.get_runs()) == 2
    assert sorted(deployed.calls()) == [f"custom-{n}" for n in range(3)]


def test_what_on_missing_requests_in_an_outage_waits_and_is_launched_once(
    deployed: Deployment,
) -> None:
    def arrived(name: str) -> None:
        deployed.instance.add_dynamic_partitions("arrivals", [name])

    def is_welcome(name: str) -> bool:
        return name in deployed.instance.get_materialized_partitions(dg.AssetKey("welcomes"))

    on_missing = Automation(deployed, "welcomes")
    arrived("ada")
    assert on_missing.requests(0) == []  # it was missing before anybody looked
    arrived("alan")
    deployed.down("crm")
    assert on_missing.requests(1) == ["alan"]
    paused_by_an_outage(deployed)
    deployed.gate()
    arrived("grace")
    assert on_missing.requests(2) == ["grace"]
    for minute in (3, 4):
        nothing_more_happens(deployed)
        assert on_missing.requests(minute) == []
    assert statuses(deployed) == {DagsterRunStatus.CANCELED: 1, DagsterRunStatus.QUEUED: 1}
    arrived("kurt")
    deployed.up("crm")
    deployed.release(CRM)
    assert on_missing.requests(5) == ["kurt"]
    deployed.until(lambda: all(map(is_welcome, ("alan", "grace", "kurt"))))
    nothing_more_happens(deployed)
    assert on_missing.requests(6) == []
    names = ("alan", "grace", "kurt")
    assert sorted(deployed.calls()) == [f"welcomes/{name}-{n}" for name in names for n in range(3)]
    assert statuses(deployed) == {DagsterRunStatus.CANCELED: 1, DagsterRunStatus.SUCCESS: 3}
    for name in ("ada", *names):
        deployed.instance.delete_dynamic_partition("arrivals", name)


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
