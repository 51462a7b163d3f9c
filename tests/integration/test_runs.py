"""What becomes of runs in an outage, with a real gate and Dagster without its daemon."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner
from dagster import DagsterRunStatus
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.execution.plan.resume_retry import ReexecutionStrategy
from dagster._daemon.backfill import execute_backfill_iteration
from dagster_graphql.schema import create_schema

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.cli import main
from dagster_tidegate.dagster_api.lineage import partition_of
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import ledger, runs
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.runs import CampaignRun
from tests.integration.gate_deployment import LOCATION, Deployment, deployment

PROJECT = Path(__file__).parent / "runs_project" / "definitions.py"
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def shared(module_store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("runs") / "home"
    monitoring = {"enabled": True, "free_slots_after_run_end_seconds": 1}
    with deployment(
        home,
        module_store_url,
        project=PROJECT,
        run_monitoring=monitoring,
        concurrency={"pools": {"granularity": "run"}, "runs": {"max_concurrent_runs": 50}},
    ) as deployed:
        yield deployed


@pytest.fixture
def deployed(shared: Deployment) -> Iterator[Deployment]:
    """The deployment, as if nothing had happened yet, and its service is up."""
    shared.up("crm")
    shared.up("maps")
    shared.gate()
    yield shared
    shared.forget()


def run_of(deployed: Deployment, run_id: str) -> dg.DagsterRun:
    run = deployed.instance.get_run_by_id(run_id)
    assert run is not None
    return run


def campaign_run(deployed: Deployment, run_id: str) -> CampaignRun:
    run = run_of(deployed, run_id)
    with deployed.store.read() as conn:
        row = runs.find(conn, run.job_name, partition_of(run))
    assert row is not None
    return row


def ended(deployed: Deployment, job: str, partition: str | None = None) -> str:
    """Launch a run, and wait for its end."""
    run_id = deployed.launch(job, partition)
    deployed.dequeue()
    deployed.wait(run_id)
    return run_id


def is_completed(deployed: Deployment, run_id: str) -> bool:
    return campaign_run(deployed, run_id).status is RunStatus.COMPLETED


@pytest.mark.parametrize(("job", "partition"), [("question", None), ("contacts_job", "d1")])
def test_a_run_that_a_breaker_refused_is_resumed_whole(
    deployed: Deployment, job: str, partition: str | None
):
    deployed.down("crm")
    run_id = ended(deployed, job, partition)
    assert deployed.status(run_id) is DagsterRunStatus.CANCELED
    assert campaign_run(deployed, run_id).status is RunStatus.PAUSED
    deployed.gate()
    assert campaign_run(deployed, run_id).status is RunStatus.PAUSED
    assert deployed.calls().count("asked") <= 1
    deployed.up("crm")
    deployed.until(lambda: is_completed(deployed, run_id))
    assert run_of(deployed, run_id).tags["tidegate/state"] == "resumed"
    answer = "d1" if partition else "answer"
    assert deployed.calls().count(answer) == 1
    [last] = deployed.instance.get_runs(dg.RunsFilter(statuses=[DagsterRunStatus.SUCCESS]))
    assert last.tags["dagster/parent_run_id"] == run_id
    # The gate asks for nothing more.
    for _ in range(3):
        deployed.gate()
        deployed.dequeue()
    assert len(deployed.instance.get_runs()) == 2


def test_a_paused_run_that_a_person_executes_again_is_not_called_paused(deployed: Deployment):
    deployed.down("maps")
    paused = ended(deployed, "visits")
    deployed.up("maps")
    set_state(deployed, "maps", BreakerState.CLOSED)
    again = deployed.re_execute(paused, ReexecutionStrategy.ALL_STEPS)
    deployed.dequeue()
    deployed.wait(again)
    assert deployed.status(again) is DagsterRunStatus.SUCCESS
    tags = run_of(deployed, again).tags
    assert tags["tidegate/state"] == "resumed"
    assert tags["tidegate/reason"] == f"continues Dagster run {paused}"


@pytest.mark.parametrize("state", [BreakerState.CLOSED, BreakerState.HALF_OPEN])
def test_a_loop_without_a_pool_pauses_for_the_service_that_refused_it(
    deployed: Deployment, state: BreakerState
):
    deployed.down("maps")
    run_id = ended(deployed, "visits")
    assert deployed.status(run_id) is DagsterRunStatus.CANCELED
    paused = campaign_run(deployed, run_id)
    assert (paused.status, paused.refused_by) == (RunStatus.PAUSED, ("maps",))
    deployed.gate()
    assert len(deployed.instance.get_runs()) == 1  # not resumed while it would be refused again
    with deployed.store.read() as conn:
        assert ledger.failed_records(conn, paused.id) == 0
    url = deployed.store.url.render_as_string(hide_password=False)
    why = CliRunner().invoke(main, ["why", paused.name, "--url", url]).stdout
    assert "paused: maps is open (ConnectionError" in why.replace("\n", " ")
    deployed.up("maps")
    set_state(deployed, "maps", state)
    deployed.until(lambda: is_completed(deployed, run_id))
    assert sorted(deployed.calls()) == ["a", "b", "c", "d"]
    assert len(deployed.instance.get_runs()) == 2
    assert campaign_run(deployed, run_id).refused_by == ()


def set_state(deployed: Deployment, service: str, state: BreakerState) -> None:
    """Close a breaker, or let it half open, as an operator does."""
    policy = ServicePolicy(name=service)
    fleet = Fleet(SqlBackend(deployed.store), [policy])
    breaker = fleet.breaker(service)
    breaker.close() if state is BreakerState.CLOSED else breaker.half_open()
    fleet.close()


ODD = ["a/b two words, c", "Zo\u00eb \u2603 \u6f22", "x" * 500]
KINDS = {
    ("one_side", None): ["side left"],
    ("picture_job", None): ["drawn"],
    ("mapped", None): ["piece x", "piece y"],
    ("sales_job", "eu|mon"): ["sales eu|mon"],
    **{("odd", name): [f"odd {name}"] for name in ODD},
    ("retried", None): ["retried"],
    ("in_processes", None): ["in a process of its own"],
    ("deep", None): ["deep"],
    ("plain_job", None): ["plain in plain_job"],
    ("plain_again", None): ["plain in plain_again"],
}


def test_every_kind_of_op_asset_and_partition_pauses_and_is_resumed_once(deployed: Deployment):
    """One outage for all: multi-assets, graph-backed assets, mapped outputs, odd partitions."""
    deployed.down("crm")
    tags = {"dagster/partition/at": "eu", "dagster/partition/day": "mon"}
    run_ids = {
        (job, partition): deployed.launch(
            job, partition, tags=tags if partition == "eu|mon" else None
        )
        for job, partition in KINDS
    }
    deployed.dequeue()
    for run_id in run_ids.values():
        deployed.wait(run_id)
    paused = {key: campaign_run(deployed, run_id).status for key, run_id in run_ids.items()}
    assert paused == dict.fromkeys(KINDS, RunStatus.PAUSED)
    assert deployed.calls() == []
    deployed.up("crm")
    deployed.until(
        lambda: all(is_completed(deployed, run_id) for run_id in run_ids.values()), rounds=40
    )
    expected = sorted(call for calls in KINDS.values() for call in calls)
    assert sorted(deployed.calls()) == expected
    assert len(deployed.instance.get_runs()) == 2 * len(KINDS)


LAUNCH = """
mutation ($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
  }
}
"""
CANCEL = """
mutation ($id: String!) { cancelPartitionBackfill(backfillId: $id) { __typename } }
"""
OF_JOB = {
    "selector": {
        "partitionSetName": "contacts_job_partition_set",
        "repositorySelector": {
            "repositoryLocationName": LOCATION,
            "repositoryName": "__repository__",
        },
    }
}
OF_ASSET = {"assetSelection": [{"path": ["contacts"]}]}


class Backfill:
    """A backfill of two partitions, launched as the Dagster UI does."""

    def __init__(self, deployed: Deployment, target: dict) -> None:
        self._deployed = deployed
        answer = self._ask(LAUNCH, params={**target, "partitionNames": ["d1", "d2"]})
        self.id = answer["backfillId"]
        self.iterate()

    def _ask(self, query: str, **variables: Any) -> dict:
        context = self._deployed.workspace.create_request_context()
        result = asyncio.run(
            create_schema().execute_async(query, context_value=context, variables=variables)
        )
        assert not result.errors, result.errors
        assert result.data is not None
        [answer] = result.data.values()
        return answer

    def cancel(self) -> None:
        self._ask(CANCEL, id=self.id)
        self.iterate()

    def iterate(self) -> None:
        """Let the daemon look at its backfills."""
        for error in execute_backfill_iteration(
            self._deployed.workspace, logging.getLogger("tests")
        ):
            assert error is None, error.to_string()

    @property
    def status(self) -> BulkActionStatus:
        backfill = self._deployed.instance.get_backfill(self.id)
        assert backfill is not None
        return backfill.status


@pytest.mark.parametrize("target", [OF_JOB, OF_ASSET], ids=["job", "asset"])
def test_a_backfill_of_which_all_runs_are_paused_is_in_progress_and_ends_completed(
    deployed: Deployment, target: dict
):
    backfill = paused_backfill(deployed, target)
    # Dagster may have ended it before the gate has looked.
    assert backfill.status is not BulkActionStatus.COMPLETED_SUCCESS
    for _ in range(3):
        run_round(deployed)
    backfill.iterate()
    assert backfill.status is BulkActionStatus.REQUESTED
    # Nothing is launched in vain: the next attempts wait in the queue.
    assert statuses(deployed) == {DagsterRunStatus.CANCELED: 2, DagsterRunStatus.QUEUED: 2}
    release(deployed)
    for _ in range(12):
        run_round(deployed)
        backfill.iterate()
        if backfill.status is BulkActionStatus.COMPLETED_SUCCESS:
            break
    assert backfill.status is BulkActionStatus.COMPLETED_SUCCESS
    assert sorted(deployed.calls()) == ["d1", "d2"]
    in_it = deployed.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill.id}))
    assert {run.status for run in in_it} == {DagsterRunStatus.SUCCESS}


def test_a_backfill_that_a_person_cancels_while_it_is_paused_does_not_resume(deployed: Deployment):
    backfill = paused_backfill(deployed, OF_JOB)
    for _ in range(2):
        run_round(deployed)
    assert DagsterRunStatus.QUEUED in statuses(deployed)
    backfill.cancel()
    backfill.iterate()
    assert backfill.status is BulkActionStatus.CANCELED
    release(deployed)
    for _ in range(3):
        run_round(deployed)
    assert deployed.calls() == []
    assert statuses(deployed) == {DagsterRunStatus.CANCELED: 4}


def test_a_backfill_of_runs_that_wait_for_no_pool_is_not_requested_in_vain(deployed: Deployment):
    """A hold on a campaign without a pool of its own stops running work, and not the queue."""
    backfill = paused_backfill(deployed, OF_JOB, Target(TargetKind.CAMPAIGN, "contacts_job"))
    deployed.up("crm")
    for _ in range(6):
        run_round(deployed)
    assert deployed.calls() == []
    assert statuses(deployed) == {DagsterRunStatus.CANCELED: 2}
    release(deployed, Target(TargetKind.CAMPAIGN, "contacts_job"))
    for _ in range(12):
        run_round(deployed)
        backfill.iterate()
    assert backfill.status is BulkActionStatus.COMPLETED_SUCCESS


def test_a_backfill_that_a_person_cancelled_is_not_resumed(deployed: Deployment):
    deployed.down("crm")
    backfill = Backfill(deployed, OF_JOB)
    run_round(deployed)
    run_ids = [run.run_id for run in deployed.instance.get_runs()]
    assert {deployed.status(run_id) for run_id in run_ids} == {DagsterRunStatus.CANCELED}
    backfill.cancel()
    deployed.up("crm")

    def rows() -> list[CampaignRun]:
        return [campaign_run(deployed, run_id) for run_id in run_ids]

    deployed.until(lambda: all(row.status is not RunStatus.PAUSED for row in rows()))
    run_round(deployed)
    assert deployed.calls() == []
    assert len(deployed.instance.get_runs()) == 2
    for row in rows():
        assert row.status is RunStatus.CANCELLED
        assert row.reason == f"its backfill {backfill.id} was cancelled"


CRM = Target(TargetKind.SERVICE, "crm")


def paused_backfill(deployed: Deployment, target: dict, held: Target = CRM) -> Backfill:
    """A backfill whose runs have paused, and that is held."""
    deployed.down("crm")
    backfill = Backfill(deployed, target)
    deployed.dequeue()
    for run in deployed.instance.get_runs():
        deployed.wait(run.run_id)
    assert statuses(deployed) == {DagsterRunStatus.CANCELED: 2}
    deployed.hold(held)
    backfill.iterate()
    return backfill


def release(deployed: Deployment, held: Target = CRM) -> None:
    """Release the hold, and let the service be up."""
    deployed.up("crm")
    deployed.release(held)


def statuses(deployed: Deployment) -> dict[DagsterRunStatus, int]:
    return dict(Counter(run.status for run in deployed.instance.get_runs()))


def run_round(deployed: Deployment) -> None:
    """Let the gate and the daemon look once, and wait for the runs that this starts."""
    deployed.gate()
    deployed.dequeue()
    for run in deployed.instance.get_runs(
        dg.RunsFilter(statuses=[DagsterRunStatus.STARTING, DagsterRunStatus.STARTED])
    ):
        deployed.wait(run.run_id)
