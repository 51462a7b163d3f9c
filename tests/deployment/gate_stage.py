"""A stage for the acceptance tests of the gate: Dagster's real daemon, code servers, the sandbox.

Each code server is a process of its own, so that each of the processes can be killed alone.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.dagster_run import ACTIVE_RUN_STATUSES, NOT_FINISHED_STATUSES
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_graphql.schema import create_schema

from dagster_tidegate.dagster_api.instance import Dagster
from dagster_tidegate.dagster_api.lineage import partition_of
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import breakers, heartbeats, holds, runs, takeovers
from dagster_tidegate.store.database import URL_VARIABLE, Store
from demo.sandbox.client import SandboxClient
from demo.sandbox.faults import Fault, Mode
from demo.up import deployment
from demo.up.children import Children
from demo.up.ports import LOOPBACK, free
from tests.support import forked_runs

ROOT = Path(__file__).parents[2]
PROJECT = Path(__file__).parent / "gate_project" / "definitions.py"
MODULE = "tests.deployment.gate_project.definitions"
LOCATION = "gate"
OTHER_PROJECT = Path(__file__).parent / "other_project" / "definitions.py"
OTHER_LOCATION = "other"
REPOSITORY = "__repository__"
SERVICES = ("openai", "instantly", "apollo", "apollo/people_match", "apollo/enrich", "perplexity")
SENSORS = {"tidegate_pause", "tidegate_resume", "tidegate_breaker"}
TRIGGERS = {"letters_schedule", "new_letters"}
OTHER_TRIGGERS = {"reviews_schedule", "new_reviews"}
MAX_S = 300.0
START_S = 300.0
LOOK_EVERY_S = 0.25
SOCKET = "workers.sock"
RECORDS = 25
PAUSED_ONCE = [RunStatus.PAUSED, RunStatus.COMPLETED]
# Long enough for several ticks of the gate, in which it could do what it should not.
TICKS = timedelta(seconds=4)
# A daemon that is killed between noting that it starts a run and starting it leaves one that has
# failed after so long; Dagster then retries it.
START_TIMEOUT_S = 45
unused = count()


def new_partitions(number: int) -> list[str]:
    """Return partitions that no test has used."""
    return [str(next(unused)) for _ in range(number)]


LAUNCH = """
mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
} }
"""
LAUNCH_AGAIN = """
mutation ($params: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
} }
"""


@dataclass(frozen=True)
class Settings:
    """What a person can set in Dagster: limits of pools, statuses of schedules and sensors."""

    pools: Mapping[str, str]
    triggers: Mapping[str, str]


class Stage:
    """Everything that a test of the gate touches."""

    def __init__(
        self,
        home: Path,
        store: Store,
        instance: dg.DagsterInstance,
        workspace: WorkspaceProcessContext,
        sandbox: SandboxClient,
        children: Children,
        env: dict[str, str],
        code: "Mapping[str, CodeServer]",
    ) -> None:
        self.home, self.store, self.instance = home, store, instance
        self.dagster = Dagster(instance)
        self.sandbox = sandbox
        self._workspace, self._children, self._env = workspace, children, env
        self._code = code
        self.locations = {LOCATION}  # whose gates should tick
        self.services: Sequence[str] = SERVICES  # of the project
        self._schema = create_schema()

    # Processes

    def start_daemon(self, name: str = "daemon") -> None:
        """Start Dagster's daemon."""
        command = [
            *(sys.executable, "-m", "tests.deployment.quick_daemon", "run"),
            *("--workspace", str(self.home / "workspace.yaml"), "--log-level", "info"),
        ]
        self._children.start(name, command, env=self._env, cwd=ROOT)

    def start_code(self, location: str = LOCATION, *, broken: bool = False) -> None:
        """Start a code server, if wanted with code that can't be loaded."""
        env = {**self._env, "GATE_PROJECT_BROKEN": "1"} if broken else self._env
        start_code(self._children, env, self._code[location])

    def start_other_location(self) -> None:
        """Start the code server of the other location, and wait until its gate has looked."""
        began = self.now()
        self.start_code(OTHER_LOCATION)
        self.locations.add(OTHER_LOCATION)
        self.wait_for_triggers(OTHER_TRIGGERS)
        self.wait(lambda: self.ticked_since(began), "the other gate has looked")

    def kill(self, *names: str) -> None:
        """Kill processes; nothing of them gets to tidy up. Run workers go on."""
        for name in names:
            self._children.kill(name)

    def tidegate(self, *arguments: str) -> str:
        """Run a command as an operator does, and return what it says."""
        done = subprocess.run(
            [sys.executable, "-m", "dagster_tidegate.cli", *arguments],
            cwd=ROOT,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=MAX_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # What a person does in the Dagster UI

    def graphql(self, query: str, **variables: Any) -> Mapping[str, Any]:
        """Ask Dagster's GraphQL API, and return the one answer."""
        context = self._workspace.create_request_context()
        execute = self._schema.execute_async(query, context_value=context, variables=variables)
        result = asyncio.run(execute)
        assert not result.errors, result.errors
        assert result.data is not None
        [answer] = result.data.values()
        return answer

    def launch(self, job: str, partition: str, location: str = LOCATION, **tags: str) -> str:
        """Start a run of a partition, and return its id."""
        selector = {
            "repositoryLocationName": location,
            "repositoryName": REPOSITORY,
            "pipelineName": job,
        }
        tags = {"dagster/partition": partition, **tags}
        params = {
            "selector": selector,
            "runConfigData": {},
            "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in tags.items()]},
        }
        return self._launched(self.graphql(LAUNCH, params=params))

    def launch_again(self, run_id: str) -> str:
        """Re-execute a run with all its steps, and return the id of the new run."""
        params = {"parentRunId": run_id, "strategy": "ALL_STEPS"}
        return self._launched(self.graphql(LAUNCH_AGAIN, params=params))

    def _launched(self, answer: Mapping[str, Any]) -> str:
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def set_trigger(self, name: str, *, runs: bool) -> None:
        """Start or stop a schedule or sensor."""
        context = self._workspace.create_request_context()
        repository = context.get_code_location(LOCATION).get_repository(REPOSITORY)
        if repository.has_schedule(name):
            schedule = repository.get_schedule(name)
            if runs:
                self.instance.start_schedule(schedule)
            else:
                self.instance.stop_schedule(
                    schedule.get_remote_origin_id(), schedule.selector_id, schedule
                )
        else:
            sensor = repository.get_sensor(name)
            if runs:
                self.instance.start_sensor(sensor)
            else:
                self.instance.stop_sensor(sensor.get_remote_origin_id(), sensor.selector_id, sensor)

    # What fails

    def let_begin(self, service: str, *campaign_runs: tuple[str, str]) -> None:
        """Wait until campaign runs are at work, and a service is called.

        It is slow until its next fault, so that none is done before the last one begins.

        Args:
            campaign_runs: Campaign and partition of each; they have just been launched.
        """
        self.sandbox.place(service, Fault(mode=Mode.SLOW, latency_s=0.5))
        self.wait(
            lambda: (
                all(self.campaign_run(*each) == "processing" for each in campaign_runs)
                and self.sandbox.stats()[service]["effects"] > 2
            ),
            f"all are at work, and {service} is called",
        )

    def outage(self, *services: str) -> None:
        """Let every call to some services fail."""
        for service in services:
            self.sandbox.place(service, Fault(mode=Mode.OUTAGE))

    def heal(self, *services: str) -> None:
        """Let services be well again."""
        for service in services:
            self.sandbox.heal(service)

    # What is looked at

    def wait(
        self,
        condition: Callable[[], Any],
        what: str,
        timeout_s: float = MAX_S,
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        """Wait until something is so, or fail with what the processes said."""
        until = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until:
                raise AssertionError(f"not within {timeout_s:g} s: {what}\n{self.describe()}")
            time.sleep(every_s)

    def describe(self) -> str:
        """Return what one wants to know of a test that went wrong."""
        said = [f"left over: {self.left_over()}", f"settings: {self.settings()}"]
        said += [
            f"run {run.run_id} {run.job_name}/{partition_of(run)} {run.status.value} "
            f"{ {k: v for k, v in run.tags.items() if not k.startswith('.')} }"
            for run in self.instance.get_runs(limit=30)
        ]
        for log in sorted((self.home / deployment.LOGS).glob("*.log")):
            said.append(f"--- {log.name}\n" + "\n".join(log.read_text().splitlines()[-30:]))
        return "\n".join(said)

    def status(self, run_id: str) -> str:
        """Return the status of a Dagster run."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status.value

    def is_paused(self, run_id: str) -> bool:
        """Return whether a Dagster run has ended as paused."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status.value == "CANCELED" and run.tags.get("tidegate/state") == "paused"

    def reason(self, run_id: str) -> str:
        """Return why a Dagster run was paused, as its tag says it."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.tags["tidegate/reason"]

    def is_resumed(self, run_id: str) -> bool:
        """Return whether a Dagster run had ended as paused and has a next attempt."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        if run.tags.get("tidegate/state") != "resumed":
            return False
        # The later worker of a run that was launched twice overwrites how the earlier one ended it.
        return run.status.value == "CANCELED" or self.launches(run_id) > 1

    def is_over(self, run_id: str) -> bool:
        """Return whether a Dagster run has ended."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.is_finished

    def said(self, run_id: str) -> str:
        """Return the errors that the page of a Dagster run shows."""
        events = [entry.dagster_event for entry in self.instance.all_logs(run_id)]
        return "\n".join(
            event.step_failure_data.error.to_string()
            for event in events
            if event is not None and event.is_step_failure and event.step_failure_data.error
        )

    def at_work(self) -> list[str]:
        """Return the Dagster runs that have left the queue and not ended."""
        found = self.instance.get_runs(dg.RunsFilter(statuses=ACTIVE_RUN_STATUSES))
        return [run.run_id for run in found]

    def launches(self, run_id: str) -> int:
        """Return how many times a daemon has launched a run."""
        starting = dg.DagsterEventType.PIPELINE_STARTING
        return len(self.instance.all_logs(run_id, of_type=starting))

    def runs_of(self, job: str, partition: str) -> Sequence[dg.DagsterRun]:
        """Return the Dagster runs of a campaign run, the oldest first."""
        found = self.instance.get_runs(dg.RunsFilter(job_name=job))
        return [run for run in reversed(found) if partition_of(run) == partition]

    def campaign_run(self, campaign: str, partition: str) -> RunStatus | None:
        """Return the status of a campaign run, or None where there is none."""
        with self.store.read() as conn:
            found = runs.find(conn, campaign, partition)
        return None if found is None else found.status

    def outcomes(self, campaign: str, partition: str) -> list[RunStatus | None]:
        """Return how the attempts at a campaign run ended, the oldest first."""
        with self.store.read() as conn:
            found = runs.find(conn, campaign, partition)
            assert found is not None, f"{campaign}/{partition} was never begun"
            return [attempt.outcome for attempt in runs.attempts(conn, found.id)]

    def history(self, campaign: str, partition: str) -> str:
        """Return how a campaign run came to its end: its attempts, and Dagster's runs."""
        with self.store.read() as conn:
            found = runs.find(conn, campaign, partition)
            assert found is not None, f"{campaign}/{partition} was never begun"
            lines = [
                f"attempt {attempt.number} by run {attempt.dagster_run}: {attempt.outcome}"
                for attempt in runs.attempts(conn, found.id)
            ]
        for run in self.runs_of(campaign, partition):
            tags = {key: value for key, value in run.tags.items() if key.startswith("tidegate/")}
            launches = self.launches(run.run_id)
            lines.append(f"run {run.run_id}: {run.status.value}, launched {launches} times, {tags}")
        return "\n".join(lines)

    def arrived(self, job: str, partition: str) -> Counter[str]:
        """Return how often instantly took each address of a campaign run."""
        prefix = f"{job}-{partition}/"
        effects = self.sandbox.effects("instantly")
        return Counter(
            {k.removeprefix(prefix): n for k, n in effects.items() if k.startswith(prefix)}
        )

    def sent_twice(self) -> dict[str, int]:
        """Return how many calls each service would have done again, had they had no key."""
        return {
            name: counts["keys_repeated"] + counts["subjects_repeated"]
            for name, counts in self.sandbox.stats().items()
            if counts["keys_repeated"] or counts["subjects_repeated"]
        }

    def assert_each_arrived_once(self, job: str, partition: str) -> None:
        """Check that instantly took each address of a campaign run once, and no call was lost."""
        arrived = self.arrived(job, partition)
        assert len(arrived) == RECORDS
        assert set(arrived.values()) == {1}
        assert self.sent_twice() == {}

    def breaker(self, service: str) -> BreakerState:
        """Return the state of a breaker."""
        with self.store.read() as conn:
            return breakers.read_one(conn, service).state

    def held(self) -> set[str]:
        """Return what is held, by whom."""
        with self.store.read() as conn:
            live = holds.live(conn, self.store.now(conn))
        return {f"{hold.target} by {hold.source}" for hold in live}

    def pools(self) -> Mapping[str, str]:
        """Return the pools that have a limit."""
        return dict(self.dagster.pools())

    def wait_for_triggers(self, names: Set[str]) -> None:
        """Wait until the daemon has seen schedules and sensors that the code starts."""
        self.wait(
            lambda: names <= {state.name for state in self.instance.all_instigator_state()},
            "the daemon has seen the schedules and sensors",
        )

    def ticked_since(self, at: datetime) -> bool:
        """Return whether all sensors of the gate have had a tick since a time of the store."""
        with self.store.read() as conn:
            beats = heartbeats.read(conn)
        beats = [beat for beat in beats if beat.location in self.locations]
        wanted = len(SENSORS) * len(self.locations)
        return len(beats) == wanted and all(beat.at > at for beat in beats)

    def now(self) -> datetime:
        """Return the time of the store."""
        with self.store.read() as conn:
            return self.store.now(conn)

    def settings(self) -> Settings:
        """Return what a person can set in Dagster, the gate's own sensors aside."""
        states = {state.name: state.status.value for state in self.instance.all_instigator_state()}
        return Settings(self.pools(), {k: v for k, v in states.items() if k not in SENSORS})

    def left_over(self) -> list[str]:
        """Return what is still under way, or not as it was."""
        with self.store.read() as conn:
            now = self.store.now(conn)
            left = [f"hold on {hold.target}" for hold in holds.live(conn, now)]
            left += [f"takeover of {taken.label}" for taken in takeovers.live(conn)]
            for service in self.services:
                state = breakers.read_one(conn, service).state
                left += [] if state is BreakerState.CLOSED else [f"{service} is {state}"]
            busy = (RunStatus.PENDING, RunStatus.PROCESSING, RunStatus.PAUSED)
            left += [f"{run.name} is {run.status}" for run in runs.with_status(conn, *busy)]
        unfinished = self.instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
        return left + [f"run {run.run_id} is {run.status.value}" for run in unfinished]

    def settle(self, timeout_s: float = MAX_S) -> None:
        """Wait until nothing is under way and nothing is held."""
        self.wait(lambda: not self.left_over(), "everything is over", timeout_s, every_s=0.5)


@dataclass(frozen=True)
class CodeServer:
    """A code location, and the process that serves it.

    Attributes:
        location: Its name.
        process: Name of the process.
        project: The file with its definitions.
        port: Where it listens.
    """

    location: str
    process: str
    project: Path
    port: int


def start_code(children: Children, env: Mapping[str, str], server: CodeServer) -> None:
    """Start a code server."""
    command = [
        *(sys.executable, "-m", "dagster", "api", "grpc"),
        *("--host", LOOPBACK, "--port", str(server.port)),
        *("--python-file", str(server.project), "--working-directory", str(ROOT)),
        *("--location-name", server.location, "--log-level", "warning", "--lazy-load-user-code"),
    ]
    children.start(server.process, command, env=env, cwd=ROOT)


@contextmanager
def gate_stage(
    home: Path,
    store_url: str,
    *,
    dagster_url: str | None = None,
    two_locations: bool = False,
) -> Iterator[Stage]:
    """Set a stage up, and take it down.

    Args:
        home: An empty directory, for a DAGSTER_HOME.
        store_url: URL of an empty store.
        dagster_url: URL of a PostgreSQL database for Dagster itself; SQLite in `home` if None.
        two_locations: Whether the other code location can be started too.

    Yields:
        The stage, once the gate has looked at it, with settings of all kinds.
    """
    home.mkdir(exist_ok=True)
    config: dict[str, Any] = {
        "run_coordinator": {
            "module": "dagster.core.run_coordinator",
            "class": "QueuedRunCoordinator",
            "config": {"dequeue_interval_seconds": 1},
        },
        "concurrency": {"pools": {"granularity": "run"}},
        "run_monitoring": {
            "enabled": True,
            "poll_interval_seconds": 2,
            "free_slots_after_run_end_seconds": 1,
            "start_timeout_seconds": START_TIMEOUT_S,
        },
        # A run that did not start in that time has failed.
        "run_retries": {"enabled": True, "max_retries": 2},
        "sensors": {"use_threads": True, "num_workers": 4},
        "run_launcher": forked_runs.launcher(home / SOCKET),
        "telemetry": {"enabled": False},
    }
    if dagster_url is not None:
        config["storage"] = {"postgres": {"postgres_url": dagster_url}}
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))
    sandbox_port = free()
    code = {LOCATION: CodeServer(LOCATION, "code", PROJECT, free())}
    if two_locations:
        other = CodeServer(OTHER_LOCATION, "other_code", OTHER_PROJECT, free())
        code[OTHER_LOCATION] = other
    servers = [
        {"grpc_server": {"host": LOOPBACK, "port": each.port, "location_name": each.location}}
        for each in code.values()
    ]
    workspace_file = home / "workspace.yaml"
    workspace_file.write_text(yaml.safe_dump({"load_from": servers}))
    env = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "GATE_PROJECT_RECORDS": str(RECORDS),
        "DEMO_SANDBOX_URL": deployment.address(sandbox_port),
        URL_VARIABLE: store_url,
    }
    with ExitStack() as stack:
        deployment.upgrade_store(store_url)
        deployment.make_dagster_storage(home)
        children = stack.enter_context(Children(home / deployment.LOGS))
        command = [
            *(sys.executable, "-m", "demo", "sandbox", "serve"),
            *("--port", str(sandbox_port), "--latency", "0.02"),
        ]
        children.start("sandbox", command, env=env, cwd=ROOT)
        start_code(children, env, code[LOCATION])
        # Not among the children that tests kill: run workers outlive a daemon and a code server.
        workers = forked_runs.command(home / SOCKET, "dagster_postgres", MODULE)
        children.start("workers", workers, env=env, cwd=ROOT)
        address = deployment.address(sandbox_port)
        ports = {"sandbox": sandbox_port, code[LOCATION].process: code[LOCATION].port}
        children.wait_until((home / SOCKET).exists, timeout_s=START_S, waiting_for="workers")
        for name, port in ports.items():
            children.wait_until(
                lambda port=port: listens(port), timeout_s=START_S, waiting_for=name
            )
        store = Store(store_url)
        stack.callback(store.dispose)
        instance = stack.enter_context(dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))))
        target = WorkspaceFileTarget([str(workspace_file)])
        workspace = stack.enter_context(WorkspaceProcessContext(instance, target))
        sandbox = stack.enter_context(SandboxClient(address))
        stage = Stage(home, store, instance, workspace, sandbox, children, env, code)
        # One of each kind: set by a person, stopped by a person, as declared in the code.
        stage.dagster.set_pool("instantly", "3")
        stage.set_trigger("notices_schedule", runs=True)
        stage.set_trigger("new_notices", runs=True)
        began = stage.now()
        stage.start_daemon()
        stage.wait_for_triggers({*TRIGGERS, *SENSORS})
        stage.wait(lambda: stage.ticked_since(began), "the gate has looked")
        yield stage


def listens(port: int) -> bool:
    """Return whether a server listens on a port of this machine."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True
