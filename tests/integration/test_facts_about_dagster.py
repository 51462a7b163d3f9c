"""Facts about Dagster that the gate stands on. A new version that changes one turns it red."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock
from unittest.mock import PropertyMock
from uuid import uuid4

import dagster as dg
import pytest
import yaml
from dagster import DagsterRunStatus
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin
from dagster._core.scheduler.instigation import (
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
    TickStatus,
)
from dagster._core.storage.dagster_run import CANCELABLE_RUN_STATUSES
from dagster._core.workspace.load import location_origins_from_yaml_paths
from dagster._daemon import sensor as sensor_daemon
from dagster._daemon.auto_run_reexecution.event_log_consumer import EventLogConsumerDaemon
from dagster._daemon.backfill import execute_backfill_iteration
from dagster._daemon.monitoring import concurrency as slot_monitoring
from dagster._daemon.monitoring.concurrency import execute_concurrency_slots_iteration
from dagster._grpc.client import DEFAULT_SENSOR_GRPC_TIMEOUT
from dagster_webserver.webserver import DagsterWebserver
from sqlalchemy import event
from sqlalchemy.pool import Pool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from dagster_tidegate.dagster_api import runs as dagster_runs
from dagster_tidegate.dagster_api.kept_instance import keep_connections
from dagster_tidegate.store.takeovers import DEFAULT, UNSET
from tests.integration.gate_deployment import LOCATION, Deployment, deployment
from tests.support.databases import both_deployments
from tests.support.sqlite_stores import new_sqlite_url

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def dagster(
    module_dagster_url: str | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A deployment for all tests of a database that need no settings of their own."""
    folder = tmp_path_factory.mktemp("facts")
    store_url = new_sqlite_url(folder / "tidegate.db")
    settings = {"dagster_url": module_dagster_url, "run_retries": {"enabled": True}}
    with deployment(folder / "home", store_url, **settings) as deployed:
        deployed.up("mail")
        yield deployed


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "dagster" not in request.fixturenames:
        return
    deployed: Deployment = request.getfixturevalue("dagster")
    for pool in deployed.dagster.pools():
        deployed.dagster.set_pool(pool, UNSET)
    for state in deployed.instance.all_instigator_state():
        deployed.instance.delete_instigator_state(state.instigator_origin_id, state.selector_id)
    for run in deployed.instance.get_runs():
        if run.status is DagsterRunStatus.QUEUED:
            deployed.instance.report_run_canceled(run)
        elif not run.is_finished:
            deployed.wait(run.run_id)
    (deployed.home / "calls").unlink(missing_ok=True)


# --- the queue ----------------------------------------------------------------------------------


@both_deployments
def test_limit_0_keeps_a_run_queued_and_the_next_limit_lets_it_go(dagster: Deployment):
    dagster.dagster.set_pool("mail", "0")
    run_id = dagster.launch("postcard")
    dagster.dequeue()
    assert dagster.status(run_id) is DagsterRunStatus.QUEUED
    dagster.dagster.set_pool("mail", "1")
    dagster.dequeue()
    assert dagster.status(run_id) is not DagsterRunStatus.QUEUED


def test_a_pool_without_a_limit_row_lets_everything_through(dagster: Deployment):
    assert "mail" not in dagster.dagster.pools()
    run_id = dagster.launch("postcard")
    dagster.dequeue()
    assert dagster.status(run_id) is not DagsterRunStatus.QUEUED


def test_with_granularity_op_a_run_with_an_unpooled_first_op_is_launched(
    dagster: Deployment, tmp_path: Path, sqlite_url: str
):
    pools = {"pools": {"granularity": "op"}}
    with deployment(tmp_path / "home", sqlite_url, beside=dagster, concurrency=pools) as deployed:
        deployed.dagster.set_pool("mail", "0")
        pooled, unpooled = deployed.launch("postcard"), deployed.launch("prepared_postcard")
        deployed.dequeue()
        assert deployed.status(pooled) is DagsterRunStatus.QUEUED
        assert deployed.status(unpooled) is not DagsterRunStatus.QUEUED
        deployed.dagster.set_pool("mail", "1")
        deployed.wait(unpooled)


