"""Campaigns under both executors, each run a process as a run launcher starts it."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._grpc.types import ExecuteRunArgs

from dagster_tidegate.dagster_api.instance import Dagster
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import holds, runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store
from tests.integration.executors_project import jobs
from tests.support.polling import wait_until

ROOT = Path(__file__).parents[2]
PROJECT = Path(__file__).parent / "executors_project" / "jobs.py"
SOON_S = 240.0
pytestmark = pytest.mark.timeout(600)
ALL = [str(n) for n in range(jobs.COUNT)]


class Campaign:
    """The campaign run of one partition, worked on by processes."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, store: Store, job: str) -> None:
        self.folder, self.instance, self.store, self.job = folder, instance, store, job
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self) -> tuple[str, subprocess.Popen[bytes]]:
        """Start a run as the launchers for containers do: `dagster api execute_run`."""
        job = ReconstructableJob.for_file(str(PROJECT), self.job)
        run = self.instance.create_run_for_job(
            job_def=job.get_definition(),
            tags={"dagster/partition": "leads-1"},
            job_code_origin=job.get_python_origin(),
        )
        arguments = ExecuteRunArgs(
            job_origin=job.get_python_origin(),
            run_id=run.run_id,
            instance_ref=self.instance.get_ref(),
        )
        with (self.folder / f"{run.run_id}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments.get_command_args()],
                cwd=ROOT,
                env={
                    **os.environ,
                    "DAGSTER_HOME": str(self.folder / "home"),
                    "EXECUTORS_PROJECT_FOLDER": str(self.folder),
                    "TIDEGATE_STORE_URL": self.store.url.render_as_string(hide_password=False),
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return run.run_id, process

    def end_of(self, started: tuple[str, subprocess.Popen[bytes]]) -> dg.DagsterRunStatus:
        """Wait for the end of a run's process, and return what Dagster has of the run."""
        run_id, process = started
        process.wait(SOON_S)
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def calls(self) -> Counter[str]:
        path = self.folder / "calls"
        return Counter(path.read_text().splitlines() if path.exists() else [])

    def under_way(self) -> bool:
        """Whether each op that can be worked on waits in its record."""
        waiting = [op for op in ("left", "right") if self.calls()[f"{op} {jobs.WAITS}"]]
        return len(waiting) == (2 if self.job == "in_processes" else 1)

    def go_on(self) -> None:
        """Let the records that wait go on, now and from now on."""
        (self.folder / "go").touch()

    @property
    def run(self) -> runs.CampaignRun:
        with self.store.read() as conn:
            found = runs.find(conn, self.job, "leads-1")
        assert found is not None
        return found

    def attempts(self) -> list[str]:
        with self.store.read() as conn:
            return [attempt.dagster_run for attempt in runs.attempts(conn, self.run.id)]

    def in_doubt(self) -> list[str]:
        query = sa.select(t.ledger.c.key).where(t.ledger.c.status == RecordStatus.STARTED)
        with self.store.read() as conn:
            return list(conn.scalars(query))

    def assert_all_done_once(self) -> None:
        assert self.calls() == Counter(f"{op} {key}" for op in ("left", "right") for key in ALL)
        assert (self.folder / "joined").read_text().split() == [*ALL, *ALL]


# The executor makes the difference, and several processes meet in the store at once.
ON_SQLITE = [("in_processes", "sqlite"), ("in_one_process", "sqlite")]
# A signal has nothing to do with the store.
on_sqlite = pytest.mark.parametrize("campaign", ON_SQLITE, ids="-".join, indirect=True)


@pytest.fixture(params=[*ON_SQLITE, ("in_processes", "postgres")], ids="-".join)
def campaign(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Campaign]:
    job, database = request.param
    home = tmp_path / "home"
    home.mkdir()
    settings = {"concurrency": {"pools": {"granularity": "run"}}, "telemetry": {"enabled": False}}
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    store = Store(request.getfixturevalue(f"{database}_url"))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        campaign = Campaign(tmp_path, instance, store, job)
        yield campaign
        for process in campaign.started:
            process.kill()
            process.wait()
    store.dispose()


def test_all_ops_of_a_run_share_one_attempt(campaign: Campaign):
    campaign.go_on()
    started = campaign.start()
    assert campaign.end_of(started) is dg.DagsterRunStatus.SUCCESS
    assert campaign.attempts() == [started[0]]
    campaign.assert_all_done_once()


def test_a_hold_stops_every_step_and_the_next_run_does_the_rest(campaign: Campaign):
    paused = campaign.start()
    wait_until(campaign.under_way)
    mail = Target(TargetKind.SERVICE, "mail")
    with campaign.store.begin() as conn:
        holds.place(
            conn,
            campaign.store.now(conn),
            mail,
            source=HoldSource.OPERATOR,
            reason="maintenance",
            actor="ana",
        )
    campaign.go_on()
    assert campaign.end_of(paused) is dg.DagsterRunStatus.CANCELED
    assert campaign.run.status is RunStatus.PAUSED
    assert 0 < campaign.calls().total() < 2 * jobs.COUNT
    assert campaign.in_doubt() == []

    with campaign.store.begin() as conn:
        now = campaign.store.now(conn)
        holds.release(conn, now, mail, source=HoldSource.OPERATOR, actor="ana")
    resumed = campaign.start()
    assert campaign.end_of(resumed) is dg.DagsterRunStatus.SUCCESS
    assert campaign.attempts() == [paused[0], resumed[0]]
    campaign.assert_all_done_once()


@on_sqlite
def test_dagster_says_of_a_run_that_it_failed_since_its_process_was_told_to_end(campaign: Campaign):
    """Outside a record loop, by which the gate knows that it is to be resumed."""
    (campaign.folder / "stay").touch()
    campaign.go_on()
    told = campaign.start()
    wait_until((campaign.folder / "joining").exists)
    told[1].send_signal(signal.SIGTERM)
    assert campaign.end_of(told) is dg.DagsterRunStatus.FAILURE
    run = campaign.instance.get_run_by_id(told[0])
    assert run is not None
    assert Dagster(campaign.instance).was_interrupted(run)
    (campaign.folder / "stay").unlink()
    assert campaign.end_of(campaign.start()) is dg.DagsterRunStatus.SUCCESS
    campaign.assert_all_done_once()


@on_sqlite
@pytest.mark.parametrize("terminated", [False, True], ids=["evicted", "terminated"])
def test_a_run_whose_process_is_told_to_end_pauses_unless_a_person_terminated_it(
    campaign: Campaign, terminated: bool
):
    stopped = campaign.start()
    wait_until(campaign.under_way)
    if terminated:  # as each launcher does before it sends the signal
        run = campaign.instance.get_run_by_id(stopped[0])
        assert run is not None
        campaign.instance.report_run_canceling(run)
    stopped[1].send_signal(signal.SIGTERM)
    campaign.go_on()
    assert campaign.end_of(stopped) is dg.DagsterRunStatus.CANCELED
    expected = RunStatus.CANCELLED if terminated else RunStatus.PAUSED
    assert campaign.run.status is expected
    run = campaign.instance.get_run_by_id(stopped[0])
    assert run is not None
    assert run.tags["tidegate/state"] == expected
    why = "it was terminated in Dagster" if terminated else "its process was told to end (SIG"
    assert run.tags["tidegate/reason"].startswith(why)
    assert campaign.calls().total() < 2 * jobs.COUNT
    assert campaign.in_doubt() == []

    assert campaign.end_of(campaign.start()) is dg.DagsterRunStatus.SUCCESS
    campaign.assert_all_done_once()
