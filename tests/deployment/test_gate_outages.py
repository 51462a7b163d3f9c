"""Outages of real services under Dagster's real daemon: what pauses, and what goes on."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from dagster_tidegate.statuses import BreakerState, RunStatus
from tests.deployment.gate_stage import Stage, gate_stage

# A busy machine makes real processes many times slower.
pytestmark = pytest.mark.timeout(600)
PAUSED_ONCE = [RunStatus.PAUSED, RunStatus.COMPLETED]
# Long enough for many ticks of the gate, in which it could do what it should not.
TICKS = timedelta(seconds=2)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    home = tmp_path / "home"
    with gate_stage(home, f"sqlite:///{home / 'tidegate.db'}") as stage:
        yield stage


def test_recovery_of_one_service_frees_only_what_the_other_does_not_hold(stage: Stage):
    before = stage.settings()
    both = stage.launch("letters", "0")
    first = stage.launch("essays", "0")
    stage.wait(lambda: stage.sandbox.stats()["openai"]["effects"] > 4, "both are at work")
    stage.outage("openai", "instantly")
    second = stage.launch("notices", "0")
    for run in (both, first, second):
        stage.wait(lambda run=run: stage.is_paused(run), f"run {run} is paused")
    assert stage.held() == {"service openai by breaker", "service instantly by breaker"}

    stage.heal("openai")
    stage.wait(lambda: stage.campaign_run("essays", "0") == "completed", "essays go on")
    stage.wait(lambda: "openai" not in stage.pools(), "the pool of openai is as it was")
    healed_at = stage.now()
    stage.wait(lambda: stage.ticked_since(healed_at + TICKS), "the gate has looked again")
    assert stage.held() == {"service instantly by breaker"}
    assert stage.pools()["instantly+openai@letters"] == "0"
    assert stage.settings().triggers["new_letters"] == "STOPPED"
    for job in ("letters", "notices"):
        # A canary looks now and then whether instantly is back, and pauses again.
        assert "SUCCESS" not in [run.status.value for run in stage.runs_of(job, "0")]

    stage.heal("instantly")
    stage.settle()
    assert stage.settings() == before
    assert stage.outcomes("essays", "0") == PAUSED_ONCE
    for job in ("letters", "notices"):
        assert stage.campaign_run(job, "0") == "completed"
        stage.assert_each_arrived_once(job, "0")


def test_an_operators_hold_survives_the_recovery(stage: Stage):
    before = stage.settings()
    paused = stage.launch("letters", "0")
    other = stage.launch("essays", "0")
    stage.wait(lambda: stage.sandbox.stats()["openai"]["effects"] > 4, "openai is called")
    stage.outage("openai")
    for run in (paused, other):
        stage.wait(lambda run=run: stage.is_paused(run), f"run {run} is paused")
    held = ("campaign", "letters", "--actor", "ann")
    said = stage.tidegate("hold", *held, "--reason", "wrong template")
    assert "wrong template" in said
    stage.heal("openai")

    stage.wait(lambda: stage.campaign_run("essays", "0") == "completed", "essays go on")
    assert stage.breaker("openai") is BreakerState.CLOSED
    waiting = stage.launch("letters", "1")
    launched_at = stage.now()
    stage.wait(lambda: stage.ticked_since(launched_at + TICKS), "the gate has looked again")
    assert stage.held() == {"campaign letters by operator"}
    assert stage.campaign_run("letters", "0") == "paused"
    assert [run.run_id for run in stage.runs_of("letters", "0")] == [paused]
    assert stage.status(waiting) == "QUEUED"
    assert "openai" not in stage.pools()
    assert "wrong template" in stage.tidegate("status")

    stage.tidegate("release", *held)
    stage.settle()
    assert stage.settings() == before
    assert stage.outcomes("letters", "0") == PAUSED_ONCE
    assert stage.outcomes("letters", "1") == [RunStatus.COMPLETED]
    for partition in ("0", "1"):
        stage.assert_each_arrived_once("letters", partition)


@pytest.mark.filterwarnings("ignore:Error loading repository location")
def test_a_code_location_that_is_gone_for_a_while_finds_everything_again(stage: Stage):
    before = stage.settings()
    runs = {job: stage.launch(job, "0") for job in ("letters", "essays")}
    stage.wait(lambda: stage.sandbox.stats()["openai"]["effects"] > 4, "openai is called")
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
    assert stage.settings() == before
    for job in runs:
        assert stage.outcomes(job, "0") == PAUSED_ONCE
    stage.assert_each_arrived_once("letters", "0")
