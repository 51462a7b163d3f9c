"""The gate in a real deployment: Dagster's daemon, code servers, run workers, the sandbox.

One deployment serves all tests but one; each has partitions of its own, and leaves it settled.
`TIDEGATE_TEST_ROUNDS` and `TIDEGATE_TEST_SEED` say how many rounds of kills there are and where
they begin: round n of a seed is round 0 of the seed n later, so that each can be replayed alone.
"""

import json
import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa

from dagster_tidegate.dagster_api.lineage import was_superseded
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import breakers, holds, runs, windows
from dagster_tidegate.store.windows import PlannedWindow
from demo.sandbox.faults import Fault, Mode
from tests.conftest import NewUrl
from tests.deployment.gate_stage import (
    LOCATION,
    MAX_S,
    OTHER_LOCATION,
    OTHER_TRIGGERS,
    REPOSITORY,
    TRIGGERS,
    Stage,
    gate_stage,
)

# A code server that is away is no error.
pytestmark = pytest.mark.filterwarnings("ignore:Error loading repository location")
RECORDS = 25
BUDGET = 3 * RECORDS // 2  # as tests/deployment/gate_project has it
PAUSED_ONCE = [RunStatus.PAUSED, RunStatus.COMPLETED]
# Long enough for several ticks of the gate, in which it could do what it should not.
TICKS = timedelta(seconds=4)
# A daemon that is killed between noting that it starts a run and starting it leaves one that has
# failed after so long; Dagster then retries it.
START_TIMEOUT_S = 45
unused = count()


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: sa.URL,  # noqa: ARG001 -- gRPC's threads do not survive the fork it starts with
) -> Iterator[Stage]:
    home = tmp_path_factory.mktemp("gate") / "home"
    with gate_stage(
        home,
        f"sqlite:///{home / 'tidegate.db'}",
        records=RECORDS,
        start_timeout_s=START_TIMEOUT_S,
        two_locations=True,
    ) as stage:
        yield stage


@pytest.fixture
def stage(shared: Stage) -> Iterator[Stage]:
    """The deployment, with every service up and nothing under way."""
    shared.sandbox.reset()
    before = shared.settings()
    yield shared
    shared.heal("openai", "instantly")
    shared.settle(MAX_S + START_TIMEOUT_S)
    assert shared.settings() == before


@pytest.fixture
def other_location(shared: Stage) -> None:
    """The other code location, from here on; a test has it before `stage`."""
    shared.start_other_location()


def new_partitions(count: int) -> list[str]:
    """Return partitions that no test has used."""
    return [str(next(unused)) for _ in range(count)]


# --- outages ----------------------------------------------------------------------------------


def test_recovery_of_one_service_frees_only_what_the_other_does_not_hold(stage: Stage):
    [partition] = new_partitions(1)
    both = stage.launch("letters", partition)
    first = stage.launch("essays", partition)
    stage.let_begin("openai", ("letters", partition), ("essays", partition))
    stage.outage("openai", "instantly")
    second = stage.launch("notices", partition)
    for run in (both, first, second):
        stage.wait(lambda run=run: stage.is_paused(run), f"run {run} is paused")
    assert stage.held() == {"service openai by breaker", "service instantly by breaker"}

    stage.heal("openai")
    stage.wait(lambda: stage.campaign_run("essays", partition) == "completed", "essays go on")
    stage.wait(lambda: "openai" not in stage.pools(), "the pool of openai is as it was")
    healed_at = stage.now()
    stage.wait(lambda: stage.ticked_since(healed_at + TICKS), "the gate has looked again")
    assert stage.held() == {"service instantly by breaker"}
    # It is 1 while a canary waits for its turn.
    stage.wait(lambda: stage.pools()["instantly+openai@letters"] == "0", "letters have no slot")
    assert stage.settings().triggers["new_letters"] == "STOPPED"
    for job in ("letters", "notices"):
        # A canary looks now and then whether instantly is back, and pauses again.
        assert "SUCCESS" not in [run.status.value for run in stage.runs_of(job, partition)]

    stage.heal("instantly")
    stage.settle()
    assert stage.outcomes("essays", partition) == PAUSED_ONCE
    for job in ("letters", "notices"):
        assert stage.campaign_run(job, partition) == "completed"
        stage.assert_each_arrived_once(job, partition)