def test_with_granularity_run_a_run_with_an_unpooled_first_op_is_queued(dagster: Deployment):
    dagster.dagster.set_pool("mail", "0")
    run_id = dagster.launch("prepared_postcard")
    dagster.dequeue()
    assert dagster.status(run_id) is DagsterRunStatus.QUEUED


def test_a_run_buffer_of_1_lets_a_run_through_a_limit_of_0(
    dagster: Deployment, tmp_path: Path, sqlite_url: str
):
    pools = {"pools": {"granularity": "op", "op_granularity_run_buffer": 1}}
    with deployment(tmp_path / "home", sqlite_url, beside=dagster, concurrency=pools) as deployed:
        deployed.dagster.set_pool("mail", "0")
        run_id = deployed.launch("postcard")
        deployed.dequeue()
        assert deployed.status(run_id) is not DagsterRunStatus.QUEUED
        deployed.dagster.set_pool("mail", "1")
        deployed.wait(run_id)


def test_dagster_makes_a_pool_follow_the_default_when_a_run_waits_for_it(
    dagster: Deployment, tmp_path: Path, sqlite_url: str
):
    pools = {"pools": {"granularity": "run", "default_limit": 3}}
    with deployment(tmp_path / "home", sqlite_url, beside=dagster, concurrency=pools) as deployed:
        assert deployed.dagster.pools() == {}
        run_id = deployed.launch("postcard")
        deployed.dequeue()
        assert deployed.dagster.pools() == {"mail": DEFAULT}
        deployed.wait(run_id)


def test_a_limit_set_and_set_back_does_not_follow_the_default_any_more(
    dagster: Deployment, tmp_path: Path, sqlite_url: str
):
    pools = {"pools": {"granularity": "run", "default_limit": 3}}
    with deployment(tmp_path / "home", sqlite_url, beside=dagster, concurrency=pools) as deployed:
        deployed.dagster.set_pool("mail", DEFAULT)
        assert deployed.dagster.pools() == {"mail": DEFAULT}
        storage = deployed.instance.event_log_storage
        storage.set_concurrency_slots("mail", 0)
        storage.set_concurrency_slots("mail", 3)
        assert deployed.dagster.pools() == {"mail": "3"}
        storage.initialize_concurrency_limit_to_default("mail")
        assert deployed.dagster.pools() == {"mail": "3"}, "making it anew is needed, no more"
        deployed.dagster.set_pool("mail", DEFAULT)
        assert deployed.dagster.pools() == {"mail": DEFAULT}


@both_deployments
@pytest.mark.parametrize("value", ["0", "1", "7", UNSET])
def test_a_pool_takes_any_limit_and_none(dagster: Deployment, value: str):
    dagster.dagster.set_pool("mail", "5")
    dagster.dagster.set_pool("mail", value)
    assert dagster.dagster.pools().get("mail", UNSET) == value


def test_pools_are_frozen_into_a_run_when_it_is_created(dagster: Deployment):
    dagster.dagster.set_pool("mail", "0")
    run = dagster.instance.get_run_by_id(dagster.launch("postcard"))
    assert run is not None
    assert run.run_op_concurrency is not None
    assert run.run_op_concurrency.all_pools == {"mail"}


def test_a_tag_makes_a_queued_run_first_in_the_queue(dagster: Deployment):
    dagster.dagster.set_pool("mail", "0")
    first, second = dagster.launch("postcard"), dagster.launch("postcard")
    dagster.instance.add_run_tags(second, {"dagster/priority": "1000000"})
    dagster.dagster.set_pool("mail", "1")
    dagster.dequeue()
    assert dagster.status(first) is DagsterRunStatus.QUEUED
    assert dagster.status(second) is not DagsterRunStatus.QUEUED


def test_with_granularity_run_a_run_keeps_its_place_until_it_ends(dagster: Deployment):
    dagster.dagster.set_pool("mail", "1")
    first, second = dagster.launch("postcard"), dagster.launch("postcard")
    dagster.dequeue()
    dagster.dequeue()
    assert dagster.status(second) is DagsterRunStatus.QUEUED
    dagster.wait(first)
    dagster.dequeue()
    assert dagster.status(second) is not DagsterRunStatus.QUEUED


