"""Campaigns under both executors, each run a process as a run launcher starts it."""

import json
import multiprocessing
import os
import runpy
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
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

PROJECT = Path(__file__).parent / "executors_project" / "jobs.py"
SOON_S = 240.0
pytestmark = pytest.mark.timeout(900)
ALL = [str(n) for n in range(jobs.COUNT)]


# A process that imports everything itself takes three seconds of a processor.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["dagster._cli.api", "dagster_tidegate"])


def execute(command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Be the process of a run: `python -m dagster api execute_run ...`."""
    with log.open("wb") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    os.environ.update(environment)
    sys.argv = list(command)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


class Campaign:
    """The campaign run of one partition, worked on by processes."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, store: Store, job: str) -> None:
        self.folder, self.instance, self.store, self.job = folder, instance, store, job
        self.started: list[BaseProcess] = []

    def start(self, failed: str | None = None) -> tuple[str, BaseProcess]:
        """Start a run as the launchers for containers do: `dagster api execute_run`.

        Args:
            failed: The run which it re-executes from failure.
        """
        job = ReconstructableJob.for_file(str(PROJECT), self.job)
        tags = {"dagster/partition": "leads-1"}
        if failed is not None:
            tags["dagster/is_resume_retry"] = "true"
        run = self.instance.create_run_for_job(
            job_def=job.get_definition(),
            tags=tags,
            job_code_origin=job.get_python_origin(),
            root_run_id=failed,
            parent_run_id=failed,
        )
        arguments = ExecuteRunArgs(
            job_origin=job.get_python_origin(),
            run_id=run.run_id,
            instance_ref=self.instance.get_ref(),
        )
        log = self.folder / f"{run.run_id}.log"
        return run.run_id, self._process(arguments.get_command_args(), log)

    def execute(self) -> dg.DagsterRunStatus:
        """Execute the job with `dagster job execute`, and return how its run ended."""
        runs_before = {run.run_id for run in self.instance.get_runs()}
        tags = json.dumps({"dagster/partition": "leads-1"})
        command = ["dagster", "job", "execute", "-f", str(PROJECT), "-j", self.job, "--tags", tags]
        process = self._process(command, self.folder / "execute.log")
        process.join(SOON_S)
        [run] = [run for run in self.instance.get_runs() if run.run_id not in runs_before]
        return run.status

    def _process(self, command: Sequence[str], log: Path) -> BaseProcess:
        environment = {
            "DAGSTER_HOME": str(self.folder / "home"),
            "EXECUTORS_PROJECT_FOLDER": str(self.folder),
            "TIDEGATE_STORE_URL": self.store.url.render_as_string(hide_password=False),
        }
        process = processes.Process(target=execute, args=(command, environment, log))
        process.start()
        self.started.append(process)
        return process

    def end_of(self, started: tuple[str, BaseProcess]) -> dg.DagsterRunStatus:
        """Wait for the end of a run's process, and return what Dagster has of the run."""
        run_id, process = started
        process.join(SOON_S)
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def calls(self) -> Counter[str]:
        path = self.folder / "calls"
        return Counter(path.read_text().splitlines() if path.exists() else [])

    def wait_for_records(self, key: str) -> None:
        """Wait until each op that can be worked on waits in a record."""
        ops = 2 if self.job == "in_processes" else 1
        wait_until(lambda: sum(self.calls()[f"{op} {key}"] for op in ("left", "right")) == ops)

    def go_on(self, *keys: str) -> None:
        """Let records that wait go on, now and from now on."""
        for key in keys:
            (self.folder / f"go {key}").touch()

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


@pytest.fixture
def campaign(tmp_path: Path, job: str, store_url: str) -> Iterator[Campaign]:
    home = tmp_path / "home"
    home.mkdir()
    settings = {"concurrency": {"pools": {"granularity": "run"}}, "telemetry": {"enabled": False}}
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    store = Store(store_url)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        campaign = Campaign(tmp_path, instance, store, job)
        yield campaign
        for process in campaign.started:
            process.kill()
            process.join()
    store.dispose()


MAIL = Target(TargetKind.SERVICE, "mail")


def hold(campaign: Campaign) -> None:
    with campaign.store.begin() as conn:
        now = campaign.store.now(conn)
        holds.place(conn, now, MAIL, source=HoldSource.OPERATOR, reason="maintenance", actor="ana")


def release(campaign: Campaign) -> None:
    with campaign.store.begin() as conn:
        now = campaign.store.now(conn)
        holds.release(conn, now, MAIL, source=HoldSource.OPERATOR, actor="ana")


def stopped_by_a_hold(campaign: Campaign, key: str) -> str:
    """Hold the service while a record is under way, and return the run that this has paused."""
    paused = campaign.start()
    campaign.wait_for_records(key)
    hold(campaign)
    campaign.go_on(key)
    assert campaign.end_of(paused) is dg.DagsterRunStatus.CANCELED
    assert campaign.run.status is RunStatus.PAUSED
    assert 0 < campaign.calls().total() < 2 * jobs.COUNT
    assert campaign.in_doubt() == []
    release(campaign)
    return paused[0]


def stopped_by_a_signal(campaign: Campaign, key: str, *, terminated: bool) -> str:
    """Send a run SIGTERM while a record is under way, and return the run."""
    stopped = campaign.start()
    campaign.wait_for_records(key)
    if terminated:  # as each launcher does before it sends the signal
        run = campaign.instance.get_run_by_id(stopped[0])
        assert run is not None
        campaign.instance.report_run_canceling(run)
    stopped[1].terminate()
    campaign.go_on(key)
    assert campaign.end_of(stopped) is dg.DagsterRunStatus.CANCELED
    expected = RunStatus.CANCELLED if terminated else RunStatus.PAUSED
    assert campaign.run.status is expected
    run = campaign.instance.get_run_by_id(stopped[0])
    assert run is not None
    assert run.tags["tidegate/state"] == expected
    why = "it was terminated in Dagster" if terminated else "its process received SIG"
    assert run.tags["tidegate/reason"].startswith(why)
    assert campaign.calls().total() < 2 * jobs.COUNT
    assert campaign.in_doubt() == []
    return stopped[0]


def stopped_outside_a_record_loop(campaign: Campaign, failed: str) -> str:
    """Send the re-execution of a run SIGTERM in its last op, and return it: it failed for Dagster.

    By that the gate knows that it is to be resumed.
    """
    (campaign.folder / "stay").touch()
    stopped = campaign.start(failed)
    wait_until((campaign.folder / "joining").exists)
    stopped[1].terminate()
    assert campaign.end_of(stopped) is dg.DagsterRunStatus.FAILURE
    run = campaign.instance.get_run_by_id(stopped[0])
    assert run is not None
    assert Dagster(campaign.instance).was_interrupted(run)
    (campaign.folder / "stay").unlink()
    return stopped[0]


@pytest.mark.parametrize("job", ["in_processes", "in_one_process"])
def test_whatever_stops_a_run_its_ops_share_one_attempt_and_each_record_is_done_once(
    campaign: Campaign,
):
    evicted = stopped_by_a_signal(campaign, "3", terminated=False)
    held = stopped_by_a_hold(campaign, "12")
    terminated = stopped_by_a_signal(campaign, "20", terminated=True)
    interrupted = stopped_outside_a_record_loop(campaign, terminated)
    last = campaign.start()
    assert campaign.end_of(last) is dg.DagsterRunStatus.SUCCESS
    assert campaign.attempts() == [evicted, held, terminated, interrupted, last[0]]
    campaign.assert_all_done_once()


@pytest.mark.parametrize("job", ["in_one_process"])
def test_a_job_that_is_executed_by_the_command_pauses_goes_on_and_then_starts_afresh(
    campaign: Campaign,
):
    campaign.go_on(*jobs.WAITS)
    hold(campaign)
    assert campaign.execute() is dg.DagsterRunStatus.CANCELED
    assert campaign.run.status is RunStatus.PAUSED
    assert campaign.calls() == Counter()
    release(campaign)
    assert campaign.execute() is dg.DagsterRunStatus.SUCCESS
    campaign.assert_all_done_once()
    assert len(campaign.attempts()) == 2
    assert campaign.execute() is dg.DagsterRunStatus.SUCCESS
    assert set(campaign.calls().values()) == {2}


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("job", ["in_processes"])
def test_a_hold_stops_every_step_and_the_next_run_does_the_rest_on_postgresql(campaign: Campaign):
    """Several processes meet in the store at once."""
    held = stopped_by_a_hold(campaign, "3")
    campaign.go_on(*jobs.WAITS)
    resumed = campaign.start()
    assert campaign.end_of(resumed) is dg.DagsterRunStatus.SUCCESS
    assert campaign.attempts() == [held, resumed[0]]
    campaign.assert_all_done_once()