def test_an_operators_hold_survives_the_recovery(stage: Stage):
    first, second = new_partitions(2)
    paused = stage.launch("letters", first)
    other = stage.launch("essays", first)
    stage.let_begin("openai", ("letters", first), ("essays", first))
    stage.outage("openai")
    for run in (paused, other):
        stage.wait(lambda run=run: stage.is_paused(run), f"run {run} is paused")
    held = ("campaign", "letters", "--actor", "ann")
    said = stage.tidegate("hold", *held, "--reason", "wrong template")
    assert "wrong template" in said
    stage.heal("openai")

    stage.wait(lambda: stage.campaign_run("essays", first) == "completed", "essays go on")
    assert stage.breaker("openai") is BreakerState.CLOSED
    waiting = stage.launch("letters", second)
    launched_at = stage.now()
    stage.wait(lambda: stage.ticked_since(launched_at + TICKS), "the gate has looked again")
    assert stage.held() == {"campaign letters by operator"}
    assert stage.campaign_run("letters", first) == "paused"
    assert [run.run_id for run in stage.runs_of("letters", first)] == [paused]
    assert stage.status(waiting) == "QUEUED"
    assert "openai" not in stage.pools()
    assert "wrong template" in stage.tidegate("status")

    stage.tidegate("release", *held)
    stage.settle()
    assert stage.outcomes("letters", first) == PAUSED_ONCE
    assert stage.outcomes("letters", second) == [RunStatus.COMPLETED]
    for partition in (first, second):
        stage.assert_each_arrived_once("letters", partition)


def test_a_code_location_that_is_gone_for_a_while_finds_everything_again(stage: Stage):
    [partition] = new_partitions(1)
    runs = {job: stage.launch(job, partition) for job in ("letters", "essays")}
    stage.let_begin("openai", *((job, partition) for job in runs))
    stage.outage("openai")
    for job, run in runs.items():
        stage.wait(lambda run=run: stage.is_paused(run), f"{job} is paused")
    stage.wait(lambda: stage.settings().triggers["new_letters"] == "STOPPED", "triggers stop")
    stage.kill("code")
    stage.heal("openai")
    gone_at = stage.now()
    stage.start_code(broken=True)
    stage.wait(lambda: stage.now() > gone_at + TICKS, "it has been gone for a while")
    assert not stage.ticked_since(gone_at + TICKS / 2)
    assert stage.held() == {"service openai by breaker"}
    assert stage.settings().triggers["letters_schedule"] == "STOPPED"

    stage.kill("code")
    stage.start_code()
    stage.settle()
    for job in runs:
        assert stage.outcomes(job, partition) == PAUSED_ONCE
    stage.assert_each_arrived_once("letters", partition)


# --- quotas and windows ------------------------------------------------------------------------


def test_a_quota_that_runs_out_at_half_pauses_all_until_its_reset_and_none_asks_before(
    stage: Stage,
):
    jobs, [partition] = ("letters", "essays", "digests"), new_partitions(1)
    runs = {job: stage.launch(job, partition) for job in jobs}
    stage.let_begin("openai", *((job, partition) for job in jobs))
    # Of 75 calls. The rest fits into the next day, which begins in 45 seconds.
    placed = stage.sandbox.place("openai", Fault(mode=Mode.LIMIT, calls=40, per_s=45))
    stage.wait(lambda: "openai is throttled until" in stage.tidegate("status"), "it is throttled")
    paused = set()
    for job, run in runs.items():
        stage.wait(
            lambda job=job, run=run: (
                stage.is_paused(run) or stage.campaign_run(job, partition) == "completed"
            ),
            f"run {run} is paused, or was done before",
        )
        paused |= {job} if stage.is_paused(run) else set()
    assert paused, "40 calls are not enough for all"
    refusals = stage.sandbox.stats()["openai"]["over_limit"]
    assert refusals <= 1, "the first one, if its headers have not said before that none is left"
    stage.settle()
    for job in jobs:
        expected = PAUSED_ONCE if job in paused else [RunStatus.COMPLETED]
        assert stage.outcomes(job, partition) == expected
    openai = stage.sandbox.stats()["openai"]
    assert (openai["effects"], openai["over_limit"]) == (3 * RECORDS, refusals)
    assert stage.sent_twice() == {}
    stage.assert_each_arrived_once("letters", partition)
    begins_at = datetime.fromisoformat(placed["placed_at"])
    resets_at = begins_at + timedelta(seconds=45)
    times = [datetime.fromisoformat(each["at"]) for each in stage.sandbox.calls(service="openai")]
    on_their_way = len(jobs)  # when the limit came
    assert sum(begins_at <= at < resets_at for at in times) <= 40 + refusals + on_their_way