# --- runs that a sensor asks for ----------------------------------------------------------------


@both_deployments
def test_a_repeated_run_key_is_dropped_silently(dagster: Deployment):
    dagster.dagster.set_pool("mail", "0")
    before = len(dagster.instance.get_runs())
    dagster.tick("same_key")
    assert len(dagster.instance.get_runs()) == before + 1
    tick = dagster.tick("same_key")
    assert len(dagster.instance.get_runs()) == before + 1
    assert tick.run_ids == []


def _fail(deployed: Deployment, run_id: str) -> dg.DagsterRun:
    run = deployed.instance.get_run_by_id(run_id)
    assert run is not None
    deployed.instance.report_run_failed(run)
    failed = deployed.instance.get_run_by_id(run_id)
    assert failed is not None
    return failed


def test_run_retries_count_the_whole_group_of_a_reexecution(dagster: Deployment):
    dagster.dagster.set_pool("mail", "0")
    budget = {"dagster/max_retries": "1"}
    root = _fail(dagster, dagster.launch("postcard", tags=budget))
    assert auto_reexecution_should_retry_run(dagster.instance, root, None)
    again = _fail(dagster, dagster.launch("postcard", tags=budget, again_after=root))
    assert not auto_reexecution_should_retry_run(dagster.instance, again, None)


def test_a_run_with_the_tags_of_a_lineage_alone_has_a_retry_budget_of_its_own(
    dagster: Deployment,
):
    dagster.dagster.set_pool("mail", "0")
    budget = {"dagster/max_retries": "1"}
    root = dagster.launch("postcard", tags=budget)
    lineage = {"dagster/root_run_id": root, "dagster/parent_run_id": root}
    run = _fail(dagster, dagster.launch("postcard", tags=lineage | budget))
    assert auto_reexecution_should_retry_run(dagster.instance, run, None)
    _, group = dagster.instance.get_run_group(root) or ("", [])
    assert {member.run_id for member in group} == {root, run.run_id}, "and yet it is shown"


def test_stopping_a_sensor_in_mid_tick_drops_requests_only_where_the_instance_looks(
    dagster: Deployment,
):
    dagster.dagster.set_pool("mail", "0")
    before = len(dagster.instance.get_runs())
    sensor = dagster.repository.get_sensor("two_requests")
    dagster.instance.start_sensor(sensor)
    # Open source Dagster never looks; Dagster+ does after so many runs, and drops the others.
    assert dagster.instance.get_tick_termination_check_interval() is None
    for asked_for in range(2):
        with mock.patch.object(
            type(dagster.instance),
            "get_tick_termination_check_interval",
            lambda _instance, asked_for=asked_for: 1 if asked_for else None,
        ):
            for _ in dagster.steps("two_requests"):
                if len(dagster.instance.get_runs()) == before + 1:
                    dagster.instance.stop_sensor(
                        sensor.get_remote_origin_id(), sensor.selector_id, None
                    )
        expected = 1 if asked_for else 2
        assert len(dagster.instance.get_runs()) == before + expected
        for run in dagster.instance.get_runs(limit=expected):
            dagster.instance.delete_run(run.run_id)
        dagster.instance.start_sensor(sensor)


def test_a_sensor_that_keeps_failing_stays_on_and_starts_nothing_that_could_alert(
    dagster: Deployment,
):
    dagster.instance.start_sensor(dagster.repository.get_sensor("broken"))
    before = len(dagster.instance.get_runs())
    for _ in range(3):
        for _ in dagster.steps("broken"):
            pass
        tick = dagster.last_tick("broken")
        assert tick.status is TickStatus.FAILURE
        assert tick.error is not None
        assert "this sensor is broken" in tick.error.to_string()
    assert dagster.trigger_states()["broken"] == "RUNNING"
    assert len(dagster.instance.get_runs()) == before


def test_the_daemon_looks_at_sensors_every_5_seconds_and_gives_each_60():
    assert sensor_daemon.MIN_INTERVAL_LOOP_TIME == 5
    assert DEFAULT_SENSOR_GRPC_TIMEOUT == 60


