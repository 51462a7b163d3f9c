"""The record loop inside real Dagster runs: each record once, a clean pause, and the way back."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
import sqlalchemy as sa
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.storage.tags import PARENT_RUN_ID_TAG
from dagster_shared.error import SerializableErrorInfo
from sqlalchemy.exc import OperationalError

from dagster_tidegate import BreakerResource, ServiceConfig, pool
from dagster_tidegate.dagster_api.lineage import (
    CANARY_TAG,
    SUPERSEDED_TAG,
    request_key,
    was_superseded,
)
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.plugin.attempt import REASON_TAG, SERVICE_TAG, STATE_TAG, CampaignPaused
from dagster_tidegate.records.worklist import MissingKeyError
from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import holds, ledger, runs
from dagster_tidegate.store import tables as t
from tests.support.databases import both_databases
from tests.support.record_statuses import record_statuses

LEADS = [{"email": f"{name}@example.org"} for name in ("ada", "alan", "grace", "kurt", "emmy")]
RETRY = {"dagster/retry_number": "1"}
PARTITIONS = dg.StaticPartitionsDefinition(["leads-1"])
SERVICES = [
    ServiceConfig(name="instantly", consecutive_failures=3, reset_timeout_s=600),
    ServiceConfig(name="openai"),
]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


@pytest.fixture
def breakers(store_url: str) -> Iterator[BreakerResource]:
    breakers = BreakerResource(services=SERVICES, store_url=store_url)
    yield breakers
    breakers.fleet.close()
    breakers.store.dispose()


Send = Callable[[dict], Any]


class Campaign:
    """A job of one record loop and a step behind it, run as often as a test wants."""

    def __init__(self, instance: dg.DagsterInstance, breakers: BreakerResource) -> None:
        self.instance = instance
        self.breakers = breakers
        self.sent: list[str] = []
        self.keys: list[str] = []
        self.items: Any = LEADS
        self.options: dict[str, Any] = {"key": "email"}
        self.fail: Send = lambda _: None
        self.after: Callable[[], None] = lambda: None

    def run(self, **kwargs: Any) -> dg.ExecuteInProcessResult:
        return self.job().execute_in_process(
            instance=self.instance,
            resources={"breakers": self.breakers},
            partition_key="leads-1",
            raise_on_error=False,
            **kwargs,
        )

    def create(self, tags: Mapping[str, str], parent: dg.DagsterRun | None = None) -> dg.DagsterRun:
        """Create a run as the gate does, or as Dagster retries one: with the tags of its parent."""
        return self.instance.create_run_for_job(
            self.job(bound=True),
            tags={**(parent.tags if parent else {"dagster/partition": "leads-1"}), **tags},
            parent_run_id=parent and parent.run_id,
            root_run_id=parent and (parent.root_run_id or parent.run_id),
        )

    def execute(self, run: dg.DagsterRun) -> dg.DagsterRun:
        execute_run(InMemoryJob(self.job(bound=True)), run, self.instance)
        ended = self.instance.get_run_by_id(run.run_id)
        assert ended is not None
        return ended

    def attempts(self) -> list[tuple[str, RunStatus | None]]:
        with self.breakers.store.read() as conn:
            made = runs.attempts(conn, self.campaign_run.id)
        return [(attempt.dagster_run, attempt.outcome) for attempt in made]

    def job(self, *, bound: bool = False) -> dg.JobDefinition:
        @dg.op(pool=pool("instantly", campaign="outreach"))
        def send(context: dg.OpExecutionContext, breakers: BreakerResource) -> list[dict]:
            records = breakers.records(context, self.items, **self.options)
            for record in records:
                with record:
                    breakers.breaker("instantly").call(self.fail, record.value)
                    self.sent.append(record.value["email"])
                    self.keys.append(record.idempotency_key)
                    record.result = {"sent": record.value["email"]}
                    self.after()
            return records.results()

        @dg.op
        def load(context: dg.OpExecutionContext, breakers: BreakerResource, mails: list) -> list:
            records = breakers.records(context, mails, key="sent")
            for record in records:
                with record:
                    record.result = record.value["sent"]
            return records.results()

        @dg.job(partitions_def=PARTITIONS)
        def outreach() -> None:
            load(send())

        if not bound:
            return outreach
        return dg.Definitions(
            jobs=[outreach], resources={"breakers": self.breakers}, executor=dg.in_process_executor
        ).resolve_job_def("outreach")

    @property
    def campaign_run(self) -> runs.CampaignRun:
        with self.breakers.store.read() as conn:
            found = runs.find(conn, "outreach", "leads-1")
        assert found is not None
        return found

    def end(self, status: RunStatus) -> None:
        """End the campaign run as the gate does once its Dagster run has ended."""
        with self.breakers.store.begin() as conn:
            now = self.breakers.store.now(conn)
            runs.move(conn, now, self.campaign_run, status, actor="dagster")

    def ledger(self) -> dict[str, RecordStatus]:
        with self.breakers.store.read() as conn:
            return dict(record_statuses(conn, self.campaign_run.id, "send"))

    def hold(self, target: Target, **kwargs: Any) -> None:
        store = self.breakers.store
        with store.begin() as conn:
            holds.place(
                conn,
                store.now(conn),
                target,
                **{
                    "source": HoldSource.OPERATOR,
                    "reason": "maintenance",
                    "actor": "ana",
                    **kwargs,
                },
            )
        self.breakers.fleet.refresh()

    def release(self, target: Target, **kwargs: Any) -> None:
        store = self.breakers.store
        with store.begin() as conn:
            holds.release(
                conn,
                store.now(conn),
                target,
                **{"source": HoldSource.OPERATOR, "actor": "ana", **kwargs},
            )
        self.breakers.fleet.refresh()


@pytest.fixture
def campaign(instance: dg.DagsterInstance, breakers: BreakerResource) -> Campaign:
    return Campaign(instance, breakers)


def retries(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """Tags of a re-execution from failure."""
    return {
        "dagster/parent_run_id": result.run_id,
        "dagster/root_run_id": result.run_id,
        "dagster/is_resume_retry": "true",
    }


def error_of(result: dg.ExecuteInProcessResult) -> SerializableErrorInfo:
    """The error that the author's code raised."""
    data = result.get_step_failure_events()[0].step_failure_data
    assert data.error is not None
    return data.error.cause or data.error