def test_a_budget_that_is_used_up_pauses_until_its_reset_or_until_a_person_exceeds_it(
    stage: Stage,
):
    partitions = new_partitions(2)
    runs = [stage.launch("news", partition) for partition in partitions]
    stage.wait(lambda: any(map(stage.is_paused, runs)), "one of them is paused")
    stage.wait(lambda: not stage.at_work(), "none works any more")
    assert stage.sandbox.stats()["perplexity"]["calls"] == BUDGET
    assert stage.held() == {"service perplexity by breaker"}
    month_ends = (stage.now().replace(day=1) + timedelta(days=31)).strftime("%Y-%m-01 00:00")
    [reason] = {stage.reason(run) for run in runs if stage.is_paused(run)}
    assert f"its budget of {BUDGET} credits per month is used up" in reason
    assert f"until {month_ends}" in stage.tidegate("status")
    paused_at = stage.now()
    stage.wait(lambda: stage.ticked_since(paused_at + TICKS), "the gate has looked again")
    assert stage.sandbox.stats()["perplexity"]["calls"] == BUDGET, "nobody tries before"
    spent = json.loads(stage.tidegate("budgets", "perplexity", "--json"))
    assert [(each["campaign"], each["amount"]) for each in spent] == [("news", BUDGET)]

    keep = ("services", "keep-closed", "perplexity", "--for", "1h", "--reason", "a deadline")
    stage.tidegate(*keep)
    stage.settle()
    for run, partition in zip(runs, partitions, strict=True):
        paused = [RunStatus.PAUSED] if stage.is_resumed(run) else []
        assert stage.outcomes("news", partition) == [*paused, RunStatus.COMPLETED]
    perplexity = stage.sandbox.stats()["perplexity"]
    assert (perplexity["calls"], perplexity["effects"]) == (2 * RECORDS, 2 * RECORDS)
    assert stage.sent_twice() == {}
    stage.tidegate("services", "let-trip", "perplexity")


def test_a_window_that_begins_in_the_middle_of_runs_pauses_them_at_a_record(stage: Stage):
    [partition, later] = new_partitions(2)
    runs = {job: stage.launch(job, partition) for job in ("letters", "essays")}
    stage.let_begin("openai", *((job, partition) for job in runs))
    begins = stage.now() + timedelta(seconds=1)
    ends = begins + timedelta(seconds=30)
    upgrade = PlannedWindow(
        windows.BY_HAND, "openai", "0 0 29 2 *", "UTC", 30, "their upgrade", begins, ends
    )
    with stage.store.begin() as conn:
        windows.add(conn, upgrade)
    for job, run in runs.items():
        stage.wait(lambda run=run: stage.is_paused(run), f"{job} is paused")
        assert "their upgrade" in stage.reason(run)
    assert stage.held() == {"service openai by operator"}
    done = stage.sandbox.stats()["openai"]["effects"]
    assert 2 < done < 2 * RECORDS
    waiting = stage.launch("essays", later)
    stage.wait(lambda: stage.now() > ends, "it ends")
    assert stage.sandbox.stats()["openai"]["effects"] == done
    assert stage.launches(waiting) == 0
    stage.heal("openai")
    stage.settle()
    assert stage.outcomes("letters", partition) == PAUSED_ONCE
    assert stage.outcomes("essays", partition) == PAUSED_ONCE
    assert stage.outcomes("essays", later) == [RunStatus.COMPLETED]
    assert stage.sandbox.stats()["openai"]["calls"] == 3 * RECORDS, "nothing was done again"
    stage.assert_each_arrived_once("letters", partition)
    assert "is removed: their upgrade" in stage.tidegate("windows", "remove", "openai")


# --- what an answer means -----------------------------------------------------------------------