# --- changes of runs ----------------------------------------------------------------------------


def test_a_statement_of_our_own_reads_the_same_changes_as_dagster(dagster: Deployment):
    dagster.dagster.set_pool("mail", "0")
    since = datetime.now(UTC) - HOUR
    run_id = dagster.launch("postcard")
    own = dagster.dagster.changes(since, 1000)
    assert run_id in {change.run.run_id for change in own}
    # As if the table had other columns in another version of Dagster.
    with mock.patch.object(dagster_runs, "CHANGE_COLUMNS", ("no_such_column",)):
        assert dagster.dagster.changes(since, 1000) == own


# --- running work -------------------------------------------------------------------------------

EXECUTORS = ["pauses_in_one_process", "pauses_in_two_processes"]


def _events(deployed: Deployment, run_id: str) -> list[str]:
    return [
        entry.dagster_event.event_type_value
        for entry in deployed.instance.all_logs(run_id)
        if entry.dagster_event is not None
    ]


@pytest.mark.parametrize("job", EXECUTORS)
def test_reported_as_canceling_a_run_that_raises_ends_canceled(dagster: Deployment, job: str):
    dagster.tick("alarm")
    run_id = dagster.launch(job)
    dagster.dequeue()
    assert dagster.wait(run_id) == "CANCELED"
    events = _events(dagster, run_id)
    assert "PIPELINE_FAILURE" not in events
    # The op has a retry policy; `allow_retries=False` keeps it out.
    assert "STEP_UP_FOR_RETRY" not in events
    # For Dagster the step failed all the same: op failure hooks fire, run failure sensors don't.
    assert "STEP_FAILURE" in events
    dagster.tick("alarm")
    assert "hook Failure" in dagster.calls()
    assert not any(call.startswith("alarm") for call in dagster.calls())
    (dagster.home / "calls").unlink()


def test_run_failure_sensors_tell_of_failures_and_run_retries_retry_only_those(
    dagster: Deployment,
):
    dagster.up("mail")
    dagster.dagster.set_pool("mail", "0")
    retries = EventLogConsumerDaemon()
    dagster.tick("alarm")
    list(retries.run_iteration(dagster.workspace))
    budget = {"dagster/max_retries": "1"}
    cancelled, failed = (dagster.launch("postcard", tags=budget) for _ in range(2))
    run = dagster.instance.get_run_by_id(cancelled)
    assert run is not None
    dagster.instance.report_run_canceling(run)
    dagster.instance.report_run_canceled(run)
    _fail(dagster, failed)
    dagster.tick("alarm")
    assert dagster.calls() == [f"alarm {failed}"]
    for error in retries.run_iteration(dagster.workspace):
        assert not error
    retried = [run.parent_run_id for run in dagster.instance.get_runs(limit=10)]
    assert failed in retried
    assert cancelled not in retried


def test_a_run_in_starting_can_not_be_cancelled(dagster: Deployment):
    assert DagsterRunStatus.STARTING not in CANCELABLE_RUN_STATUSES
    assert {DagsterRunStatus.QUEUED, DagsterRunStatus.STARTED} == set(CANCELABLE_RUN_STATUSES)
    dagster.dagster.set_pool("mail", "0")
    run_id = dagster.launch("postcard")
    dagster.instance.report_dagster_event(dg.DagsterEvent("PIPELINE_STARTING", "postcard"), run_id)
    with TestClient(DagsterWebserver(dagster.workspace).create_asgi_app()) as client:
        answer = client.post("/graphql", json={"query": TERMINATE, "variables": {"run": run_id}})
    assert answer.json()["data"]["terminateRun"]["__typename"] == "TerminateRunFailure"
    assert dagster.status(run_id) is DagsterRunStatus.STARTING
    run = dagster.instance.get_run_by_id(run_id)
    assert run is not None
    dagster.instance.report_run_canceled(run)


TERMINATE = """
mutation Terminate($run: String!) { terminateRun(runId: $run) { __typename } }
"""