class ServiceDown(ConnectionRefusedError):
    pass


OUTREACH = Target(TargetKind.CAMPAIGN, "outreach")
INSTANTLY = Target(TargetKind.SERVICE, "instantly")


def test_an_unbroken_run_handles_each_record_once_in_order(campaign: Campaign) -> None:
    result = campaign.run()
    assert result.success
    assert campaign.sent == [lead["email"] for lead in LEADS]
    assert result.output_for_node("send") == [{"sent": lead["email"]} for lead in LEADS]
    assert set(campaign.ledger().values()) == {RecordStatus.DONE}


def test_a_run_that_is_retried_sends_nothing_twice(campaign: Campaign) -> None:
    first = campaign.run()
    second = campaign.run(tags=retries(first))
    assert len(campaign.sent) == len(LEADS)
    assert second.output_for_node("send") == first.output_for_node("send")


@both_databases
def test_an_outage_pauses_the_run_and_the_next_attempt_goes_on(campaign: Campaign) -> None:
    def fail(_: dict) -> None:
        if len(campaign.sent) == 2:
            raise ServiceDown("instantly answers 503")

    campaign.fail = fail
    paused = campaign.run()
    dagster_run = campaign.instance.get_run_by_id(paused.run_id)
    assert dagster_run is not None
    assert dagster_run.status is dg.DagsterRunStatus.CANCELED
    assert dagster_run.tags[STATE_TAG] == "paused"
    assert dagster_run.tags[SERVICE_TAG] == "instantly"
    assert dagster_run.tags[REASON_TAG].startswith("instantly is open (")
    assert campaign.campaign_run.status is RunStatus.PAUSED
    reason = campaign.campaign_run.reason
    assert reason is not None
    assert reason.startswith("Paused at 2/5: instantly is open (")
    # There is no gate in this test, and the run must not claim that one resumes it.
    assert "; resumes only once a gate knows the campaign outreach: " in reason
    statuses = list(campaign.ledger().values())
    assert statuses.count(RecordStatus.DONE) == 2
    assert statuses.count(RecordStatus.WAITING) == len(statuses) - 2, "no record is in doubt"

    campaign.fail = lambda _: None
    campaign.breakers.breaker("instantly").close()
    resumed = campaign.run()
    assert resumed.success
    assert campaign.sent == [lead["email"] for lead in LEADS]
    assert resumed.output_for_node("send") == [{"sent": lead["email"]} for lead in LEADS]
    assert campaign.campaign_run.attempt == 2
    dagster_run = campaign.instance.get_run_by_id(paused.run_id)
    assert dagster_run is not None
    assert dagster_run.tags[STATE_TAG] == "resumed", "who looks for paused runs finds others"