def test_records_that_always_fail_stop_nobody_and_are_named(stage: Stage):
    one, three, [healthy] = "190", "191", new_partitions(1)
    bad = {one: ["17"], three: ["0", "100", "250"]}
    keys = [f"essays/{part}/{n}@acme.example" for part, numbers in bad.items() for n in numbers]
    stage.sandbox.place("openai", Fault(mode=Mode.ANSWER, case="one-record", keys=keys))
    launched = {}
    # Bad records of two runs might fail one after the other, which opens a breaker of this project.
    for together in ([one, healthy], [three]):
        launched |= {partition: stage.launch("essays", partition) for partition in together}
        for partition in together:
            stage.wait(
                lambda p=partition: stage.campaign_run("essays", p) == "completed", "it completes"
            )
            outcomes = stage.outcomes("essays", partition)
            assert outcomes == [RunStatus.COMPLETED], stage.history("essays", partition)
    assert stage.sandbox.stats()["openai"]["effects"] == 2 * 300 - 4 + RECORDS
    for partition, numbers in bad.items():
        name = f"essays/{partition}"
        [run] = json.loads(stage.tidegate("records", name, "--failed", "--json"))
        suspects = {(record["key"], record["state"]) for record in run["records"]}
        assert suspects == {(f"{n}@acme.example", "suspect") for n in numbers}
        assert all("others succeeded" in record["error"] for record in run["records"])
        failed = len(numbers)
        dagster_run = stage.instance.get_run_by_id(launched[partition])
        assert dagster_run is not None
        assert dagster_run.tags["tidegate/failed"] == str(failed)
        assert f"{failed} failed" in stage.tidegate("runs", "show", name)


def test_a_dead_key_pauses_at_its_first_call_until_a_person_repaired_it(stage: Stage):
    [partition] = new_partitions(1)
    run = stage.launch("essays", partition)
    stage.wait(lambda: stage.sandbox.stats()["openai"]["effects"] > 4, "it is at work")
    stage.sandbox.place("openai", Fault(mode=Mode.ANSWER, case="dead-key"))
    stage.wait(lambda: stage.is_paused(run), "the run is paused")
    paused_at = stage.now()
    stage.wait(lambda: stage.ticked_since(paused_at + TICKS), "the gate has looked again")
    assert stage.sandbox.stats()["openai"]["by_status"]["401"] == 1
    assert "tidegate services repaired openai" in stage.tidegate("why", f"essays/{partition}")

    stage.heal("openai")
    stage.tidegate("services", "repaired", "openai", "--reason", "a new key")
    stage.settle()
    assert stage.outcomes("essays", partition) == PAUSED_ONCE
    assert stage.sandbox.stats()["openai"]["effects"] == RECORDS


def test_a_quota_that_is_used_up_pauses_until_its_reset_and_nothing_is_tried_before(stage: Stage):
    [partition] = new_partitions(1)
    run = stage.launch("essays", partition)
    stage.wait(lambda: stage.sandbox.stats()["openai"]["effects"] > 4, "it is at work")
    quota = Fault(mode=Mode.ANSWER, case="day-used", retry_after_s=15)
    stage.sandbox.place("openai", quota)
    stage.wait(lambda: stage.is_paused(run), "the run is paused")
    assert "until" in stage.tidegate("why", f"essays/{partition}")
    stage.settle()
    assert stage.sandbox.stats()["openai"]["by_status"]["429"] == 1
    assert stage.outcomes("essays", partition) == PAUSED_ONCE
    assert stage.sandbox.stats()["openai"]["effects"] == RECORDS


def test_a_used_up_quota_of_one_endpoint_pauses_the_campaign_that_needs_it_and_no_other(
    stage: Stage,
):
    part, [partition] = "apollo/people_match", new_partitions(1)
    run = stage.launch("matches", partition)
    stage.wait(lambda: stage.sandbox.stats()["apollo"]["effects"] > 4, "it is at work")
    quota = Fault(mode=Mode.ANSWER, case="day-used", retry_after_s=15, keys=["matches-"])
    stage.sandbox.place("apollo", quota)
    stage.wait(lambda: stage.is_paused(run), "the run is paused")
    with stage.store.read() as conn:
        until = breakers.read_one(conn, part).throttled_until
    assert until is not None
    assert stage.held() == {f"service {part} by breaker"}
    assert stage.breaker("apollo") is BreakerState.CLOSED
    shown = json.loads(stage.tidegate("why", f"matches/{partition}", "--json"))
    assert f"{until:%FT%T}" in json.dumps(shown)

    other = stage.launch("enrichments", partition)
    stage.settle()
    assert stage.status(other) == "SUCCESS"
    assert stage.outcomes("enrichments", partition) == [RunStatus.COMPLETED], "it never paused"
    assert stage.outcomes("matches", partition) == PAUSED_ONCE
    apollo = stage.sandbox.stats()["apollo"]
    assert apollo["by_status"]["429"] == 1, "nothing was tried before the reset"
    assert apollo["effects"] == 2 * RECORDS