def test_a_run_that_was_cancelled_by_force_can_come_back_as_a_success(dagster: Deployment):
    dagster.down("mail")
    run_id = dagster.launch("waiting")
    dagster.dequeue()
    dagster.wait(run_id, DagsterRunStatus.STARTED)
    run = dagster.instance.get_run_by_id(run_id)
    assert run is not None
    dagster.instance.report_run_canceled(run)
    assert dagster.status(run_id) is DagsterRunStatus.CANCELED
    dagster.up("mail")
    assert dagster.wait(run_id, DagsterRunStatus.SUCCESS) == "SUCCESS"


def test_a_run_that_was_launched_twice_fails_if_it_is_canceled_between_two_steps_of_its_end():
    """Dagster asks whether it is being cancelled; that it was canceled by then does not count."""

    @dg.op
    def end(context: dg.OpExecutionContext) -> None:
        context.instance.report_run_canceling(context.run)
        context.instance.report_run_canceled(context.run)  # as the other worker does
        raise dg.Failure(allow_retries=False)

    @dg.job
    def launched_twice() -> None:
        end()

    with dg.DagsterInstance.ephemeral() as instance:
        result = launched_twice.execute_in_process(instance=instance, raise_on_error=False)
        run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.status is DagsterRunStatus.FAILURE


@both_deployments
def test_a_run_that_is_cancelled_keeps_its_slot_unless_monitoring_frees_it(dagster: Deployment):
    slots = dagster.instance.event_log_storage
    slots.set_concurrency_slots("mail", 1)
    run_id = dagster.launch("postcard")
    slots.claim_concurrency_slot("mail", run_id, "send_one")
    run = dagster.instance.get_run_by_id(run_id)
    assert run is not None
    dagster.instance.report_run_canceled(run)
    assert slots.get_concurrency_info("mail").active_slot_count == 1
    later = datetime.now(UTC) + timedelta(minutes=10)
    for monitoring, kept in (({}, 1), ({"free_slots_after_run_end_seconds": 1}, 0)):
        with (
            mock.patch.object(slot_monitoring, "get_current_datetime", return_value=later),
            mock.patch.object(
                dg.DagsterInstance, "run_monitoring_settings", PropertyMock(return_value=monitoring)
            ),
        ):
            list(execute_concurrency_slots_iteration(dagster.workspace, logging.getLogger()))
        assert slots.get_concurrency_info("mail").active_slot_count == kept


# --- schedules ----------------------------------------------------------------------------------


def _schedule_state(deployed: Deployment, name: str):
    schedule = deployed.repository.get_schedule(name)
    return deployed.instance.get_instigator_state(
        schedule.get_remote_origin_id(), schedule.selector_id
    )


def _start(deployed: Deployment, status: InstigatorStatus, at: datetime) -> None:
    state = _schedule_state(deployed, "daily_atlas")
    assert state is not None
    data = ScheduleInstigatorData("30 3 * * *", at.timestamp())
    deployed.instance.update_instigator_state(state.with_status(status).with_data(data))


def _atlas_runs(deployed: Deployment) -> int:
    return len(deployed.instance.get_runs(dg.RunsFilter(job_name="atlas_job")))


@both_deployments
def test_stop_schedule_works_where_a_row_exists_and_asserts_where_none_does(dagster: Deployment):
    schedule = dagster.repository.get_schedule("daily_atlas")
    ids = schedule.get_remote_origin_id(), schedule.selector_id
    with pytest.raises(AssertionError):
        dagster.instance.stop_schedule(*ids, None)
    dagster.schedules(datetime(2026, 3, 1, tzinfo=UTC))
    assert dagster.trigger_states() == {"daily_atlas": "DECLARED_IN_CODE"}
    dagster.instance.stop_schedule(*ids, None)
    assert dagster.trigger_states() == {"daily_atlas": "STOPPED"}


def test_a_tick_missed_while_stopped_is_gone(dagster: Deployment):
    start = datetime(2026, 3, 1, tzinfo=UTC)
    dagster.schedules(start)
    schedule = dagster.repository.get_schedule("daily_atlas")
    dagster.instance.stop_schedule(schedule.get_remote_origin_id(), schedule.selector_id, None)
    before = _atlas_runs(dagster)
    dagster.schedules(start + 5 * HOUR)
    _start(dagster, InstigatorStatus.DECLARED_IN_CODE, start + 6 * HOUR)
    dagster.schedules(start + 7 * HOUR)
    assert _atlas_runs(dagster) == before
    assert dagster.trigger_states() == {"daily_atlas": "DECLARED_IN_CODE"}


