"""Two at once: two daemons, a pause and a completion, a resume and a person who is as fast."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dagster_tidegate.dagster_api.lineage import SUPERSEDED_TAG
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import holds
from demo.sandbox.faults import Fault, Mode
from tests.conftest import NewUrl
from tests.deployment.gate_stage import Stage, gate_stage

# A busy machine makes real processes many times slower.
pytestmark = pytest.mark.timeout(600)
RECORDS = 20
NO_RETRIES = {"dagster/max_retries": "0"}


@pytest.fixture
def make_stage(
    tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[[str], AbstractContextManager[Stage]]:
    def make(database: str):
        home = tmp_path / "home"
        if database == "sqlite":
            return gate_stage(home, f"sqlite:///{home / 'tidegate.db'}", records=RECORDS)
        ours: NewUrl = request.getfixturevalue("new_postgres_url")
        dagsters: NewUrl = request.getfixturevalue("new_dagster_url")
        return gate_stage(home, ours(), dagster_url=dagsters(), records=RECORDS)

    return make


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_two_daemons_at_once_resume_nothing_twice(make_stage, database: str):
    partitions = ("0", "1")
    with make_stage(database) as stage:
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
            wanted = [RunStatus.PAUSED] if stage.is_resumed(run) else []
            assert outcomes == [*wanted, RunStatus.COMPLETED]
            found = stage.runs_of("letters", partition)
            late = [run for run in found if SUPERSEDED_TAG in run.tags]
            # Each daemon may have launched it; the later of the two found that out.
            assert {run.status.value for run in late} <= {"CANCELED"}
            assert len(found) - len(late) == len(outcomes)
            stage.assert_each_arrived_once("letters", partition)


def test_a_pause_that_races_the_completion_leaves_no_run_in_between(make_stage):
    partitions = [str(number) for number in range(3)]
    everything = Target(TargetKind.EVERYTHING)
    with make_stage("sqlite") as stage:
        before = stage.settings()
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
            assert stage.settings() == before
            outcomes = stage.outcomes("notices", partition)
            wanted = [RunStatus.PAUSED] if ended == "CANCELED" else []
            assert outcomes == [*wanted, RunStatus.COMPLETED]
            stage.assert_each_arrived_once("notices", partition)


def test_of_a_resume_and_a_manual_re_execution_one_works_and_the_other_is_refused(make_stage):
    with make_stage("sqlite") as stage:
        before = stage.settings()
        paused = stage.launch("letters", "0", **NO_RETRIES)
        stage.wait(lambda: stage.sandbox.stats()["openai"]["effects"] > 4, "openai is called")
        stage.outage("openai")
        stage.wait(lambda: stage.is_paused(paused), "the run is paused")
        # Whoever is first is still at it when the other comes.
        stage.sandbox.place("instantly", Fault(mode=Mode.SLOW, latency_s=1))
        stage.heal("openai")
        stage.wait(lambda: len(stage.runs_of("letters", "0")) > 1, "the gate resumes it")
        by_hand = stage.launch_again(paused)
        stage.wait(
            lambda: (
                len(stage.runs_of("letters", "0")) == 3
                and sum(map(stage.is_over, [run.run_id for run in stage.runs_of("letters", "0")]))
                == 2
            ),
            "one of them is refused",
        )
        stage.heal("instantly")
        stage.settle()
        assert stage.settings() == before
        assert stage.campaign_run("letters", "0") == "completed"
        assert stage.outcomes("letters", "0") == [RunStatus.PAUSED, RunStatus.COMPLETED]
        stage.assert_each_arrived_once("letters", "0")
        _, *others = stage.runs_of("letters", "0")
        assert by_hand in [run.run_id for run in others]
        [refused] = [run for run in others if run.status.value != "SUCCESS"]
        if refused.run_id == by_hand:
            assert refused.status.value == "FAILURE"
            assert "which has not ended" in stage.said(refused.run_id)
        else:
            assert refused.status.value == "CANCELED"
            assert "was faster" in stage.said(refused.run_id)