# --- backfills --------------------------------------------------------------------------------

LAUNCH_BACKFILL = """
mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
} }
"""
LOOK_AT_BACKFILL = """
query ($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status partitionStatuses { results { partitionName runStatus } } }
} }
"""


def launch_backfill(stage: Stage, *partitions: str) -> str:
    """Launch a backfill of letters, as its page does, and return its id."""
    repository = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY}
    selector = {"partitionSetName": "letters_partition_set", "repositorySelector": repository}
    params = {"selector": selector, "partitionNames": partitions}
    answer = stage.graphql(LAUNCH_BACKFILL, params=params)
    assert answer["__typename"] == "LaunchBackfillSuccess", answer
    return answer["backfillId"]


def backfill_page(stage: Stage, backfill: str) -> tuple[str, Mapping[str, str]]:
    """Return the status of a backfill and those of its partitions, as its page shows them."""
    answer = stage.graphql(LOOK_AT_BACKFILL, id=backfill)
    results = answer["partitionStatuses"]["results"]
    return answer["status"], {found["partitionName"]: found["runStatus"] for found in results}


def test_backfills_go_on_after_an_outage_and_their_pages_stay_true(stage: Stage):
    a, b, c, d = new_partitions(4)
    broken_off = launch_backfill(stage, a, b)
    stage.wait(lambda: stage.sandbox.stats()["openai"]["effects"] > 4, "openai is called")
    stage.outage("openai")
    stage.wait(
        lambda: backfill_page(stage, broken_off) == ("REQUESTED", {a: "QUEUED", b: "QUEUED"}),
        "it stays in progress, since its next attempts wait in the queue",
    )

    held = launch_backfill(stage, c, d)
    stage.wait(
        lambda: backfill_page(stage, held) == ("REQUESTED", {c: "QUEUED", d: "QUEUED"}),
        "a backfill goes on enqueueing, and the queue holds",
    )
    stage.heal("openai")
    for backfill, partitions in ((broken_off, (a, b)), (held, (c, d))):
        done = ("COMPLETED_SUCCESS", dict.fromkeys(partitions, "SUCCESS"))
        stage.wait(
            lambda backfill=backfill, done=done: backfill_page(stage, backfill) == done,
            f"{done}: the page says so",
        )
        for partition in partitions:
            last = stage.runs_of("letters", partition)[-1]
            assert last.tags["dagster/backfill"] == backfill
            assert set(stage.arrived("letters", partition).values()) == {1}
            assert len(stage.arrived("letters", partition)) == RECORDS
    stage.settle()
    assert stage.sent_twice() == {}


# --- races ------------------------------------------------------------------------------------

NO_RETRIES = {"dagster/max_retries": "0"}


def test_two_daemons_at_once_resume_nothing_twice(stage: Stage):
    try:
        two_daemons_at_once(stage)
    finally:
        stage.kill("second daemon")


def test_two_daemons_at_once_resume_nothing_twice_on_postgresql(
    tmp_path: Path, new_postgres_url: NewUrl, new_dagster_url: NewUrl
):
    home = tmp_path / "home"
    with gate_stage(
        home, new_postgres_url(), dagster_url=new_dagster_url(), records=RECORDS
    ) as stage:
        two_daemons_at_once(stage)


