"""What is compared: worker processes that run a loop, and two Dagster deployments."""

import multiprocessing
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import dagster as dg
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.tags import WILL_RETRY_TAG
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget

from dagster_tidegate.dagster_api.lineage import partition_of
from dagster_tidegate.store.database import URL_VARIABLE, Store
from demo.sandbox.client import SandboxClient
from demo.up import deployment
from demo.up.children import Children
from demo.up.ports import LOOPBACK, free
from tests.benchmarks.outage.loops import SCALE, work
from tests.benchmarks.outage.service import LATENCY_S, NAME, leads
from tests.deployment.gate_stage import CodeServer, Stage, listens, start_code
from tests.support import forked_runs
from tests.support.sandbox import sandbox_process

START_S = 300.0
PROJECT = Path(__file__).parent / "project.py"
MODULE = "tests.benchmarks.outage.project"
LOCATION = "outage"
ALONE = "dagster-alone"
JOBS = {"tidegate": "letters", "tidegate-waits": "letters", ALONE: "letters_alone"}
PAUSED = ("paused", "resumed")
RETRY_WITHIN_S = 30.0
"""By when Dagster has begun a run retry, if it does; its daemon looks every 5 seconds at most."""
# Forks of a process that has imported everything: none of the contenders is slow to start.
processes = multiprocessing.get_context("forkserver")


class Contender(ABC):
    """Something that sends letters to the leads of lists, each list on a worker."""

    def __init__(self, name: str, sandbox: SandboxClient) -> None:
        self.name, self.sandbox = name, sandbox

    @abstractmethod
    def begin(self) -> None:
        """Forget the last scenario."""

    def has_settled(self) -> bool:
        """Return whether nothing is left of the last scenario."""
        return True

    @abstractmethod
    def start(self, lists: Sequence[str], *, without_poison: bool = False) -> None:
        """Start a worker for each list."""

    @abstractmethod
    def is_at_rest(self) -> bool:
        """Return whether no worker is at work, nor will be by itself."""

    @abstractmethod
    def failed_lists(self) -> list[str]:
        """Return the lists whose last worker has failed."""

    @abstractmethod
    def failed_runs(self) -> int:
        """Return how many workers have failed."""

    @abstractmethod
    def worker_s(self) -> float:
        """Return how long workers have been there, in seconds, all added up."""

    def repaired(self) -> int:
        """Say that a person has repaired the cause. Returns the steps that this took."""
        return 0

    def errors(self) -> list[str]:
        """Return with what the workers of this scenario have failed."""
        return []

    @abstractmethod
    def describe(self) -> str:
        """Return what one wants to know if it takes too long."""

    def arrived(self) -> int:
        """Return how many leads have taken effect at the service."""
        return self.sandbox.stats()[NAME]["effects"]


@dataclass
class Worker:
    """A process that sends to the leads of a list."""

    list: str
    process: BaseProcess
    began: float
    ended: float | None = None

    def has_failed(self) -> bool:
        """Return whether it ended without having sent to all."""
        return self.ended is not None and self.process.exitcode != 0


class Processes(Contender):
    """Worker processes that run a loop of `loops`."""

    def __init__(self, name: str, sandbox: SandboxClient, folder: Path) -> None:
        super().__init__(name, sandbox)
        self._folder = folder

    def begin(self) -> None:
        self._workers: list[Worker] = []
        self._errors: SimpleQueue[str] = processes.SimpleQueue()

    def start(self, lists: Sequence[str], *, without_poison: bool = False) -> None:
        for name in lists:
            addresses = leads(name, without_poison=without_poison)
            process = processes.Process(
                target=work,
                args=(self.name, self._folder, self.sandbox.url, name, addresses, self._errors),
            )
            process.start()
            self._workers.append(Worker(name, process, time.monotonic()))

    def is_at_rest(self) -> bool:
        for worker in self._workers:
            if worker.ended is None and worker.process.exitcode is not None:
                worker.ended = time.monotonic()
        return all(worker.ended is not None for worker in self._workers)

    def failed_lists(self) -> list[str]:
        last = {worker.list: worker for worker in self._workers}
        return [name for name, worker in last.items() if worker.has_failed()]

    def failed_runs(self) -> int:
        return sum(worker.has_failed() for worker in self._workers)

    def worker_s(self) -> float:
        now = time.monotonic()
        return sum((worker.ended or now) - worker.began for worker in self._workers)

    def errors(self) -> list[str]:
        errors = []
        while not self._errors.empty():
            errors.append(self._errors.get())
        return errors

    def describe(self) -> str:
        return f"{self.name}: {[(each.list, each.process.exitcode) for each in self._workers]}"