def test_a_pause_is_no_failure_and_says_so_to_hooks(campaign: Campaign) -> None:
    campaign.hold(OUTREACH)
    result = campaign.run()
    failures = result.get_step_failure_events()
    assert [event.step_key for event in failures] == ["send"]
    assert error_of(result).cls_name == CampaignPaused.__name__
    kinds = {event.event_type for event in result.all_events}
    assert dg.DagsterEventType.RUN_FAILURE not in kinds
    assert dg.DagsterEventType.RUN_CANCELED in kinds


def test_a_hold_of_a_person_stops_before_the_next_record(campaign: Campaign) -> None:
    campaign.after = lambda: campaign.hold(OUTREACH) if len(campaign.sent) == 3 else None
    campaign.run()
    assert len(campaign.sent) == 3
    assert campaign.campaign_run.reason == (
        "Paused at 3/5: campaign outreach is held by ana (maintenance); resumes only once a gate "
        "knows the campaign outreach: see 'tidegate doctor'"
    )
    campaign.release(OUTREACH)
    campaign.run()
    assert campaign.sent == [lead["email"] for lead in LEADS]


def test_a_step_that_no_longer_needs_the_service_is_not_stopped(campaign: Campaign) -> None:
    campaign.after = lambda: campaign.hold(INSTANTLY) if len(campaign.sent) == 5 else None
    result = campaign.run()
    assert result.success
    assert result.output_for_node("load") == [lead["email"] for lead in LEADS]


def test_a_step_whose_downstream_needs_the_service_is_stopped(
    instance: dg.DagsterInstance, breakers: BreakerResource
) -> None:
    @dg.op(pool=pool("openai"))
    def write(context: dg.OpExecutionContext, breakers: BreakerResource) -> list:
        for record in breakers.records(context, LEADS, key="email"):
            with record:
                record.result = 1
        return []

    @dg.op(pool=pool("instantly"))
    def send(letters: list) -> None:
        pass

    @dg.job
    def outreach() -> None:
        send(write())

    helper = Campaign(instance, breakers)
    helper.hold(INSTANTLY)
    result = outreach.execute_in_process(
        instance=instance, resources={"breakers": breakers}, raise_on_error=False
    )
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.CANCELED


def test_a_record_that_fails_for_its_own_reasons_does_not_stop_the_others(
    campaign: Campaign,
) -> None:
    def fail(lead: dict) -> None:
        if lead["email"].startswith("kurt"):
            raise ValueError("no such mailbox")

    campaign.fail = fail
    result = campaign.run()
    assert result.success
    assert len(campaign.sent) == 4
    assert campaign.ledger()["kurt@example.org"] is RecordStatus.FAILED
    store = campaign.breakers.store
    with store.read() as conn:
        error = conn.scalar(sa.select(t.ledger.c.error).where(t.ledger.c.status == "failed"))
    assert error == "ValueError('no such mailbox')"


def test_the_ledger_and_the_log_keep_no_secret_of_an_error(campaign: Campaign) -> None:
    def fail(lead: dict) -> None:
        if lead["email"].startswith("kurt"):
            raise ValueError(f"no lead {lead['email']} with api_key=s3cr3t-77")

    campaign.fail = fail
    result = campaign.run()
    with campaign.breakers.store.read() as conn:
        error = conn.scalar(sa.select(t.ledger.c.error).where(t.ledger.c.status == "failed"))
    assert error == "ValueError('no lead *** with api_key=***')"
    logged = [entry.user_message for entry in campaign.instance.all_logs(result.run_id)]
    assert not [message for message in logged if "s3cr3t" in message]


def test_a_run_that_completes_with_failed_records_says_so_in_dagster(campaign: Campaign) -> None:
    def fail(lead: dict) -> None:
        if not lead["email"].startswith("ada"):
            raise ValueError(f"no such mailbox: {lead['email']}")

    campaign.options["max_failed"] = 0.9
    campaign.fail = fail
    result = campaign.run()
    assert result.success
    run = campaign.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.tags["tidegate/failed"] == "4"
    logged = [entry.user_message for entry in campaign.instance.all_logs(result.run_id)]
    said = "4 of 5 records failed: ValueError('no such mailbox: ***') x4"
    assert [message for message in logged if said in message], logged

    campaign.fail = lambda _: None
    repeated = campaign.instance.get_run_by_id(campaign.run().run_id)
    assert repeated is not None
    assert "tidegate/failed" not in repeated.tags