def two_daemons_at_once(stage: Stage) -> None:
    partitions = new_partitions(2)
    before = stage.settings()
    stage.start_daemon("second daemon")
    paused = [stage.launch("letters", partition) for partition in partitions]
    stage.wait(lambda: stage.sandbox.stats()["openai"]["effects"] > 4, "openai is called")
    stage.outage("openai")
    stage.wait(lambda: any(map(stage.is_paused, paused)), "one is paused")
    stage.wait(lambda: not stage.at_work(), "none works any more")
    stage.heal("openai")
    stage.settle()
    assert stage.settings() == before
    for run, partition in zip(paused, partitions, strict=True):
        outcomes = stage.outcomes("letters", partition)
        # Both daemons may launch one run: each reads that it is queued before the other has written
        # that it starts (dagster 1.13, queued_run_coordinator_daemon.py, `_dequeue_run`). The step
        # of the later worker then ends without success, and unless Dagster's run is CANCELING at
        # that moment, `job_execution_iterator` (_core/execution/api.py) ends it as failed. That
        # overwrites whatever the earlier worker had reported (`handle_run_event` of the run storage
        # does not look at the status before), and run_retries retry it.
        assert outcomes[-1] is RunStatus.COMPLETED
        lasting = [outcome for outcome in outcomes if outcome is not RunStatus.FAILED]
        wanted = PAUSED_ONCE if stage.is_resumed(run) else [RunStatus.COMPLETED]
        assert lasting == wanted, stage.history("letters", partition)
        late = list(filter(was_superseded, stage.runs_of("letters", partition)))
        # FAILURE if it was launched twice, see above: both workers are told to end, and the earlier
        # one's RUN_CANCELED falls between the later one's look for CANCELING and Dagster's own.
        for run in late:
            assert run.status.value == "CANCELED" or (
                run.status.value == "FAILURE" and stage.launches(run.run_id) > 1
            )
        stage.assert_each_arrived_once("letters", partition)


def test_a_pause_that_races_the_completion_leaves_no_run_in_between(stage: Stage):
    partitions = new_partitions(3)
    everything = Target(TargetKind.EVERYTHING)
    for n, partition in enumerate(partitions):
        launched = stage.launch("notices", partition)
        # The last records are under way, or the last op has just ended.
        stage.wait(
            lambda p=partition, left=n: len(stage.arrived("notices", p)) >= RECORDS - left,
            "the run is near its end",
            every_s=0.005,
        )
        with stage.store.begin() as conn:
            holds.place(
                conn,
                stage.store.now(conn),
                everything,
                source=HoldSource.OPERATOR,
                reason="race",
                actor="ann",
            )
        stage.wait(lambda run=launched: stage.is_over(run), "the run has ended")
        waited = stage.now()
        stage.wait(lambda since=waited: stage.ticked_since(since), "the gate has looked")
        ended, status = stage.status(launched), stage.campaign_run("notices", partition)
        assert (ended, status) in [("SUCCESS", "completed"), ("CANCELED", "paused")]
        stage.tidegate("release", "everything", "--actor", "ann")
        stage.settle()
        outcomes = stage.outcomes("notices", partition)
        wanted = [RunStatus.PAUSED] if ended == "CANCELED" else []
        assert outcomes == [*wanted, RunStatus.COMPLETED], stage.history("notices", partition)
        stage.assert_each_arrived_once("notices", partition)


def test_of_a_resume_and_a_manual_re_execution_one_works_and_the_other_is_refused(stage: Stage):
    [partition] = new_partitions(1)
    paused = stage.launch("letters", partition, **NO_RETRIES)
    stage.wait(lambda: stage.sandbox.stats()["openai"]["effects"] > 4, "openai is called")
    stage.outage("openai")
    stage.wait(lambda: stage.is_paused(paused), "the run is paused")
    # Whoever is first is still at it when the other comes.
    stage.sandbox.place("instantly", Fault(mode=Mode.SLOW, latency_s=1))
    stage.heal("openai")
    stage.wait(lambda: len(stage.runs_of("letters", partition)) > 1, "the gate resumes it")
    by_hand = stage.launch_again(paused)
    stage.wait(
        lambda: (
            len(stage.runs_of("letters", partition)) == 3
            and sum(map(stage.is_over, [run.run_id for run in stage.runs_of("letters", partition)]))
            == 2
        ),
        "one of them is refused",
    )
    stage.heal("instantly")
    stage.settle()
    assert stage.campaign_run("letters", partition) == "completed"
    assert stage.outcomes("letters", partition) == [RunStatus.PAUSED, RunStatus.COMPLETED]
    stage.assert_each_arrived_once("letters", partition)
    _, *others = stage.runs_of("letters", partition)
    assert by_hand in [run.run_id for run in others]
    [refused] = [run for run in others if run.status.value != "SUCCESS"]
    if refused.run_id == by_hand:
        assert refused.status.value == "FAILURE"
        assert "which has not ended" in stage.said(refused.run_id)
    else:
        assert refused.status.value == "CANCELED"
        logged = [entry.message for entry in stage.instance.all_logs(refused.run_id)]
        assert any(f"Dagster run {by_hand} resumed" in message for message in logged), logged


