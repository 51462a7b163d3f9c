"""What is done again, by what a person did: docs/explanation/what-is-done-again.md."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from dagster_tidegate import BreakerResource, ServiceConfig
from dagster_tidegate.dagster_api import CONTINUES_TAG
from dagster_tidegate.dagster_api.lineage import (
    AFRESH_TAG,
    ONLY_MARKED,
    PARTITION_TAG,
    RECORDS_TAG,
    campaign_of,
    partition_of,
)
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import holds, records, retention, runs
from dagster_tidegate.store.runs import CampaignRun
from tests.support.databases import both_databases

KEYS = ["ada", "alan", "grace"]
PARTITIONS = ["2026-03-01", "2026-03-02", "s3://bucket/" + "folder/" * 40 + "report.csv"]
MATERIALIZE = Target(TargetKind.CAMPAIGN, "dg.materialize")


class Project:
    """Two assets of one partitioning, each with a record loop, and what they sent."""

    def __init__(self, instance: dg.DagsterInstance, breakers: BreakerResource) -> None:
        self.instance, self.breakers, self.store = instance, breakers, breakers.store
        self.version = 1
        self.fails_at: str | None = None
        self.held_at: str | None = None
        self.rejected: str | None = None
        self.meanwhile: Callable[[], object] | None = None
        self.sent: list[str] = []
        self.idempotency_keys: list[str] = []
        self.partitions = dg.StaticPartitionsDefinition(PARTITIONS)
        self.leads, self.mails = self._asset("leads"), self._asset("mails")

    def _asset(self, name: str) -> dg.AssetsDefinition:
        @dg.asset(name=name, partitions_def=self.partitions, pool="mail")
        def of_partition(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list[str]:
            records = breakers.records(context.op_execution_context, KEYS, key=str, max_failed=0.5)
            for record in records:
                with record:
                    self.sent.append(record.key)
                    self.idempotency_keys.append(record.idempotency_key)
                    if record.key == self.rejected:
                        raise ValueError("a bad record")
                    record.result = f"{record.key} {self.version}"
                meanwhile, self.meanwhile = self.meanwhile, None
                if meanwhile is not None:
                    meanwhile()
                if record.key == self.fails_at:
                    raise RuntimeError("the code has a bug")
                if record.key == self.held_at:
                    self.hold()
            return records.results()

        return of_partition

    def materialize(
        self,
        *assets: dg.AssetsDefinition,
        partition: str | None = PARTITIONS[0],
        **tags: str,
    ) -> dg.DagsterRun:
        """Execute assets; a tag's name is written with two underscores for a slash."""
        self.sent.clear()
        self.idempotency_keys.clear()
        result = dg.materialize(
            list(assets or [self.leads]),
            instance=self.instance,
            resources={"breakers": self.breakers},
            partition_key=partition,
            raise_on_error=False,
            tags={name.replace("__", "/"): value for name, value in tags.items()},
        )
        run = self.instance.get_run_by_id(result.run_id)
        assert run is not None
        return run

    def fail(self, key: str, **tags: str) -> dg.DagsterRun:
        """Execute an asset whose code fails after a record, and say so as the gate does."""
        self.fails_at = key
        failed = self.materialize(**tags)
        self.fails_at = None
        self.follow(failed, RunStatus.FAILED)
        return failed

    def campaign_run(self, run: dg.DagsterRun) -> CampaignRun:
        with self.store.read() as conn:
            found = runs.find(conn, campaign_of(run), partition_of(run))
        assert found is not None
        return found

    def follow(self, run: dg.DagsterRun, status: RunStatus) -> None:
        """Say how a run ended, as the gate does."""
        with self.store.begin() as conn:
            runs.move(conn, self.store.now(conn), self.campaign_run(run), status, actor="gate")

    def hold(self) -> None:
        with self.store.begin() as conn:
            now = self.store.now(conn)
            holds.place(
                conn,
                now,
                MATERIALIZE,
                source=HoldSource.OPERATOR,
                reason="maintenance",
                actor="ana",
            )
        self.breakers.fleet.refresh()

    def release(self) -> None:
        self.held_at = None
        with self.store.begin() as conn:
            now = self.store.now(conn)
            holds.release(conn, now, MATERIALIZE, source=HoldSource.OPERATOR, actor="ana")
        self.breakers.fleet.refresh()

    def logged(self, run: dg.DagsterRun) -> str:
        return "\n".join(entry.user_message for entry in self.instance.all_logs(run.run_id))


@pytest.fixture
def project(store_url: str, tmp_path: Path) -> Iterator[Project]:
    breakers = BreakerResource(services=[ServiceConfig(name="mail")], store_url=store_url)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield Project(instance, breakers)
    breakers.fleet.close()
    breakers.store.dispose()