def test_declared_in_code_written_back_runs_from_its_new_start(dagster: Deployment):
    dagster.dagster.set_pool("maps", "0")
    start = datetime(2026, 3, 3, tzinfo=UTC)
    dagster.schedules(start)
    schedule = dagster.repository.get_schedule("daily_atlas")
    dagster.instance.stop_schedule(schedule.get_remote_origin_id(), schedule.selector_id, None)
    due = start + 2.5 * HOUR  # 03:30 in Berlin
    _start(dagster, InstigatorStatus.DECLARED_IN_CODE, due)
    before = _atlas_runs(dagster)
    dagster.schedules(due + timedelta(seconds=1))
    assert _atlas_runs(dagster) == before + 1, "a tick at the very start belongs to Dagster"


def test_the_scheduler_writes_back_a_row_that_it_read_before_it_was_stopped(dagster: Deployment):
    start = datetime(2026, 3, 5, tzinfo=UTC)
    dagster.schedules(start)
    read = _schedule_state(dagster, "daily_atlas")
    schedule = dagster.repository.get_schedule("daily_atlas")
    dagster.instance.stop_schedule(schedule.get_remote_origin_id(), schedule.selector_id, None)
    # What the scheduler does at the end of a look that began before the stop.
    from dagster._scheduler.scheduler import _write_and_get_next_checkpoint_timestamp

    assert read is not None
    data = read.instigator_data
    assert isinstance(data, ScheduleInstigatorData)
    _write_and_get_next_checkpoint_timestamp(
        dagster.instance,
        read,
        ScheduleInstigatorData(data.cron_schedule, data.start_timestamp),
        (start + HOUR).timestamp(),
    )
    state = dagster.dagster.triggers()[schedule.selector_id]
    assert state.status == "DECLARED_IN_CODE"
    assert state.started_at == start, "a person who starts it gives it a new start"


def test_rows_of_a_code_location_that_is_missing_for_12_hours_are_deleted(dagster: Deployment):
    start = datetime(2026, 3, 7, tzinfo=UTC)
    dagster.schedules(start)
    state = _schedule_state(dagster, "daily_atlas")
    assert state is not None
    gone = state.origin._replace(instigator_name="gone")
    orphan = state._replace(
        origin=gone,
        status=InstigatorStatus.STOPPED,
        instigator_data=ScheduleInstigatorData("0 * * * *", None, start.timestamp()),
    )
    dagster.instance.add_instigator_state(orphan)
    dagster.schedules(start + 11 * HOUR)
    assert "gone" in dagster.trigger_states()
    dagster.schedules(start + 13 * HOUR)
    assert "gone" not in dagster.trigger_states()


# --- other --------------------------------------------------------------------------------------


def test_a_backfill_has_no_paused_status_and_goes_on_enqueueing(dagster: Deployment):
    assert not [status for status in BulkActionStatus if "PAUSE" in status.value]
    for pool in ("mail", "mail@letters"):
        dagster.dagster.set_pool(pool, "0")
    [partitions] = [
        found for found in dagster.repository.get_partition_sets() if found.job_name == "letters"
    ]
    backfill = PartitionBackfill(
        backfill_id=f"fill{uuid4().hex[:6]}",
        status=BulkActionStatus.REQUESTED,
        from_failure=False,
        tags={},
        backfill_timestamp=datetime.now(UTC).timestamp(),
        partition_set_origin=partitions.get_remote_origin(),
        partition_names=["a", "b", "c"],
    )
    dagster.instance.add_backfill(backfill)
    for error in execute_backfill_iteration(dagster.workspace, logging.getLogger()):
        assert not error
    dagster.dequeue()
    found = dagster.instance.get_runs(
        dg.RunsFilter(tags={"dagster/backfill": backfill.backfill_id})
    )
    assert {run.tags["dagster/partition"]: run.status for run in found} == dict.fromkeys(
        "abc", DagsterRunStatus.QUEUED
    )
    now = dagster.instance.get_backfill(backfill.backfill_id)
    assert now is not None
    assert now.status is BulkActionStatus.REQUESTED
    dagster.instance.update_backfill(now.with_status(BulkActionStatus.CANCELED))