# --- kills ------------------------------------------------------------------------------------

ROUNDS = int(os.environ.get("TIDEGATE_TEST_ROUNDS", "2"))
SEED = int(os.environ.get("TIDEGATE_TEST_SEED", "15"))
# The campaigns that need each service, and call it once for each record.
NEEDING = {"openai": ("letters", "essays"), "instantly": ("letters", "notices")}
# How long pausing and recovering take, about, seconds.
PAUSING_S, RECOVERING_S = 4.0, 8.0


@dataclass(frozen=True)
class Round:
    """What happens in a round: it is all in the seed."""

    seed: int
    service: str
    jobs: tuple[str, ...]
    recovering: bool
    delay_s: float
    victims: tuple[str, ...]

    @classmethod
    def of(cls, seed: int) -> "Round":
        chance = random.Random(seed)
        recovering = chance.random() < 0.5
        service = chance.choice(sorted(NEEDING))
        return cls(
            seed=seed,
            service=service,
            # Most rounds have one campaign run, to be short.
            jobs=chance.choice([NEEDING[service], *((job,) for job in NEEDING[service])]),
            recovering=recovering,
            delay_s=round(chance.uniform(0, RECOVERING_S if recovering else PAUSING_S), 3),
            # With its code server, the sensors' ticks are broken off in their middle too.
            victims=chance.choice([("daemon",), ("daemon", "code")]),
        )

    def __str__(self) -> str:
        moment = "of recovering" if self.recovering else "of pausing"
        return (
            f"TIDEGATE_TEST_SEED={self.seed} TIDEGATE_TEST_ROUNDS=1: {self.service} fails under "
            f"{' and '.join(self.jobs)}, "
            f"{' and '.join(self.victims)} killed after {self.delay_s} s {moment}"
        )


@pytest.mark.timeout(600 * ROUNDS)
def test_a_daemon_killed_at_any_moment_changes_nothing_of_the_outcome(stage: Stage):
    for number in range(ROUNDS):
        planned = Round.of(SEED + number)
        print(f"round {number}: {planned}", flush=True)
        began = time.monotonic()
        try:
            play(stage, planned, *new_partitions(1))
        except AssertionError as error:
            error.add_note(f"round {number}: {planned}")
            raise
        print(f"  took {time.monotonic() - began:.1f} s", flush=True)


def play(stage: Stage, planned: Round, partition: str) -> None:
    service, jobs = planned.service, planned.jobs
    stage.sandbox.reset()
    before = stage.settings()
    for job in jobs:
        stage.launch(job, partition)
    stage.let_begin(service, *((job, partition) for job in jobs))

    stage.outage(service)
    if planned.recovering:
        stage.wait(lambda: all_paused(stage, jobs, partition), "the campaigns are paused")
        stage.heal(service)
    kill_after(stage, planned)
    if not planned.recovering:
        stage.wait(lambda: all_paused(stage, jobs, partition), "the campaigns are paused")
        stage.heal(service)
    stage.settle(MAX_S + START_TIMEOUT_S)

    assert stage.settings() == before
    attempts = {job: stage.outcomes(job, partition) for job in jobs}
    for job, outcomes in attempts.items():
        # Each pause is followed by one next attempt; a canary that came too early pauses again.
        *former, last = outcomes
        assert last is RunStatus.COMPLETED, attempts
        assert set(former) <= {RunStatus.PAUSED}, attempts
        assert len(former) <= (1 if service == "openai" else 3), attempts
        # A kill may end a run before its first record; nothing else makes more runs than attempts.
        found = stage.runs_of(job, partition)
        with stage.store.read() as conn:
            made = runs.attempts_of(conn, [run.run_id for run in found])
        idle = {run.run_id: run.status.value for run in found if run.run_id not in made}
        assert set(idle.values()) <= {"FAILURE", "CANCELED"}, idle
        assert len(made) == len(outcomes), made
    assert any(len(outcomes) > 1 for outcomes in attempts.values()), attempts

    stats = stage.sandbox.stats()
    for name, callers in NEEDING.items():
        wanted = RECORDS * len(set(callers) & set(jobs))
        assert stats[name]["effects"] == stats[name]["subjects"] == wanted, (name, stats[name])
    assert stage.sent_twice() == {}