class Deployment(Contender):
    """Dagster's daemon, a code server and run processes."""

    def __init__(self, name: str, sandbox: SandboxClient, stage: Stage) -> None:
        super().__init__(name, sandbox)
        self.stage, self.job = stage, JOBS[name]

    def begin(self) -> None:
        self._began = datetime.now(UTC)

    def has_settled(self) -> bool:
        # The ramp goes on after the last run.
        return self.name == ALONE or not self.stage.left_over()

    def start(self, lists: Sequence[str], *, without_poison: bool = False) -> None:
        tags = {"outage/without_poison": "yes"} if without_poison else {}
        for name in lists:
            self.stage.launch(self.job, name, LOCATION, **tags)

    def _records(self) -> Sequence[dg.RunRecord]:
        """The runs of this scenario, the newest first."""
        wanted = dg.RunsFilter(job_name=self.job, created_after=self._began)
        return self.stage.instance.get_run_records(wanted)

    def _last_records(self) -> dict[str, dg.RunRecord]:
        """The last run of each list."""
        return {str(partition_of(each.dagster_run)): each for each in reversed(self._records())}

    def is_at_rest(self) -> bool:
        return all(map(_is_over, self._last_records().values()))

    def failed_lists(self) -> list[str]:
        last = self._last_records()
        return [name for name, record in last.items() if not record.dagster_run.is_success]

    def failed_runs(self) -> int:
        return sum(each.dagster_run.is_failure for each in self._records())

    def worker_s(self) -> float:
        return sum(
            record.end_time - record.start_time
            for record in self._records()
            if record.start_time is not None and record.end_time is not None
        )

    def repaired(self) -> int:
        if self.name == ALONE:
            return 0
        self.stage.tidegate("services", "repaired", NAME)
        return 1

    def describe(self) -> str:
        return self.stage.describe()


def _is_over(record: dg.RunRecord) -> bool:
    """Return whether nothing follows a run by itself.

    Dagster says that it will retry a run, and now and then, with storage on SQLite, it does not.
    """
    run = record.dagster_run
    if not run.is_finished or run.tags.get("tidegate/state") in PAUSED:
        return False
    ended_s = time.time() - (record.end_time or 0)
    return run.tags.get(WILL_RETRY_TAG) != "true" or ended_s > RETRY_WITHIN_S


@contextmanager
def contender(name: str, folder: Path, scale: float) -> Iterator[Contender]:
    """Give a contender with a sandbox of its own."""
    with sandbox_process(LATENCY_S) as sandbox:
        if name not in JOBS:
            yield Processes(name, sandbox, folder)
            return
        with _stage(name, folder / name, sandbox, scale) as stage:
            yield Deployment(name, sandbox, stage)


@contextmanager
def _stage(name: str, home: Path, sandbox: SandboxClient, scale: float) -> Iterator[Stage]:
    home.mkdir()
    socket, store_url = home / "workers.sock", f"sqlite:///{home / 'tidegate.db'}"
    (home / "dagster.yaml").write_text(yaml.safe_dump(_configuration(name, socket)))
    code = CodeServer(LOCATION, "code", PROJECT, free())
    location = {"host": LOOPBACK, "port": code.port, "location_name": LOCATION}
    workspace_file = home / "workspace.yaml"
    workspace_file.write_text(yaml.safe_dump({"load_from": [{"grpc_server": location}]}))
    env = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "DEMO_SANDBOX_URL": sandbox.url,
        "DAGSTER_EVENT_LOG_CONSUMER_DAEMON_INTERVAL_SECONDS": str(max(1, round(5 * scale))),
        "OUTAGE_CONTENDER": name,
        SCALE: str(scale),
        URL_VARIABLE: store_url,
    }
    with ExitStack() as stack:
        deployment.upgrade_store(store_url)
        deployment.make_dagster_storage(home)
        children = stack.enter_context(Children(home / deployment.LOGS))
        start_code(children, env, code)
        root = Path.cwd()
        children.start("workers", forked_runs.command(socket, MODULE), env=env, cwd=root)
        children.wait_until(socket.exists, timeout_s=START_S, waiting_for="workers")
        children.wait_until(lambda: listens(code.port), timeout_s=START_S, waiting_for=code.process)
        store = Store(store_url)
        stack.callback(store.dispose)
        instance = stack.enter_context(dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))))
        target = WorkspaceFileTarget([str(workspace_file)])
        workspace = stack.enter_context(WorkspaceProcessContext(instance, target))
        stage = Stage(home, store, instance, workspace, sandbox, children, env, {LOCATION: code})
        stage.locations = set() if name == ALONE else {LOCATION}
        stage.services = [NAME]
        daemon = [sys.executable, "-m", "tests.benchmarks.outage.daemon", "run"]
        daemon += ["--workspace", str(workspace_file), "--log-level", "warning"]
        began = stage.now()
        children.start("daemon", daemon, env=env, cwd=root)
        stage.wait(lambda: stage.ticked_since(began), "the gate has looked")
        yield stage


def _configuration(name: str, socket: Path) -> dict[str, object]:
    """Return the dagster.yaml: that of the project, and retries where Dagster is alone."""
    project = yaml.safe_load((Path.cwd() / "dagster.yaml").read_text())
    project["concurrency"]["runs"]["max_concurrent_runs"] = 10
    project["run_launcher"] = forked_runs.launcher(socket)
    if name == ALONE:
        project["run_retries"] = {"enabled": True, "max_retries": 2}
    return project