def test_a_run_of_which_most_records_fail_is_a_failure(campaign: Campaign) -> None:
    campaign.fail = lambda _: 1 / 0
    result = campaign.run()
    assert not result.success
    run = campaign.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.FAILURE


def test_failed_records_are_tried_again_when_a_failed_run_is_retried(
    campaign: Campaign,
) -> None:
    def fail(lead: dict) -> None:
        if lead["email"].startswith("kurt"):
            raise ValueError("no such mailbox")

    campaign.fail = fail
    first = campaign.run()
    store = campaign.breakers.store
    with store.begin() as conn:
        runs.move(conn, store.now(conn), campaign.campaign_run, RunStatus.FAILED, actor="gate")
    campaign.fail = lambda _: None
    campaign.run(tags=retries(first))
    assert set(campaign.ledger().values()) == {RecordStatus.DONE}
    assert len(campaign.sent) == 5


def test_a_record_that_the_service_failed_is_tried_again_with_the_same_key(
    campaign: Campaign,
) -> None:
    tries: list[str] = []

    def fail(lead: dict) -> None:
        tries.append(lead["email"])
        if tries.count(lead["email"]) < 2 and lead["email"].startswith("ada"):
            raise ServiceDown("a hiccup")

    campaign.fail = fail
    assert campaign.run().success
    assert tries.count("ada@example.org") == 2
    assert len(campaign.sent) == 5


def test_idempotency_keys_are_the_same_in_every_attempt_and_differ_between_records(
    instance: dg.DagsterInstance, breakers: BreakerResource
) -> None:
    first, second = Campaign(instance, breakers), Campaign(instance, breakers)
    first.items = LEADS[:2]
    result = first.run()
    store = breakers.store
    with store.begin() as conn:
        conn.execute(t.ledger.delete())
    second.items = LEADS[:2]
    second.run(tags=retries(result))
    assert first.keys == second.keys
    assert len(set(first.keys)) == 2


def test_a_repeated_key_is_handled_once(campaign: Campaign) -> None:
    campaign.items = [*LEADS, LEADS[0]]
    result = campaign.run()
    assert len(campaign.sent) == 5
    assert len(result.output_for_node("send")) == 5


@pytest.mark.parametrize("missing", [{}, {"email": None}, {"email": ""}, {"email": float("nan")}])
def test_a_missing_key_names_the_row(campaign: Campaign, missing: dict) -> None:
    campaign.items = [*LEADS, missing]
    result = campaign.run()
    assert not result.success
    error = error_of(result)
    assert error.cls_name == MissingKeyError.__name__
    assert "row 5 has no key ('email')" in error.message


def test_rows_of_a_frame_are_records(campaign: Campaign) -> None:
    campaign.items = pd.DataFrame(LEADS)
    assert campaign.run().success
    assert campaign.sent == [lead["email"] for lead in LEADS]


def test_a_generator_of_records_is_worked_through(campaign: Campaign) -> None:
    campaign.items = (lead for lead in LEADS)
    assert campaign.run().success
    assert campaign.sent == [lead["email"] for lead in LEADS]