def all_paused(stage: Stage, jobs: tuple[str, ...], partition: str) -> bool:
    """Whether no campaign run works any more: each is paused or waits in the queue."""
    found = [run for job in jobs for run in stage.runs_of(job, partition)]
    return all(run.is_finished or run.status.value == "QUEUED" for run in found) and any(
        stage.is_paused(run.run_id) for run in found
    )


def kill_after(stage: Stage, planned: Round) -> None:
    """Kill and start again, at the moment that the round says."""
    moment = time.monotonic() + planned.delay_s
    stage.wait(lambda: time.monotonic() >= moment, "the moment has come")
    stage.kill(*planned.victims)
    if "code" in planned.victims:
        stage.start_code()
    stage.start_daemon()


# --- two code locations -----------------------------------------------------------------------
# Last: from then on both must be there, since each gate frees what is its own.

# Runs are still at work when everything has been looked at.
SLOW = Fault(mode=Mode.SLOW, latency_s=0.2)


@pytest.mark.usefixtures("other_location")
def test_a_trip_in_one_location_pauses_all_and_each_gate_frees_its_own(stage: Stage):
    first, second = new_partitions(2)
    before = stage.settings()
    stage.sandbox.place("openai", SLOW)
    ours = stage.launch("essays", first)
    stage.wait(lambda: stage.sandbox.stats()["openai"]["effects"] > 4, "openai is called")
    stage.outage("openai")
    stage.wait(lambda: stage.is_paused(ours), "what trips is paused")
    # The other location never had a failed call: it knows from the first.
    theirs = stage.launch("reviews", "0", OTHER_LOCATION)
    for trigger in TRIGGERS | OTHER_TRIGGERS:
        stage.wait(
            lambda trigger=trigger: stage.settings().triggers[trigger] == "STOPPED",
            f"{trigger} has stopped",
        )
    assert stage.settings().triggers["notices_schedule"] == "RUNNING", "it does not need openai"
    assert stage.pools()["openai"] == stage.pools()["openai@reviews"] == "0"
    stopped_at = stage.now()
    stage.wait(lambda: stage.ticked_since(stopped_at + TICKS), "both gates have looked again")
    assert stage.status(theirs) == "QUEUED"

    stage.heal("openai")
    stage.settle()
    assert stage.settings() == before
    assert stage.outcomes("essays", first) == PAUSED_ONCE
    assert stage.outcomes("reviews", "0") == [RunStatus.COMPLETED]

    stage.sandbox.place("openai", SLOW)
    # Now the code server of the other location is away while the service recovers.
    stage.launch("reviews", "1", OTHER_LOCATION)
    stage.wait(lambda: stage.campaign_run("reviews", "1") == "processing", "reviews are at work")
    stage.outage("openai")
    stage.wait(lambda: stage.campaign_run("reviews", "1") == "paused", "reviews pause")
    for trigger in TRIGGERS | OTHER_TRIGGERS:
        stage.wait(
            lambda trigger=trigger: stage.settings().triggers[trigger] == "STOPPED",
            f"{trigger} has stopped",
        )
    stage.launch("essays", second)
    stage.kill("other_code")
    stage.heal("openai")
    stage.wait(lambda: stage.campaign_run("essays", second) == "completed", "essays go on")
    for name in TRIGGERS:
        stage.wait(
            lambda name=name: stage.settings().triggers[name] == before.triggers[name],
            f"{name} is as it was",
        )
    assert stage.settings().triggers["new_reviews"] == "STOPPED"
    assert stage.campaign_run("reviews", "1") == "paused"

    stage.start_code(OTHER_LOCATION)
    stage.settle()
    assert stage.settings() == before
    assert stage.outcomes("reviews", "1") == PAUSED_ONCE
    assert stage.sandbox.stats()["openai"]["effects"] == 4 * RECORDS
    assert stage.sent_twice() == {}