def test_a_python_file_of_a_workspace_is_relative_to_it_and_a_python_module_is_not(tmp_path: Path):
    workspace = tmp_path / "workspace.yaml"
    python_file = {"relative_path": "code/defs.py", "working_directory": "code"}
    python_module = {"module_name": "defs", "working_directory": "code"}
    load_from = [{"python_file": python_file}, {"python_module": python_module}]
    workspace.write_text(yaml.safe_dump({"load_from": load_from}))
    of_file, of_module = location_origins_from_yaml_paths([str(workspace)])
    assert isinstance(of_file, ManagedGrpcPythonEnvCodeLocationOrigin)
    assert isinstance(of_module, ManagedGrpcPythonEnvCodeLocationOrigin)
    assert of_file.loadable_target_origin.python_file == str(tmp_path / "code" / "defs.py")
    assert of_file.loadable_target_origin.working_directory == str(tmp_path / "code")
    assert of_module.loadable_target_origin.working_directory != str(tmp_path / "code")


class OurWebserver(DagsterWebserver):
    """Dagster's, with a page of ours."""

    def build_routes(self):
        return [Route("/ours", self._ours), *super().build_routes()]

    async def _ours(self, _request: Request) -> JSONResponse:
        with self._process_context.create_request_context() as context:
            return JSONResponse(sorted(location.name for location in context.code_locations))


def test_a_webserver_with_more_routes_serves_ours_beside_dagsters(dagster: Deployment):
    app = OurWebserver(dagster.workspace).create_asgi_app()
    with TestClient(app) as client:
        assert client.get("/ours").json() == [LOCATION]
        assert client.get("/server_info").json()["dagster_version"] == dg.__version__


@both_deployments
def test_an_asset_takes_observations_and_checks_without_a_run(dagster: Deployment):
    key = dg.AssetKey(["services", "mail"])
    dagster.instance.report_runless_asset_event(
        dg.AssetObservation(key, metadata={"state": "open"})
    )
    dagster.instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(asset_key=key, check_name="is_up", passed=False)
    )
    [seen] = dagster.instance.fetch_observations(key, limit=1).records
    assert seen.asset_observation is not None
    assert seen.asset_observation.metadata["state"].value == "open"
    check = dg.AssetCheckKey(key, "is_up")
    storage = dagster.instance.event_log_storage
    [evaluated] = storage.get_asset_check_execution_history(check, limit=1)
    assert evaluated.status.value == "FAILED"
    assert (seen.run_id, evaluated.run_id) == ("", "")


# --- statuses -----------------------------------------------------------------------------------


def test_a_suspended_status_exists():
    assert DagsterRunStatus("SUSPENDED") in DagsterRunStatus
    assert InstigatorType.SCHEDULE.value == "SCHEDULE"


# --- connections --------------------------------------------------------------------------------


@pytest.mark.parametrize("module_database", ["postgres"], indirect=True)
def test_on_postgres_dagster_opens_a_connection_for_each_statement_unless_it_keeps_them(
    dagster: Deployment,
):
    def connections_of(instance: dg.DagsterInstance) -> int:
        before = len(opened)
        for _ in range(3):
            instance.event_log_storage.get_pool_limits()
            instance.event_log_storage.set_concurrency_slots("mail", 0)
        return len(opened) - before

    with (
        opened_connections() as opened,
        dg.DagsterInstance.from_ref(dagster.instance.get_ref()) as instance,
    ):
        assert connections_of(instance) >= 6
        keep_connections(instance)
        assert connections_of(instance) == 1
        assert connections_of(instance) == 0


@contextmanager
def opened_connections() -> Iterator[list[object]]:
    """Collect the connections to databases that this process opens."""
    opened: list[object] = []

    def on_connect(connection: object, _: object) -> None:
        opened.append(connection)

    event.listen(Pool, "connect", on_connect)
    try:
        yield opened
    finally:
        event.remove(Pool, "connect", on_connect)