def test_a_result_that_json_can_not_hold_ends_the_op_and_names_the_record(
    instance: dg.DagsterInstance, breakers: BreakerResource
) -> None:
    @dg.op
    def send(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
        for record in breakers.records(context, LEADS, key="email"):
            with record:
                record.result = object()

    @dg.job
    def outreach() -> None:
        send()

    result = outreach.execute_in_process(
        instance=instance, resources={"breakers": breakers}, raise_on_error=False
    )
    error = error_of(result)
    assert "ada@example.org can't be kept in the ledger" in error.message


def test_a_canary_works_while_its_breaker_is_half_open(campaign: Campaign) -> None:
    breaker = campaign.breakers.breaker("instantly")
    breaker.open()
    breaker.half_open()
    campaign.run()
    assert campaign.sent == [], "any other run stays paused"
    assert campaign.run(tags={CANARY_TAG: "instantly"}).success
    assert len(campaign.sent) == 5


def test_progress_is_in_the_store(campaign: Campaign) -> None:
    campaign.run()
    with campaign.breakers.store.read() as conn:
        row = conn.execute(sa.select(t.progress).where(t.progress.c.op == "send")).one()
    assert (row.done, row.failed, row.total) == (5, 0, 5)


@both_databases
def test_a_newer_attempt_ends_the_older_one(campaign: Campaign) -> None:
    """A run that Dagster called ended lives on: its next write is refused."""

    def take_over() -> None:
        store = campaign.breakers.store
        with store.begin() as conn:
            runs.begin_attempt(
                conn, store.now(conn), campaign.campaign_run, "another", owner_is_over=True
            )

    campaign.after = lambda: take_over() if len(campaign.sent) == 2 else None
    result = campaign.run()
    assert not result.success
    error = error_of(result)
    assert "attempt 2 owns the campaign run" in error.message
    assert len(campaign.sent) == 2


def execute(
    job: dg.JobDefinition, instance: dg.DagsterInstance, breakers: BreakerResource
) -> dg.ExecuteInProcessResult:
    return job.execute_in_process(
        instance=instance, resources={"breakers": breakers}, raise_on_error=False
    )


def resumed_twice(campaign: Campaign) -> tuple[dg.DagsterRun, dg.DagsterRun]:
    """Pause a run, and let two daemons request its next attempt; the first of the two completes."""
    campaign.hold(INSTANTLY)
    paused = campaign.run().run_id
    campaign.release(INSTANTLY)
    tags = {"dagster/run_key": request_key(campaign.campaign_run.id, 1), PARENT_RUN_ID_TAG: paused}
    first, second = (campaign.create(tags) for _ in range(2))
    assert campaign.execute(first).is_success
    campaign.end(RunStatus.COMPLETED)
    return first, second


def test_the_later_of_two_runs_that_resume_is_not_needed_and_neither_is_its_retry(
    campaign: Campaign,
) -> None:
    first, second = resumed_twice(campaign)
    attempts = campaign.attempts()
    assert campaign.execute(second).status is dg.DagsterRunStatus.CANCELED
    # Dagster may fail a run that was launched twice, and retries it.
    retry = campaign.create(RETRY, second)
    assert not was_superseded(retry)
    ended = campaign.execute(retry)
    assert ended.status is dg.DagsterRunStatus.CANCELED
    assert was_superseded(ended)
    assert ended.tags[SUPERSEDED_TAG] == first.run_id
    assert campaign.attempts() == attempts


def test_a_run_that_dagster_fails_after_it_completed_is_not_retried(campaign: Campaign) -> None:
    first, _ = resumed_twice(campaign)
    attempts = campaign.attempts()
    retry = campaign.create(RETRY, first)
    assert campaign.execute(retry).status is dg.DagsterRunStatus.CANCELED
    assert campaign.attempts() == attempts
    # A person may execute it again.
    again = campaign.create({}, first)
    assert campaign.execute(again).is_success
    assert campaign.attempts()[-1][0] == again.run_id


def test_a_retry_of_a_run_that_never_started_resumes(campaign: Campaign) -> None:
    campaign.hold(INSTANTLY)
    paused = campaign.run().run_id
    campaign.release(INSTANTLY)
    tags = {"dagster/run_key": request_key(campaign.campaign_run.id, 1), PARENT_RUN_ID_TAG: paused}
    retry = campaign.create(RETRY, campaign.create(tags))
    assert campaign.execute(retry).is_success
    assert campaign.sent == [lead["email"] for lead in LEADS]


def test_each_shard_of_a_mapped_op_has_a_ledger_of_its_own(
    instance: dg.DagsterInstance, breakers: BreakerResource
) -> None:
    sent: list[str] = []

    @dg.op(out=dg.DynamicOut())
    def split() -> Iterator[dg.DynamicOutput]:
        for shard in ("north", "south"):
            yield dg.DynamicOutput(shard, mapping_key=shard)

    @dg.op
    def send(context: dg.OpExecutionContext, breakers: BreakerResource, shard: str) -> None:
        for record in breakers.records(context, LEADS[:2], key="email"):
            with record:
                sent.append(f"{shard} {record.key}")

    @dg.job
    def mapped() -> None:
        split().map(send)

    assert execute(mapped, instance, breakers).success
    assert len(sent) == len(set(sent)) == 4


def test_two_loops_of_an_op_need_names_and_then_both_work(
    instance: dg.DagsterInstance, breakers: BreakerResource
) -> None:
    handled: list[str] = []

    @dg.op(config_schema={"named": bool})
    def verify_and_send(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
        for name in ("verify", "send"):
            chosen = name if context.op_config["named"] else None
            for record in breakers.records(context, LEADS, key="email", name=chosen):
                with record:
                    handled.append(f"{name} {record.key}")

    @dg.job
    def both() -> None:
        verify_and_send()

    def run(named: bool) -> dg.ExecuteInProcessResult:
        return both.execute_in_process(
            instance=instance,
            resources={"breakers": breakers},
            raise_on_error=False,
            run_config={"ops": {"verify_and_send": {"config": {"named": named}}}},
        )

    refused = run(named=False)
    assert "give each of its loops a name" in error_of(refused).message
    handled.clear()
    assert run(named=True).success
    assert len(handled) == len(set(handled)) == 2 * len(LEADS)


def test_a_loop_that_is_iterated_again_repeats_nothing(
    instance: dg.DagsterInstance, breakers: BreakerResource
) -> None:
    sent: list[str] = []

    @dg.op
    def send(context: dg.OpExecutionContext, breakers: BreakerResource) -> list:
        records = breakers.records(context, LEADS, key="email")
        for part in (islice(records, 2), records):
            for record in part:
                with record:
                    sent.append(record.key)
                    record.result = record.key
        return records.results()

    @dg.job
    def outreach() -> None:
        send()

    result = execute(outreach, instance, breakers)
    assert sent == [lead["email"] for lead in LEADS]
    assert result.output_for_node("send") == sent


def test_a_branch_that_begins_after_another_paused_the_run_is_paused_too(
    instance: dg.DagsterInstance, breakers: BreakerResource
) -> None:
    @dg.op(pool=pool("instantly"))
    def send(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
        for record in breakers.records(context, LEADS, key="email"):
            with record:
                pass

    @dg.op(retry_policy=dg.RetryPolicy(max_retries=2))
    def tidy(context: dg.OpExecutionContext, breakers: BreakerResource) -> None:
        for record in breakers.records(context, LEADS, key="email"):
            with record:
                pass

    @dg.job
    def branches() -> None:
        send()
        tidy()

    Campaign(instance, breakers).hold(INSTANTLY)
    result = execute(branches, instance, breakers)
    kinds = [event.event_type for event in result.all_events]
    assert dg.DagsterEventType.STEP_UP_FOR_RETRY not in kinds
    errors = {
        event.step_key: (event.step_failure_data.error.cls_name)
        for event in result.get_step_failure_events()
        if event.step_failure_data.error is not None
    }
    assert set(errors.values()) == {CampaignPaused.__name__}
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.CANCELED


def test_with_the_kill_switch_nothing_pauses(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign.hold(OUTREACH)
    monkeypatch.setattr(campaign.breakers.fleet, "enabled", False)
    assert campaign.run().success
    assert len(campaign.sent) == 5


@both_databases
def test_records_wait_for_a_store_that_is_away_for_a_moment(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy SQLite and a PostgreSQL that restarts look the same from here."""
    write, failures = ledger.write, iter(range(3))

    def away(*arguments: Any) -> bool:
        if next(failures, None) is not None:
            raise OperationalError("INSERT", {}, Exception("the store is away"))
        return write(*arguments)

    monkeypatch.setattr(ledger, "write", away)
    assert campaign.run().success
    assert campaign.sent == [lead["email"] for lead in LEADS]


def test_a_store_that_was_never_made_is_not_waited_for(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    breakers = BreakerResource(services=SERVICES, store_url=f"sqlite:///{tmp_path / 'new.db'}")
    result = Campaign(instance, breakers).run()
    assert "run 'tidegate store upgrade'" in error_of(result).message


@both_databases
def test_a_version_that_the_store_has_left_behind_pauses_between_two_records(
    campaign: Campaign,
) -> None:
    fleet = campaign.breakers.fleet

    def needs(revision: str) -> None:
        with campaign.breakers.store.begin() as conn:
            conn.execute(t.compatibility.delete())
            conn.execute(t.compatibility.insert().values(id=1, oldest_revision=revision))
        fleet.refresh()

    def after() -> None:
        if len(campaign.sent) == 2:
            needs("9999")

    campaign.after = after
    result = campaign.run()
    assert campaign.campaign_run.status is RunStatus.PAUSED
    assert (campaign.campaign_run.reason or "").startswith(f"Paused at 2/5: {fleet.outdated}; ")
    assert str(fleet.outdated).endswith("deploy the version that the store was upgraded with")
    run = campaign.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.CANCELED
    assert run.tags[STATE_TAG] == "paused"
    assert RecordStatus.STARTED not in campaign.ledger().values()
    campaign.run()
    assert len(campaign.sent) == 2, "a run that starts takes no record"
    needs("0001")
    assert campaign.run().success
    assert sorted(campaign.sent) == sorted(lead["email"] for lead in LEADS)
