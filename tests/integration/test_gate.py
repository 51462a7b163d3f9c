"""The gate with a real Dagster: what pauses, and that it is restored exactly as it was."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from unittest import mock
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster import DagsterRunStatus
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.storage.runs import SqlRunStorage
from dagster._core.storage.runs.schema import RunsTable

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api.lineage import CANARY_TAG, partition_of
from dagster_tidegate.gate import follow, tighten_now
from dagster_tidegate.gate.failed_launches import MAX_IN_A_ROW, MAX_WAIT
from dagster_tidegate.gate.follow import Audit
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.missed_ticks import MissedTickPlanner
from dagster_tidegate.gate.queue import MAX_QUEUED
from dagster_tidegate.gate.ticks import breaker_tick, pause_tick, resume_tick
from dagster_tidegate.holds import EVERYTHING, Hold, HoldSource, Target, TargetKind
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import (
    breakers,
    campaigns,
    heartbeats,
    holds,
    ledger,
    push,
    runs,
)
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.store.takeovers import (
    DECLARED_IN_CODE,
    RUNNING,
    STOPPED,
    UNSET,
    TakeoverKind,
)
from tests.benchmarks.gate import counted
from tests.integration.gate_deployment import LOCATION, Deployment, deployment
from tests.support.databases import both_deployments
from tests.support.polling import wait_until

MAIL = Target(TargetKind.SERVICE, "mail")
MAPS = Target(TargetKind.SERVICE, "maps")
LETTERS = Target(TargetKind.CAMPAIGN, "letters")


@pytest.fixture(scope="module")
def shared(
    module_store_url: str,
    module_dagster_url: str | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("gate") / "home"
    with deployment(home, module_store_url, dagster_url=module_dagster_url) as deployed:
        yield deployed


@pytest.fixture
def deployed(shared: Deployment) -> Iterator[Deployment]:
    """The deployment, as if nothing had happened yet."""
    yield shared
    shared.forget()
    shared.forget_triggers()
    for service in ("mail", "maps"):
        shared.down(service)


def hold(deployed: Deployment, target: Target, source: HoldSource = HoldSource.OPERATOR) -> Hold:
    with deployed.store.begin() as conn:
        return holds.place(
            conn, deployed.store.now(conn), target, source=source, reason="test", actor="ann"
        )


def release(deployed: Deployment, target: Target, source: HoldSource = HoldSource.OPERATOR):
    with deployed.store.begin() as conn:
        holds.release(conn, deployed.store.now(conn), target, source=source, actor="ann")


def set_state(deployed: Deployment, service: str, state: BreakerState) -> None:
    with deployed.store.begin() as conn:
        breakers.ensure(conn, deployed.store.now(conn), [service])
        conn.execute(
            t.services.update()
            .where(t.services.c.name == service)
            .values(
                state=state,
                generation=t.services.c.generation + 1,
                opened_at=None if state is BreakerState.CLOSED else deployed.store.now(conn),
                open_until=None if state is BreakerState.CLOSED else deployed.store.now(conn),
            )
        )


def completed(deployed: Deployment, campaign: str, partition: str) -> bool:
    with deployed.store.read() as conn:
        run = runs.find(conn, campaign, partition)
    return run is not None and run.status is RunStatus.COMPLETED


def campaign_run(deployed: Deployment, campaign: str, partition: str) -> CampaignRun:
    with deployed.store.read() as conn:
        run = runs.find(conn, campaign, partition)
    assert run is not None
    return run


def paused(
    deployed: Deployment,
    job: str,
    partition: str | None = None,
    ops: Sequence[str] | None = None,
    **tags: str,
) -> str:
    """Make a Dagster run that has paused itself, and return its id."""
    run_id = deployed.launch(job, partition, tags=tags, ops=ops)
    run = deployed.instance.get_run_by_id(run_id)
    assert run is not None
    with deployed.store.begin() as conn:
        now = deployed.store.now(conn)
        found = runs.ensure(conn, now, job, partition_of(run))
        runs.begin_attempt(conn, now, found, run_id, owner_is_over=True)
        found = runs.find(conn, job, partition_of(run))
        assert found is not None
        runs.move(conn, now, found, RunStatus.PAUSED, reason="held", actor=run_id)
    deployed.instance.add_run_tags(run_id, {"tidegate/state": "paused"})
    deployed.instance.report_run_canceled(run)
    return run_id


def begin_sending(deployed: Deployment, partition: str) -> None:
    """Let a run of letters have called mail before."""
    with deployed.store.begin() as conn:
        conn.execute(
            t.progress.insert().values(
                campaign_run=campaign_run(deployed, "letters", partition).id,
                op="send",
                done=3,
                failed=0,
                total=10,
                position=3,
                series=1,
                exact=True,
                updated_at=deployed.store.now(conn),
            )
        )


def asked(deployed: Deployment, but: str) -> list[dg.DagsterRun]:
    """The runs that there are, but for one."""
    return [run for run in deployed.instance.get_runs() if run.run_id != but]


def gate_of(deployed: Deployment) -> Gate:
    """The gate of the code location, in this process."""
    with deployed.store.read() as conn:
        specs = campaigns.read(conn)
    policies = [ServicePolicy(name=name, ramp_interval_s=0) for name in ("mail", "maps")]
    return Gate(
        deployed.dagster,
        deployed.store,
        {policy.name: policy for policy in policies},
        LOCATION,
        specs,
    )


def outcomes(deployed: Deployment) -> dict[str, str | None]:
    with deployed.store.read() as conn:
        return {row.label: row.outcome for row in conn.execute(sa.select(t.takeovers)).all()}


# --- from pause to completion -------------------------------------------------------------------


@both_deployments
def test_a_run_pauses_in_an_outage_and_its_next_attempt_finishes_it(deployed: Deployment):
    run_id = deployed.launch("letters", "a")
    deployed.gate()
    deployed.dequeue()
    assert deployed.wait(run_id) == "CANCELED"
    deployed.gate()
    assert deployed.dagster.pools()["mail@letters"] == "0"
    queued = deployed.launch("postcard")
    deployed.dequeue()
    assert deployed.status(queued) is DagsterRunStatus.QUEUED

    deployed.up("mail")
    # Launched beside the canary, the queued run may pause once more: its campaign run completes.
    deployed.until(lambda: completed(deployed, "postcard", queued))
    deployed.until(lambda: not deployed.dagster.pools())
    deployed.gate()
    run = campaign_run(deployed, "letters", "a")
    with deployed.store.read() as conn:
        ended = [attempt.outcome for attempt in runs.attempts(conn, run.id)]
    assert run.status is RunStatus.COMPLETED
    assert ended == [RunStatus.PAUSED, RunStatus.COMPLETED]
    assert sorted(deployed.calls()) == sorted([*(f"mail a-{n}" for n in range(10)), "mail one"])


# --- pools, schedules, sensors ------------------------------------------------------------------


@both_deployments
def test_pools_schedules_and_sensors_are_restored_exactly(deployed: Deployment):
    deployed.schedules(datetime.now(UTC))  # Dagster stores that daily_atlas runs
    deployed.start("hourly_letters")
    deployed.tick("new_postcards")
    deployed.gate()
    deployed.dagster.set_pool("mail", "3")
    pools, triggers = deployed.dagster.pools(), deployed.trigger_states()
    assert triggers["daily_atlas"] == triggers["new_postcards"] == "DECLARED_IN_CODE"
    assert triggers["hourly_letters"] == "RUNNING"

    hold(deployed, EVERYTHING)
    deployed.tick("tidegate_pause")
    assert deployed.dagster.pools() == {"mail": "0", "mail@letters": "0", "maps": "0"}
    stopped = deployed.trigger_states()
    for name in ("daily_atlas", "hourly_letters", "new_postcards"):
        assert stopped[name] == "STOPPED"
    assert stopped["tidegate_pause"] == "DECLARED_IN_CODE"

    release(deployed, EVERYTHING)
    deployed.tick("tidegate_resume")
    assert deployed.dagster.pools() == pools
    assert deployed.trigger_states() == triggers
    assert set(outcomes(deployed).values()) == {"restored"}
    assert deployed.tick("tidegate_pause").skip_reason == "nothing is held; nothing to do"


def test_the_scheduler_has_nothing_to_write_into_a_row_that_the_gate_wrote(deployed: Deployment):
    """It writes whole rows as it read them, which would undo a write of the gate in between."""

    def rows() -> dict[str, object]:
        states = deployed.instance.all_instigator_state()
        return {s.name: s for s in states if s.name in ("hourly_letters", "daily_atlas")}

    deployed.start("hourly_letters")
    deployed.schedules(datetime.now(UTC))
    deployed.gate()
    hold(deployed, EVERYTHING)
    deployed.tick("tidegate_pause")
    stopped = rows()
    assert {deployed.trigger_states()[name] for name in stopped} == {"STOPPED"}
    deployed.schedules(datetime.now(UTC))
    assert rows() == stopped

    release(deployed, EVERYTHING)
    deployed.tick("tidegate_resume")
    restored = rows()
    assert deployed.trigger_states()["hourly_letters"] == "RUNNING"
    deployed.schedules(datetime.now(UTC))
    assert rows() == restored


def test_manual_changes_are_never_overwritten(deployed: Deployment):
    deployed.schedules(datetime.now(UTC))
    deployed.gate()
    hold(deployed, MAPS)
    deployed.tick("tidegate_pause")
    deployed.dagster.set_pool("maps", "7")
    deployed.start("daily_atlas")
    for _ in range(2):
        deployed.gate()
        assert deployed.dagster.pools()["maps"] == "7"
        assert deployed.trigger_states()["daily_atlas"] == "RUNNING"
    release(deployed, MAPS)
    deployed.gate()
    assert deployed.dagster.pools()["maps"] == "7"
    assert deployed.trigger_states()["daily_atlas"] == "RUNNING"
    assert outcomes(deployed) == dict.fromkeys(["maps", "daily_atlas"], "left_to_operator")
    with deployed.store.read() as conn:
        told = conn.scalars(sa.select(t.events.c.name).where(t.events.c.reason.like("%person%")))
        assert set(told) == {"pool maps", "schedule daily_atlas"}


def test_an_operators_hold_survives_the_recovery_of_the_service(deployed: Deployment):
    deployed.gate()
    hold(deployed, MAIL, HoldSource.BREAKER)
    hold(deployed, LETTERS)
    deployed.tick("tidegate_pause")
    release(deployed, MAIL, HoldSource.BREAKER)
    deployed.tick("tidegate_resume")
    assert deployed.dagster.pools() == {"mail@letters": "0"}
    release(deployed, LETTERS)
    deployed.tick("tidegate_resume")
    assert deployed.dagster.pools() == {}


def test_a_queued_run_says_once_what_it_waits_for(deployed: Deployment):
    deployed.gate()
    waiting = deployed.launch("letters", "a")
    hold(deployed, MAIL)
    ticks = [deployed.tick("tidegate_pause").skip_reason or "" for _ in range(3)]
    run = deployed.instance.get_run_by_id(waiting)
    assert run is not None
    assert run.tags["tidegate/queued_for"] == "mail"
    events = [entry.dagster_event for entry in deployed.instance.all_logs(waiting)]
    messages = [event.message or "" for event in events if event is not None]
    assert [m for m in messages if "Waits" in m] == [
        "Waits in the queue, held: service mail (operator: test)"
    ]
    assert ["1 queued run tagged with the holds" in tick for tick in ticks] == [True, False, False]


def test_a_campaign_that_does_not_need_the_service_is_left_alone(deployed: Deployment):
    deployed.schedules(datetime.now(UTC))
    deployed.start("hourly_letters")
    deployed.gate()
    hold(deployed, MAPS)
    deployed.tick("tidegate_pause")
    states = deployed.trigger_states()
    assert (states["daily_atlas"], states["hourly_letters"]) == ("STOPPED", "RUNNING")
    assert set(deployed.dagster.pools()) == {"maps"}


def test_a_schedule_that_no_longer_has_the_expected_status_is_not_switched(deployed: Deployment):
    deployed.schedules(datetime.now(UTC))
    schedule = deployed.repository.get_schedule("daily_atlas")

    def stop(*expected: str) -> tuple[str | None, str]:
        before = deployed.dagster.set_trigger(
            TakeoverKind.SCHEDULE,
            schedule.name,
            schedule.selector_id,
            STOPPED,
            datetime.now(UTC),
            expected=expected,
        )
        return before, deployed.trigger_states()["daily_atlas"]

    assert stop(RUNNING, UNSET) == (DECLARED_IN_CODE, DECLARED_IN_CODE)
    assert stop(DECLARED_IN_CODE, UNSET) == (DECLARED_IN_CODE, STOPPED)


@both_deployments
def test_tighten_now_stops_the_queue_at_once_and_two_at_a_time_do_no_harm(
    deployed: Deployment,
):
    deployed.schedules(datetime.now(UTC))
    deployed.gate()
    hold(deployed, MAPS)
    deployed.dagster.set_pool("maps", "4")
    stores = [Store(str_url(deployed)) for _ in range(2)]
    fleets = [Fleet(SqlBackend(store), [ServicePolicy(name="maps")]) for store in stores]
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(partial(tighten_now, deployed.instance), stores, fleets))
    assert deployed.dagster.pools() == {"maps": "0"}
    assert deployed.trigger_states()["daily_atlas"] == "STOPPED"
    assert sorted(change for changes in said for change in changes) == [
        "pool maps 4 -> 0",
        "schedule daily_atlas DECLARED_IN_CODE -> STOPPED",
    ]
    release(deployed, MAPS)
    deployed.gate()
    assert deployed.dagster.pools() == {"maps": "4"}
    for fleet, store in zip(fleets, stores, strict=True):
        fleet.close()
        store.dispose()


def str_url(deployed: Deployment) -> str:
    return deployed.store.url.render_as_string(hide_password=False)


# --- missed ticks -------------------------------------------------------------------------------


def held_for(deployed: Deployment, target: Target, hours: float) -> None:
    """Hold a target as if it had been held for some hours."""
    hold(deployed, target)
    deployed.tick("tidegate_pause")
    since = datetime.now(UTC) - timedelta(hours=hours)
    with deployed.store.begin() as conn:
        conn.execute(t.takeovers.update().values(taken_at=since, running_since=since))


def test_each_missed_tick_is_launched_once_with_the_tags_of_its_schedule(deployed: Deployment):
    deployed.start("hourly_letters")
    deployed.gate()
    held_for(deployed, LETTERS, 3)
    release(deployed, LETTERS)
    for _ in range(3):
        deployed.gate()
    found = deployed.instance.get_runs()
    due = sorted(run.tags[".dagster/scheduled_execution_time"] for run in found)
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    assert due == [(hour - timedelta(hours=n)).isoformat() for n in (2, 1, 0)]
    for run in found:
        assert run.tags["dagster/schedule_name"] == "hourly_letters"
        assert run.tags["dagster/partition"] == "a"
        seen = datetime.fromisoformat(run.tags["due"])
        assert seen.isoformat() == run.tags["due"]
        assert seen == datetime.fromisoformat(run.tags[".dagster/scheduled_execution_time"])
        # As Dagster's daemon shows it: the function may name its partition after the local day.
        assert seen.utcoffset() == seen.astimezone(ZoneInfo("America/Los_Angeles")).utcoffset()
    with deployed.store.read() as conn:
        assert set(conn.scalars(sa.select(t.missed_ticks.c.outcome))) == {"launched"}


def test_a_tick_that_dagster_evaluated_just_before_the_stop_is_not_missed(deployed: Deployment):
    deployed.start("hourly_letters")
    deployed.gate()
    held_for(deployed, LETTERS, 3)
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    deployed.evaluated("hourly_letters", hour - timedelta(hours=1))
    release(deployed, LETTERS)
    deployed.gate()
    deployed.gate()
    [run] = deployed.instance.get_runs()
    assert run.tags[".dagster/scheduled_execution_time"] == hour.isoformat()


def test_with_catch_up_latest_all_other_missed_ticks_are_skipped(deployed: Deployment):
    deployed.schedules(datetime.now(UTC))
    deployed.gate()
    held_for(deployed, MAPS, 75)
    release(deployed, MAPS)
    deployed.gate()
    deployed.gate()
    [run] = deployed.instance.get_runs()
    assert run.job_name == "atlas_job"
    with deployed.store.read() as conn:
        ticks = conn.execute(sa.select(t.missed_ticks).order_by(t.missed_ticks.c.tick_at)).all()
    assert [tick.outcome for tick in ticks][-2:] == ["skipped", "launched"]
    assert len(ticks) in (3, 4)
    assert run.tags[".dagster/scheduled_execution_time"] == ticks[-1].tick_at.isoformat()


# --- the next attempt ---------------------------------------------------------------------------


def test_the_next_attempt_keeps_the_runs_tags_and_drops_those_of_its_outcome(
    deployed: Deployment,
):
    first = paused(
        deployed, "letters", "b", **{"dagster/backfill": "fill", "dagster/max_retries": "2"}
    )
    deployed.gate()
    [run] = asked(deployed, but=first)
    assert run.status is DagsterRunStatus.QUEUED
    expected = {
        "dagster/partition": "b",
        "dagster/backfill": "fill",
        "dagster/max_retries": "2",
        "dagster/parent_run_id": first,
        "dagster/root_run_id": first,
        "team": "post",
    }
    assert expected.items() <= run.tags.items()
    assert "tidegate/state" not in run.tags


def test_a_run_with_an_op_selection_resumes_with_the_same_ops(deployed: Deployment):
    deployed.up("maps")
    first = paused(deployed, "guide", ops=["look_up"])
    deployed.gate()
    [run] = asked(deployed, but=first)
    assert run.status is DagsterRunStatus.QUEUED
    assert (run.op_selection, run.tags["dagster/parent_run_id"]) == (["look_up"], first)
    deployed.gate()
    assert len(asked(deployed, but=first)) == 1
    deployed.dequeue()
    assert deployed.wait(run.run_id) == "SUCCESS"
    assert deployed.calls() == ["maps one"]
    deployed.gate()
    assert campaign_run(deployed, "guide", first).status is RunStatus.COMPLETED


def test_the_next_attempt_is_requested_once_in_any_number_of_ticks(deployed: Deployment):
    first = paused(deployed, "letters", "b")
    for _ in range(3):
        deployed.tick("tidegate_resume")
    assert len(asked(deployed, but=first)) == 1
    deployed.tick("tidegate_pause")
    assert campaign_run(deployed, "letters", "b").status is RunStatus.PENDING


def test_a_request_whose_run_never_appeared_is_repeated(deployed: Deployment):
    first = paused(deployed, "letters", "b")
    deployed.tick("tidegate_resume")
    [run] = asked(deployed, but=first)
    deployed.instance.delete_run(run.run_id)
    deployed.tick("tidegate_resume")
    assert len(asked(deployed, but=first)) == 1


def test_an_attempt_that_paused_before_it_began_does_not_block_the_next(deployed: Deployment):
    first = paused(deployed, "letters", "b")
    deployed.tick("tidegate_resume")
    [second] = asked(deployed, but=first)
    deployed.instance.add_run_tags(second.run_id, {"tidegate/state": "paused"})
    with deployed.store.begin() as conn:
        now = deployed.store.now(conn)
        run = runs.find(conn, "letters", "b")
        assert run is not None
        runs.begin_attempt(conn, now, run, second.run_id, owner_is_over=True)
        run = runs.find(conn, "letters", "b")
        assert run is not None
        runs.move(conn, now, run, RunStatus.PAUSED, reason="held", actor=second.run_id)
    deployed.instance.report_run_canceled(second)
    deployed.gate()
    newer = [run for run in asked(deployed, but=first) if run.run_id != second.run_id]
    assert len(newer) == 1
    assert newer[0].tags["dagster/parent_run_id"] == second.run_id


def test_nothing_is_requested_if_a_person_re_executed_the_run(deployed: Deployment):
    first = paused(deployed, "letters", "b")
    by_hand = deployed.launch("letters", "b", again_after=deployed.instance.get_run_by_id(first))
    deployed.tick("tidegate_resume")
    assert [run.run_id for run in asked(deployed, but=first)] == [by_hand]


def test_cancelling_the_next_attempt_cancels_the_campaign_run(deployed: Deployment):
    first = paused(deployed, "letters", "b")
    deployed.tick("tidegate_resume")
    [run] = asked(deployed, but=first)
    deployed.tick("tidegate_pause")
    deployed.instance.report_run_canceled(run)
    deployed.tick("tidegate_pause")
    assert campaign_run(deployed, "letters", "b").status is RunStatus.CANCELLED
    deployed.tick("tidegate_resume")
    assert len(asked(deployed, but=first)) == 1


def test_a_run_that_could_not_start_is_requested_again_a_few_times(deployed: Deployment):
    """As when the code server was told to shut down, or no container could be started."""
    first = paused(deployed, "letters", "b")
    deployed.tick("tidegate_resume")
    for number in range(1, MAX_IN_A_ROW + 1):
        [run] = [run for run in asked(deployed, but=first) if not run.is_finished]
        assert run.tags["dagster/parent_run_id"] == first
        deployed.instance.report_run_failed(run)
        deployed.tick("tidegate_pause")
        stopped = campaign_run(deployed, "letters", "b")
        if number == MAX_IN_A_ROW:
            assert stopped.status is RunStatus.FAILED
            return
        assert stopped.status is RunStatus.PAUSED
        assert "its process could not be started" in (stopped.reason or "")
        deployed.tick("tidegate_resume")
        assert len(asked(deployed, but=first)) == number, "requested again at once"
        longer_ago(deployed, run.run_id, MAX_WAIT)
        deployed.tick("tidegate_resume")


def longer_ago(deployed: Deployment, run_id: str, by: timedelta) -> None:
    """Let the last change of a Dagster run be longer ago."""
    storage = deployed.instance.run_storage
    assert isinstance(storage, SqlRunStorage)
    row = RunsTable.c.run_id == run_id
    with storage.connect() as conn:
        changed = conn.scalar(sa.select(RunsTable.c.update_timestamp).where(row))
        assert changed is not None
        conn.execute(RunsTable.update().where(row).values(update_timestamp=changed - by))


def test_an_interrupted_run_is_requested_again(deployed: Deployment):
    """Interrupted outside a record loop, first while it works and then while it starts."""
    first = deployed.launch("letters", "b")
    with deployed.store.begin() as conn:
        now = deployed.store.now(conn)
        found = runs.ensure(conn, now, "letters", "b")
        runs.begin_attempt(conn, now, found, first, owner_is_over=True)
    ended = [first]
    for _ in range(2):
        reason = JobFailureData(None, RunFailureReason.UNEXPECTED_TERMINATION)
        event = dg.DagsterEvent("PIPELINE_FAILURE", "letters", event_specific_data=reason)
        deployed.instance.report_dagster_event(event, ended[-1])
        deployed.tick("tidegate_pause")
        stopped = campaign_run(deployed, "letters", "b")
        assert stopped.status is RunStatus.PAUSED
        assert "its process was terminated" in (stopped.reason or "")
        longer_ago(deployed, ended[-1], MAX_WAIT)
        deployed.tick("tidegate_resume")
        [run] = [run for run in asked(deployed, but=first) if run.run_id not in ended]
        assert run.tags["dagster/parent_run_id"] == first
        ended.append(run.run_id)
    left = deployed.instance.get_run_by_id(ended[-1])
    assert left is not None
    deployed.instance.report_run_canceled(left)


def test_a_run_that_ends_beside_the_working_one_changes_nothing(deployed: Deployment):
    works, other = deployed.launch("letters", "b"), deployed.launch("letters", "b")
    with deployed.store.begin() as conn:
        now = deployed.store.now(conn)
        run = runs.ensure(conn, now, "letters", "b")
        runs.begin_attempt(conn, now, run, works, owner_is_over=True)
    ended = deployed.instance.get_run_by_id(other)
    assert ended is not None
    deployed.instance.report_run_canceled(ended)
    deployed.tick("tidegate_pause")
    assert campaign_run(deployed, "letters", "b").status is RunStatus.PROCESSING


@pytest.mark.parametrize(
    ("report", "status"),
    [("report_run_failed", RunStatus.FAILED), ("report_run_canceled", RunStatus.CANCELLED)],
)
def test_a_campaign_run_ends_like_its_dagster_run(
    deployed: Deployment, report: str, status: RunStatus
):
    run_id = deployed.launch("letters", "b")
    deployed.tick("tidegate_pause")
    assert campaign_run(deployed, "letters", "b").status is RunStatus.PENDING
    with deployed.store.begin() as conn:
        now = deployed.store.now(conn)
        run = runs.ensure(conn, now, "letters", "b")
        runs.begin_attempt(conn, now, run, run_id, owner_is_over=True)
    getattr(deployed.instance, report)(deployed.instance.get_run_by_id(run_id))
    for _ in range(2):
        deployed.tick("tidegate_pause")
        assert campaign_run(deployed, "letters", "b").status is status


@pytest.mark.parametrize("looks_between", [True, False])
@pytest.mark.parametrize(
    ("events", "status"),
    [
        (["PIPELINE_START"], RunStatus.PROCESSING),
        (["PIPELINE_START", "PIPELINE_SUCCESS"], RunStatus.COMPLETED),
        (["PIPELINE_CANCELED"], RunStatus.CANCELLED),
    ],
)
def test_a_re_execution_is_followed_even_if_no_tick_observed_it_in_the_queue(
    deployed: Deployment, events: list[str], status: RunStatus, looks_between: bool
):
    first = deployed.launch("letters", "b")
    deployed.tick("tidegate_pause")
    run = deployed.instance.get_run_by_id(first)
    assert run is not None
    deployed.instance.report_run_failed(run)
    if looks_between:
        deployed.tick("tidegate_pause")
        assert campaign_run(deployed, "letters", "b").status is RunStatus.FAILED
    again = deployed.launch("letters", "b", again_after=run)
    for event in events:
        deployed.instance.report_dagster_event(dg.DagsterEvent(event, "letters"), again)
    found = []
    for _ in range(2):
        deployed.tick("tidegate_pause")
        found.append(campaign_run(deployed, "letters", "b").status)
    ended = deployed.instance.get_run_by_id(again)
    if ended is not None and not ended.is_finished:
        deployed.instance.report_run_canceled(ended)
    assert found[-1] is status


def test_the_audit_log_says_how_many_records_of_a_completed_run_failed(deployed: Deployment):
    first = deployed.launch("letters", "b")
    with deployed.store.begin() as conn:
        now = deployed.store.now(conn)
        found = runs.ensure(conn, now, "letters", "b")
        attempt = runs.begin_attempt(conn, now, found, first, owner_is_over=True)
        progress = ledger.Progress(done=12, failed=8, total=20)
        ledger.write_progress(conn, now, attempt, "send", progress)
    for event in ("PIPELINE_START", "PIPELINE_SUCCESS"):
        deployed.instance.report_dagster_event(dg.DagsterEvent(event, "letters"), first)
    deployed.tick("tidegate_pause")
    completed = campaign_run(deployed, "letters", "b")
    assert completed.status is RunStatus.COMPLETED
    assert completed.reason == f"Dagster run {first} is SUCCESS, 8 records failed"


def test_a_retry_that_processes_no_records_completes_its_campaign_run(deployed: Deployment):
    first = deployed.launch("letters", "b")
    run = deployed.instance.get_run_by_id(first)
    assert run is not None
    with deployed.store.begin() as conn:
        now = deployed.store.now(conn)
        found = runs.ensure(conn, now, "letters", "b")
        runs.begin_attempt(conn, now, found, first, owner_is_over=True)
    deployed.instance.report_run_failed(run)
    again = deployed.launch("letters", "b", again_after=run)
    # Dagster marks the failed run after it has made the retry, so that it changed later.
    deployed.instance.add_run_tags(first, {"dagster/auto_retry_run_id": again})
    deployed.tick("tidegate_pause")
    for event in ("PIPELINE_START", "PIPELINE_SUCCESS"):
        deployed.instance.report_dagster_event(dg.DagsterEvent(event, "letters"), again)
        deployed.tick("tidegate_pause")
    assert campaign_run(deployed, "letters", "b").status is RunStatus.COMPLETED
    deployed.tick("tidegate_pause")
    assert campaign_run(deployed, "letters", "b").status is RunStatus.COMPLETED


def test_the_next_attempt_of_a_job_without_partitions_belongs_to_the_same_campaign_run(
    deployed: Deployment,
):
    first = paused(deployed, "postcard")
    deployed.tick("tidegate_resume")
    [run] = asked(deployed, but=first)
    assert partition_of(run) == first
    deployed.tick("tidegate_pause")
    assert campaign_run(deployed, "postcard", first).status is RunStatus.PENDING


def test_a_run_that_has_paused_in_one_branch_resumes_when_the_others_have_ended(
    deployed: Deployment,
):
    deployed.gate()
    first = deployed.launch("postcard")
    working = deployed.instance.get_run_by_id(first)
    assert working is not None
    deployed.instance.report_run_canceling(working)
    with deployed.store.begin() as conn:
        now = deployed.store.now(conn)
        found = runs.ensure(conn, now, "postcard", first)
        runs.begin_attempt(conn, now, found, first, owner_is_over=True)
        found = runs.find(conn, "postcard", first)
        assert found is not None
        runs.move(conn, now, found, RunStatus.PAUSED, reason="held", actor=first)
    deployed.gate()
    assert asked(deployed, but=first) == []
    deployed.instance.report_run_canceled(working)
    deployed.gate()
    [run] = asked(deployed, but=first)
    assert partition_of(run) == first


def test_a_campaign_run_whose_queued_run_is_deleted_is_cancelled(deployed: Deployment):
    deployed.gate()
    hold(deployed, MAIL)
    deployed.tick("tidegate_pause")
    one, other = deployed.launch("letters", "a"), deployed.launch("letters", "b")
    plain = deployed.launch("postcard")
    deployed.tick("tidegate_pause")
    for run_id in (one, plain):
        deployed.instance.delete_run(run_id)
    audit, gate = Audit(), gate_of(deployed)
    with mock.patch.object(follow, "AUDIT_S", 0):
        assert audit(gate) == 0  # it may only just have ended
        assert audit(gate) == 2
        assert audit(gate) == 0
    assert deployed.status(other) is DagsterRunStatus.QUEUED
    found = [campaign_run(deployed, "letters", name) for name in ("a", "b")]
    found.append(campaign_run(deployed, "postcard", plain))
    assert [run.status for run in found] == [
        RunStatus.CANCELLED,
        RunStatus.PENDING,
        RunStatus.CANCELLED,
    ]
    assert found[0].reason == "its Dagster run was deleted"


def test_next_attempts_and_working_runs_are_not_mistaken_for_deleted_ones(deployed: Deployment):
    deployed.gate()
    first, plain = paused(deployed, "letters", "b"), paused(deployed, "postcard")
    working = deployed.launch("guide")
    with deployed.store.begin() as conn:
        now = deployed.store.now(conn)
        run = runs.ensure(conn, now, "guide", working)
        runs.begin_attempt(conn, now, run, working, owner_is_over=True)
    for _ in range(2):
        deployed.gate()
    assert campaign_run(deployed, "letters", "b").status is RunStatus.PENDING
    assert campaign_run(deployed, "postcard", plain).status is RunStatus.PENDING
    deployed.instance.delete_run(first)
    audit, gate = Audit(), gate_of(deployed)
    with mock.patch.object(follow, "AUDIT_S", 0):
        for _ in range(3):
            assert audit(gate) == 0


def test_a_held_campaign_run_waits_alone(deployed: Deployment):
    paused(deployed, "letters", "a")
    paused(deployed, "letters", "b")
    hold(deployed, Target(TargetKind.CAMPAIGN_RUN, "letters/a"))
    deployed.gate()
    asked_for = [run for run in deployed.instance.get_runs() if not run.is_finished]
    assert [run.tags["dagster/partition"] for run in asked_for] == ["b"]


# --- a canary -----------------------------------------------------------------------------------


def test_a_queued_run_tries_a_half_open_service_and_has_a_place_of_its_own(
    deployed: Deployment,
):
    deployed.gate()
    hold(deployed, MAPS, HoldSource.BREAKER)
    set_state(deployed, "maps", BreakerState.OPEN)
    deployed.tick("tidegate_pause")
    one, other = deployed.launch("atlas_job"), deployed.launch("atlas_job")
    set_state(deployed, "maps", BreakerState.HALF_OPEN)
    deployed.tick("tidegate_resume")
    tags = {run.run_id: run.tags.get(CANARY_TAG) for run in deployed.instance.get_runs()}
    assert tags == {one: "maps", other: None}
    deployed.tick("tidegate_resume")
    assert deployed.dagster.pools()["maps"] == "1"
    run = deployed.instance.get_run_by_id(one)
    assert run is not None
    deployed.instance.report_run_canceled(run)
    deployed.tick("tidegate_pause")
    assert deployed.dagster.pools()["maps"] == "0"


def test_two_half_open_services_that_a_campaign_needs_are_tried_by_one_run(deployed: Deployment):
    first = paused(deployed, "guide")
    for service, target in (("mail", MAIL), ("maps", MAPS)):
        hold(deployed, target, HoldSource.BREAKER)
        set_state(deployed, service, BreakerState.OPEN)
    deployed.tick("tidegate_pause")
    set_state(deployed, "mail", BreakerState.HALF_OPEN)
    deployed.tick("tidegate_resume")
    assert asked(deployed, but=first) == []  # maps can't be called yet
    set_state(deployed, "maps", BreakerState.HALF_OPEN)
    for service in ("mail", "maps"):
        deployed.up(service)
    for _ in range(2):
        deployed.tick("tidegate_resume")
    [run] = asked(deployed, but=first)
    assert run.tags[CANARY_TAG] == "mail,maps"
    assert deployed.dagster.pools() == {"mail": "1", "maps": "1", "mail@letters": "1"}
    deployed.dequeue()
    assert deployed.wait(run.run_id) == "SUCCESS"
    assert deployed.calls() == ["maps one", "mail one"]
    deployed.gate()
    assert deployed.dagster.pools() == {}


def test_a_paused_run_that_calls_the_service_at_once_tries_it_before_an_earlier_one(
    deployed: Deployment,
):
    earlier, later = paused(deployed, "letters", "a"), paused(deployed, "letters", "b")
    begin_sending(deployed, "b")
    hold(deployed, MAIL, HoldSource.BREAKER)
    set_state(deployed, "mail", BreakerState.HALF_OPEN)
    deployed.tick("tidegate_resume")
    [run] = [run for run in asked(deployed, but=later) if run.run_id != earlier]
    assert (run.tags["dagster/partition"], run.tags[CANARY_TAG]) == ("b", "mail")


def test_after_a_canary_failed_another_run_is_the_canary(deployed: Deployment):
    paused(deployed, "letters", "a")
    paused(deployed, "letters", "b")
    begin_sending(deployed, "b")
    hold(deployed, MAIL, HoldSource.BREAKER)
    tried = []
    for _ in range(3):
        set_state(deployed, "mail", BreakerState.HALF_OPEN)
        deployed.tick("tidegate_resume")
        [canary] = deployed.dagster.canaries()
        deployed.gate()  # lets the canary in
        deployed.dequeue()
        assert deployed.wait(canary.run_id) == "CANCELED"
        tried.append(canary.tags["dagster/partition"])
        deployed.gate()
    assert tried == ["b", "a", "b"]


def test_a_canary_that_never_reached_the_queue_is_requested_again(deployed: Deployment):
    first = paused(deployed, "letters", "a")
    hold(deployed, MAIL, HoldSource.BREAKER)
    set_state(deployed, "mail", BreakerState.HALF_OPEN)
    deployed.tick("tidegate_resume")
    [canary] = asked(deployed, but=first)
    # As it is where the daemon dies between the two things that it does.
    deployed.instance.run_storage.delete_run(canary.run_id)
    deployed.instance.run_storage.add_run(canary.with_status(DagsterRunStatus.NOT_STARTED))
    deployed.tick("tidegate_resume")
    [again] = asked(deployed, but=first)
    assert again.run_id == canary.run_id
    assert again.status is DagsterRunStatus.QUEUED
    assert again.tags[CANARY_TAG] == "mail"


def test_a_paused_run_whose_other_branch_still_works_keeps_no_other_from_trying(
    deployed: Deployment,
):
    deployed.gate()
    busy = deployed.launch("letters", "a")
    working = deployed.instance.get_run_by_id(busy)
    assert working is not None
    deployed.instance.report_run_canceling(working)
    with deployed.store.begin() as conn:
        now = deployed.store.now(conn)
        found = runs.ensure(conn, now, "letters", "a")
        runs.begin_attempt(conn, now, found, busy, owner_is_over=True)
        found = runs.find(conn, "letters", "a")
        assert found is not None
        runs.move(conn, now, found, RunStatus.PAUSED, reason="held", actor=busy)
    later = paused(deployed, "letters", "b")
    hold(deployed, MAIL, HoldSource.BREAKER)
    set_state(deployed, "mail", BreakerState.HALF_OPEN)
    deployed.tick("tidegate_resume")
    [canary] = [run for run in asked(deployed, but=busy) if run.run_id != later]
    assert canary.tags["dagster/partition"] == "b"
    deployed.instance.report_run_canceled(working)


def test_schedules_are_restored_for_a_half_open_service_that_no_run_could_try(
    deployed: Deployment,
):
    deployed.schedules(datetime.now(UTC))
    deployed.gate()
    hold(deployed, MAPS, HoldSource.BREAKER)
    set_state(deployed, "maps", BreakerState.OPEN)
    deployed.tick("tidegate_pause")
    assert deployed.trigger_states()["daily_atlas"] == "STOPPED"
    set_state(deployed, "maps", BreakerState.HALF_OPEN)
    deployed.tick("tidegate_resume")
    assert deployed.trigger_states()["daily_atlas"] == "DECLARED_IN_CODE"
    assert deployed.dagster.pools()["maps"] == "0"
    deployed.tick("tidegate_pause")
    assert deployed.trigger_states()["daily_atlas"] == "DECLARED_IN_CODE"


# --- what an unchanged tick costs ---------------------------------------------------------------


@both_deployments
@pytest.mark.parametrize("held", [False, True])
def test_a_tick_in_which_nothing_changed_makes_at_most_five_queries(
    deployed: Deployment, held: bool
):
    deployed.schedules(datetime.now(UTC))
    deployed.gate()
    deployed.launch("letters", "b")
    if held:
        paused(deployed, "letters", "a")
        hold(deployed, EVERYTHING)
    for name in ("tidegate_pause", "tidegate_resume"):
        deployed.tick(name)
    gate, audit = gate_of(deployed), Audit()
    planner = MissedTickPlanner(gate, None)  # type: ignore[arg-type] -- nothing was missed
    store = Store(str_url(deployed))
    fleet = Fleet(SqlBackend(store), gate.policies.values())
    ticks = {
        "pause": lambda: pause_tick(gate, planner, audit, new_code=False),
        "resume": lambda: resume_tick(gate, planner),
        "breaker": lambda: breaker_tick(gate, fleet),
    }
    # Dagster takes several queries to read its pools, triggers and queue; each read counts as one
    # here. A tick during a hold may make one more: it says of the queued runs what they wait for.
    with counted() as statements:
        deployed.dagster.pools()
        deployed.dagster.triggers()
        deployed.dagster.queued(MAX_QUEUED)
    surplus = len(statements) - 2 if held else 0
    made = {}
    # What changed in the last minute is looked at once more; here that is all of it.
    with (
        mock.patch.object(follow, "OVERLAP", timedelta(0)),
        mock.patch.object(follow, "MAX_SKEW", timedelta(0)),
    ):
        for name, tick in ticks.items():
            tries = []
            for _ in range(4):  # the first may still have something to do, and on a slow day others
                with counted() as statements:
                    tick()
                tries.append([" ".join(statement.split())[-120:] for statement in statements])
            made[name] = min(tries, key=len)
    fleet.close()
    store.dispose()
    for name, statements in made.items():
        assert len(statements) <= 5 + surplus, f"{name}:\n" + "\n".join(statements)


# --- heartbeats and versions --------------------------------------------------------------------


def test_every_part_writes_a_heartbeat_with_a_summary(deployed: Deployment):
    deployed.gate()
    hold(deployed, MAPS)
    assert "service maps (operator: test)" in (deployed.tick("tidegate_pause").skip_reason or "")
    with deployed.store.read() as conn:
        beats = {beat.part: beat for beat in heartbeats.read(conn)}
    assert set(beats) == {"pause", "resume", "breaker"}
    assert all(beat.location == LOCATION for beat in beats.values())
    assert "pool maps unset -> 0" in beats["pause"].summary


def test_an_outdated_gate_refuses_and_says_what_to_do(deployed: Deployment):
    store = deployed.store

    def needs(revision: str) -> None:
        with store.begin() as conn:
            conn.execute(t.compatibility.delete())
            conn.execute(t.compatibility.insert().values(id=1, oldest_revision=revision))
            push.notify(conn)

    def refusal(sensor: str) -> str | None:
        for _ in deployed.steps(sensor):
            pass
        error = deployed.last_tick(sensor).error
        return None if error is None else error.to_string()

    needs("9999")
    try:
        wait_until(lambda: refusal("tidegate_pause") is not None)
        for sensor in ("tidegate_pause", "tidegate_resume", "tidegate_breaker"):
            said = refusal(sensor)
            assert said is not None
            assert "OutdatedError" in said
            assert "needs revision 9999 or newer" in said
    finally:
        needs("0001")
    wait_until(lambda: refusal("tidegate_pause") is None)
