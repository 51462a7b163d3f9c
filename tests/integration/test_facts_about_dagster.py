"""Facts about Dagster that the gate stands on. A new version that changes one turns it red."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterRunStatus
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.scheduler.instigation import (
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
)

from dagster_tidegate.store.database import Store
from dagster_tidegate.store.tables import metadata
from dagster_tidegate.store.takeovers import DEFAULT, UNSET
from tests.integration.gate_deployment import Deployment, deployment

HOUR = timedelta(hours=1)


@contextmanager
def opened(home: Path, request: pytest.FixtureRequest, kind: str, **settings) -> Iterator:
    database = None
    if kind == "postgres":
        make = request.getfixturevalue("make_database")
        database = (
            make().set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
        )
    store = Store(f"sqlite:///{home}.db")
    metadata.create_all(store.engine)
    with deployment(home, store, dagster_database=database, **settings) as deployed:
        yield deployed
    store.dispose()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def dagster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A deployment for all tests of a database that need no settings of their own."""
    home = tmp_path_factory.mktemp("facts") / request.param
    with opened(home, request, request.param) as deployed:
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


# --- the queue ----------------------------------------------------------------------------------


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
    tmp_path: Path, request: pytest.FixtureRequest
):
    pools = {"pools": {"granularity": "op"}}
    with opened(tmp_path / "home", request, "sqlite", concurrency=pools) as deployed:
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
    tmp_path: Path, request: pytest.FixtureRequest
):
    pools = {"pools": {"granularity": "op", "op_granularity_run_buffer": 1}}
    with opened(tmp_path / "home", request, "sqlite", concurrency=pools) as deployed:
        deployed.dagster.set_pool("mail", "0")
        run_id = deployed.launch("postcard")
        deployed.dequeue()
        assert deployed.status(run_id) is not DagsterRunStatus.QUEUED
        deployed.dagster.set_pool("mail", "1")
        deployed.wait(run_id)


def test_dagster_makes_a_pool_follow_the_default_when_a_run_waits_for_it(
    tmp_path: Path, request: pytest.FixtureRequest
):
    pools = {"pools": {"granularity": "run", "default_limit": 3}}
    with opened(tmp_path / "home", request, "sqlite", concurrency=pools) as deployed:
        assert deployed.dagster.pools() == {}
        run_id = deployed.launch("postcard")
        deployed.dequeue()
        assert deployed.dagster.pools() == {"mail": DEFAULT}
        deployed.wait(run_id)


def test_a_limit_set_and_set_back_does_not_follow_the_default_any_more(
    tmp_path: Path, request: pytest.FixtureRequest
):
    pools = {"pools": {"granularity": "run", "default_limit": 3}}
    with opened(tmp_path / "home", request, "sqlite", concurrency=pools) as deployed:
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


# --- statuses -----------------------------------------------------------------------------------


def test_a_suspended_status_exists():
    assert DagsterRunStatus("SUSPENDED") in DagsterRunStatus
    assert InstigatorType.SCHEDULE.value == "SCHEDULE"
