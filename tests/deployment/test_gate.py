"""The gate in a real deployment: Dagster's daemon, code servers, run workers, the sandbox.

One deployment serves all tests but one, and another those of `test_gate_answers.py`.
`TIDEGATE_TEST_ROUNDS` and `TIDEGATE_TEST_SEED` say how many rounds of kills there are and where
they begin: round n of a seed is round 0 of the seed n later, so that each can be replayed alone.
"""

import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from dagster_tidegate.dagster_api.lineage import was_superseded
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import holds, runs
from demo.sandbox.faults import Fault, Mode
from tests.conftest import NewUrl
from tests.deployment.gate_stage import (
    LOCATION,
    MAX_S,
    OTHER_LOCATION,
    OTHER_TRIGGERS,
    PAUSED_ONCE,
    RECORDS,
    REPOSITORY,
    START_TIMEOUT_S,
    TICKS,
    TRIGGERS,
    Stage,
    gate_stage,
    new_partitions,
)

# A code server that is away is no error.
pytestmark = pytest.mark.filterwarnings("ignore:Error loading repository location")


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
    with gate_stage(home, new_postgres_url(), dagster_url=new_dagster_url()) as stage:
        two_daemons_at_once(stage)


def two_daemons_at_once(stage: Stage) -> None:
    partitions = new_partitions(2)
    before = stage.settings()
    stage.start_daemon("second daemon")
    launched = [stage.launch("letters", partition) for partition in partitions]
    stage.let_begin("openai", *(("letters", partition) for partition in partitions))
    stage.outage("openai")
    stage.wait(
        lambda: any(RunStatus.PAUSED in stage.outcomes("letters", each) for each in partitions),
        "one is paused",
    )
    stage.wait(lambda: not stage.at_work(), "none works any more")
    stage.heal("openai")
    stage.settle()
    assert stage.settings() == before
    for run, partition in zip(launched, partitions, strict=True):
        outcomes = stage.outcomes("letters", partition)
        # Both daemons may launch one run: each reads that it is queued before the other has written
        # that it starts (dagster 1.13, queued_run_coordinator_daemon.py, `_dequeue_run`). The step
        # of the later worker then ends without success, and unless Dagster's run is CANCELING at
        # that moment, `job_execution_iterator` (_core/execution/api.py) ends it as failed. That
        # overwrites whatever the earlier worker had reported (`handle_run_event` of the run storage
        # does not look at the status before), and run_retries retry it.
        assert outcomes[-1] is RunStatus.COMPLETED
        lasting = [outcome for outcome in outcomes if outcome is not RunStatus.FAILED]
        if stage.launches(run) == 1:
            wanted = [PAUSED_ONCE] if stage.is_resumed(run) else [[RunStatus.COMPLETED]]
        else:  # its retry may go on in place of the gate's next attempt
            wanted = [PAUSED_ONCE, [RunStatus.COMPLETED]]
        assert lasting in wanted, stage.history("letters", partition)
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


@pytest.fixture
def other_location(shared: Stage) -> None:
    """The other code location, from here on; a test has it before `stage`."""
    shared.start_other_location()


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