def of(parent: dg.DagsterRun, **tags: str) -> dict[str, str]:
    root = parent.tags.get("dagster/root_run_id", parent.run_id)
    return {"dagster__parent_run_id": parent.run_id, "dagster__root_run_id": root, **tags}


def from_failure(parent: dg.DagsterRun) -> dict[str, str]:
    return of(parent, dagster__is_resume_retry="true")


@both_databases
@pytest.mark.parametrize("is_followed", [True, False], ids=["followed", "not followed"])
def test_a_partition_that_is_materialized_again_gets_fresh_data(
    project: Project, is_followed: bool
) -> None:
    first = project.materialize()
    before = list(project.idempotency_keys)
    if is_followed:
        project.follow(first, RunStatus.COMPLETED)
    project.version = 2
    second = project.materialize()
    assert project.sent == KEYS
    assert project.instance.get_latest_materialization_event(dg.AssetKey("leads")) is not None
    assert set(project.idempotency_keys).isdisjoint(before), (
        "the service must not answer from memory"
    )
    run = project.campaign_run(second)
    assert (run.attempt, run.first_attempt) == (2, 2)
    assert "starts afresh" in project.logged(second)


@both_databases
def test_a_run_that_failed_goes_on_when_it_is_re_executed_from_failure(project: Project) -> None:
    failed = project.fail("alan")
    assert project.sent == ["ada", "alan"]
    again = project.materialize(**from_failure(failed))
    assert project.sent == ["grace"]
    logged = project.logged(again)
    why = "because it was re-executed from failure"
    attempt = f"attempt 1 ended as failed, and this run continues it {why}"
    assert f"skipping 2 completed records: {attempt}" in logged


@pytest.mark.parametrize("retry", ["run retry", "all steps", "new", "by hand"])
def test_of_a_failed_run_only_what_is_a_retry_goes_on(project: Project, retry: str) -> None:
    failed = project.fail("alan")
    tags = {
        "run retry": of(failed, dagster__retry_number="1"),
        "all steps": of(failed),
        "new": {},
        "by hand": {CONTINUES_TAG.replace("/", "__"): "true"},
    }[retry]
    project.materialize(**tags)
    assert project.sent == (["grace"] if retry in ("run retry", "by hand") else KEYS)


@pytest.mark.parametrize("how", ["run retry", "from failure"])
def test_a_retry_of_a_failed_run_does_failed_records_once_more(project: Project, how: str) -> None:
    project.rejected = "ada"
    failed = project.fail("alan")
    assert project.sent == ["ada", "alan"]
    tags = of(failed, dagster__retry_number="1") if how == "run retry" else from_failure(failed)
    project.materialize(**tags)
    assert project.sent == ["ada", "grace"]


def test_a_resumed_run_leaves_failed_records_as_they_are(project: Project) -> None:
    project.rejected, project.held_at = "ada", "alan"
    project.materialize()
    project.release()
    project.materialize()
    assert project.sent == ["grace"]


def test_a_retry_of_a_run_that_never_began_goes_on_with_what_that_run_followed(
    project: Project,
) -> None:
    failed = project.fail("alan")
    tags = {name.replace("__", "/"): value for name, value in from_failure(failed).items()}
    died = dg.DagsterRun("outreach", tags=tags, status=dg.DagsterRunStatus.FAILURE)
    project.instance.add_run(died)
    project.materialize(**of(died, dagster__retry_number="1"))
    assert project.sent == ["grace"]


def test_a_retry_of_a_refused_start_goes_on_although_another_run_completed_meanwhile(
    project: Project,
) -> None:
    failed = project.fail("alan")
    refused = dg.DagsterRun(
        "outreach", tags={CONTINUES_TAG: "true"}, status=dg.DagsterRunStatus.FAILURE
    )
    project.instance.add_run(refused)
    retried = project.materialize(**of(failed, dagster__retry_number="1"))
    project.follow(retried, RunStatus.COMPLETED)
    project.materialize(**of(refused, dagster__retry_number="1"))
    assert project.sent == [], "the service would get every record once more"


@pytest.mark.parametrize("retry", ["none yet", "begins", "never began", "given up"])
def test_whoever_begins_before_dagster_has_retried_a_failed_run_goes_on(
    project: Project, retry: str
) -> None:
    failed = project.fail("alan")
    begins = dg.DagsterRun("outreach", status=dg.DagsterRunStatus.STARTING)
    died = dg.DagsterRun(
        "outreach",
        tags={"dagster/will_retry": str(retry == "never began").lower()},
        status=dg.DagsterRunStatus.FAILURE,
    )
    for run in (begins, died):
        project.instance.add_run(run)
    tags = {"dagster/will_retry": "true"}
    if retry != "none yet":
        retried = begins if retry == "begins" else died
        tags["dagster/auto_retry_run_id"] = retried.run_id
    project.instance.add_run_tags(failed.run_id, tags)
    project.materialize()
    assert project.sent == (KEYS if retry == "given up" else ["grace"])


