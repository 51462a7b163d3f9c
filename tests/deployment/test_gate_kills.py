"""Dagster's daemon is killed at random moments of pausing and recovering; nothing shows of it.

`TIDEGATE_TEST_ROUNDS` says how many rounds, `TIDEGATE_TEST_SEED` where they begin: round n of a
seed is round 0 of the seed n later, so that each can be replayed alone.
"""

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import runs
from tests.deployment.gate_stage import MAX_S, Stage, gate_stage

ROUNDS = int(os.environ.get("TIDEGATE_TEST_ROUNDS", "2"))
SEED = int(os.environ.get("TIDEGATE_TEST_SEED") or random.randrange(10**6))
RECORDS = 25
# The campaigns that need each service, and call it once for each record.
NEEDING = {"openai": ("letters", "essays"), "instantly": ("letters", "notices")}
# How long pausing and recovering take, about, seconds.
PAUSING_S, RECOVERING_S = 2.0, 5.0
# A daemon that is killed between noting that it starts a run and starting it leaves one that has
# failed after so long; Dagster then retries it.
START_TIMEOUT_S = 45


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


@pytest.mark.filterwarnings("ignore:Error loading repository location")
@pytest.mark.timeout(300 + 120 * ROUNDS)
def test_a_daemon_killed_at_any_moment_changes_nothing_of_the_outcome(tmp_path: Path):
    home = tmp_path / "home"
    url = f"sqlite:///{home / 'tidegate.db'}"
    with gate_stage(home, url, records=RECORDS, start_timeout_s=START_TIMEOUT_S) as stage:
        for number in range(ROUNDS):
            planned = Round.of(SEED + number)
            print(f"round {number}: {planned}", flush=True)
            began = time.monotonic()
            try:
                play(stage, planned, str(number))
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
    stage.wait(lambda: stage.sandbox.stats()[service]["effects"] >= 3, f"{service} is called")

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