def test_dagster_does_not_retry_a_run_that_was_launched_while_another_one_is_at_work(
    project: Project,
) -> None:
    launched: list[dg.DagsterRun] = []
    project.meanwhile = lambda: launched.append(project.materialize())
    first = project.materialize()
    [second] = launched
    assert (first.status.value, second.status.value) == ("SUCCESS", "FAILURE")
    assert second.tags.get("dagster/max_retries") == "0", "the retry would send every record again"


def test_a_retry_of_a_run_that_started_afresh_does_not_reach_behind_it(project: Project) -> None:
    first = project.materialize()
    project.follow(first, RunStatus.COMPLETED)
    second = project.fail("ada", **of(first))
    assert project.sent == ["ada"]
    project.materialize(**from_failure(second))
    assert project.sent == ["alan", "grace"]
    project.follow(second, RunStatus.COMPLETED)
    project.materialize(**from_failure(first))
    assert project.sent == KEYS, "the ledger of the first run is gone"


@both_databases
def test_whoever_begins_on_a_paused_campaign_run_goes_on(project: Project) -> None:
    project.held_at = "alan"
    paused = project.materialize()
    assert paused.status is dg.DagsterRunStatus.CANCELED
    assert project.campaign_run(paused).status is RunStatus.PAUSED
    project.release()
    again = project.materialize()
    assert project.sent == ["grace"]
    assert "skipping 2 completed records: attempt 1 ended as paused" in project.logged(again)


def test_a_paused_campaign_run_that_was_cancelled_starts_afresh(project: Project) -> None:
    project.held_at = "alan"
    paused = project.materialize()
    project.follow(paused, RunStatus.CANCELLED)
    project.follow(paused, RunStatus.PENDING)  # another run was queued
    project.release()
    project.materialize()
    assert project.sent == KEYS


def test_marked_records_alone_are_done_again(project: Project) -> None:
    first = project.materialize()
    project.follow(first, RunStatus.COMPLETED)
    with project.store.begin() as conn:
        run = project.campaign_run(first)
        chosen = records.Selection(keys=["alan"])
        assert records.mark(conn, project.store.now(conn), run, chosen) == {"leads": 1}
    project.materialize(**of(first, **{RECORDS_TAG.replace("/", "__"): ONLY_MARKED}))
    assert project.sent == ["alan"]


@both_databases
def test_a_partition_whose_ledger_expired_is_done_again(project: Project) -> None:
    first = project.materialize()
    project.follow(first, RunStatus.COMPLETED)
    keep = retention.Keep(ledgers=timedelta(0))
    with project.store.read() as conn:
        now = project.store.now(conn)
    assert retention.prune(project.store, now, keep, batches=9).deleted["ledgers"] == 3
    project.materialize(**from_failure(first))
    assert project.sent == KEYS
    project.materialize()
    assert project.sent == KEYS


@both_databases
def test_a_partition_of_300_characters_works_and_goes_on(project: Project) -> None:
    project.held_at = "ada"
    paused = project.materialize(partition=PARTITIONS[-1])
    run = project.campaign_run(paused)
    assert (run.status, run.partition) == (RunStatus.PAUSED, PARTITIONS[-1])
    project.release()
    project.materialize(partition=PARTITIONS[-1])
    assert project.sent == ["alan", "grace"]


def test_a_run_that_the_gate_resumes_is_of_the_same_campaign_run_without_partitions(
    project: Project,
) -> None:
    project.leads = dg.asset(name="leads", pool="mail")(_unpartitioned(project))
    project.held_at = "alan"
    paused = project.materialize(project.leads, partition=None)
    project.release()
    tag = PARTITION_TAG.replace("/", "__")
    project.materialize(project.leads, partition=None, **of(paused, **{tag: paused.run_id}))
    assert project.sent == ["grace"]
    project.materialize(project.leads, partition=None)
    assert project.sent == KEYS, "another run of an unpartitioned job is another campaign run"


def _unpartitioned(project: Project):
    def leads(context: dg.AssetExecutionContext, breakers: BreakerResource) -> None:
        for record in breakers.records(context.op_execution_context, KEYS, key=str):
            with record:
                project.sent.append(record.key)
            if record.key == project.held_at:
                project.hold()

    return leads


def test_a_paused_run_whose_input_has_changed_starts_afresh(project: Project) -> None:
    project.held_at = "alan"
    project.materialize()
    project.release()
    again = project.materialize(**{AFRESH_TAG.replace("/", "__"): "an input has changed"})
    assert project.sent == KEYS
    assert "starts afresh: an input has changed" in project.logged(again)
