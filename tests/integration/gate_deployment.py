"""A Dagster deployment for the tests of the gate: real storages, a real code server, real runs.

What the daemon does in its own time is done step by step here: a tick of a sensor, a look at the
queue, a look at the schedules.
"""

import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast
from unittest import mock

import dagster as dg
import yaml
from dagster._core.definitions.selector import JobSubsetSelector
from dagster._core.execution.plan.resume_retry import ReexecutionStrategy
from dagster._core.remote_representation.external import RemoteSensor
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorTick,
    InstigatorType,
    TickData,
    TickStatus,
)
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget, PythonFileTarget
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import (
    QueuedRunCoordinatorDaemon,
)
from dagster._daemon.sensor import _process_tick_generator
from dagster._scheduler.scheduler import launch_scheduled_runs

from dagster_tidegate.dagster_api.instance import Dagster
from dagster_tidegate.holds import HoldSource, Target
from dagster_tidegate.store import holds
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.takeovers import UNSET
from tests.support import forked_runs
from tests.support.polling import wait_until

if TYPE_CHECKING:
    from dagster._core.remote_representation.code_location import GrpcServerCodeLocation

ROOT = Path(__file__).parents[2]
PROJECT = Path(__file__).parent / "gate_project" / "definitions.py"
SOCKET = "workers.sock"
LOCATION = "gate_project"


class Deployment:
    """A Dagster deployment whose daemon moves only when it is told to."""

    def __init__(self, workspace: WorkspaceProcessContext, store: Store, home: Path) -> None:
        self.workspace = workspace
        self.instance: dg.DagsterInstance = workspace.instance
        self.dagster = Dagster(self.instance)
        self.store = store
        self.home = home
        self._queue = QueuedRunCoordinatorDaemon(interval_seconds=1)

    def up(self, service: str) -> None:
        (self.home / "up" / service).touch()

    def down(self, service: str) -> None:
        (self.home / "up" / service).unlink(missing_ok=True)

    def hold(self, target: Target) -> None:
        """Hold something, as an operator does."""
        with self.store.begin() as conn:
            now, operator = self.store.now(conn), HoldSource.OPERATOR
            holds.place(conn, now, target, source=operator, reason="test", actor="ann")

    def release(self, target: Target) -> None:
        """Release the operator's hold."""
        with self.store.begin() as conn:
            now = self.store.now(conn)
            holds.release(conn, now, target, source=HoldSource.OPERATOR, actor="ann")

    def calls(self) -> list[str]:
        path = self.home / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def repository(self):
        context = self.workspace.create_request_context()
        [repository] = context.get_code_location(LOCATION).get_repositories().values()
        return repository

    def launch(
        self,
        job: str,
        partition: str | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        again_after: dg.DagsterRun | None = None,
        ops: Sequence[str] | None = None,
        assets: Sequence[str] | None = None,
    ) -> str:
        """Put a run of a job, or a re-execution, into the queue and return its id."""
        selected = None if assets is None else {dg.AssetKey.from_user_string(a) for a in assets}
        context = self.workspace.create_request_context()
        location = context.get_code_location(LOCATION)
        remote = location.get_job(
            JobSubsetSelector(location.name, self.repository.name, job, ops, selected)
        )
        plan = location.get_execution_plan(remote, {}, None, None, instance=self.instance)
        tags = dict(tags or {})
        if partition is not None:
            tags["dagster/partition"] = partition
        if again_after is not None:
            tags["dagster/root_run_id"] = tags["dagster/parent_run_id"] = again_after.run_id
        run = self.instance.create_run(
            job_name=job,
            run_id=None,
            run_config={},
            status=None,
            tags={**remote.run_tags, **tags},
            root_run_id=None if again_after is None else again_after.run_id,
            parent_run_id=None if again_after is None else again_after.run_id,
            step_keys_to_execute=None,
            execution_plan_snapshot=plan.execution_plan_snapshot,
            job_snapshot=remote.job_snapshot,
            parent_job_snapshot=remote.parent_job_snapshot,
            asset_selection=None if selected is None else frozenset(selected),
            asset_check_selection=None,
            resolved_op_selection=remote.resolved_op_selection,
            op_selection=ops,
            remote_job_origin=remote.get_remote_origin(),
            job_code_origin=remote.get_python_origin(),
            asset_graph=self.repository.asset_graph,
        )
        self.instance.submit_run(run.run_id, context)
        return run.run_id

    def re_execute(self, run_id: str, strategy: ReexecutionStrategy) -> str:
        """Re-execute a run as the buttons of the Dagster UI do, and return the new one's id."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        context = self.workspace.create_request_context()
        location = context.get_code_location(LOCATION)
        selector = JobSubsetSelector(
            location.name, self.repository.name, run.job_name, None, run.asset_selection
        )
        again = self.instance.create_reexecuted_run(
            request_context=context,
            parent_run=run,
            code_location=location,
            remote_job=location.get_job(selector),
            strategy=strategy,
            use_parent_run_tags=True,
        )
        self.instance.submit_run(again.run_id, context)
        return again.run_id

    def tick(self, sensor: str) -> InstigatorTick:
        """Evaluate a sensor once, as the daemon does, and return its tick."""
        for _ in self.steps(sensor):
            pass
        tick = self.last_tick(sensor)
        assert tick.error is None, tick.error.to_string()
        return tick

    def steps(self, sensor: str) -> Iterator[object]:
        """Evaluate a sensor once, with a step for each run that it asks for."""
        remote = self.repository.get_sensor(sensor)
        return _process_tick_generator(
            self.workspace,
            logging.getLogger("tests"),
            remote,
            self._state(remote),
            None,
            self.instance.get_tick_retention_settings(InstigatorType.SENSOR),
            None,
        )

    def last_tick(self, sensor: str) -> InstigatorTick:
        """Return the latest tick of a sensor."""
        remote = self.repository.get_sensor(sensor)
        [tick] = self.instance.get_ticks(remote.get_remote_origin_id(), remote.selector_id, limit=1)
        return tick

    def gate(self) -> list[str]:
        """One tick of each of the three sensors; returns what they said."""
        names = ["tidegate_breaker", "tidegate_pause", "tidegate_resume"]
        return [self.tick(name).skip_reason or "(asked for runs)" for name in names]

    def dequeue(self) -> None:
        """Let the daemon look at its queue once."""
        for error in self._queue.run_iteration(self.workspace):
            assert not error, error

    def schedules(self, now: datetime) -> None:
        """Let the daemon look at its schedules once."""
        for error in launch_scheduled_runs(
            self.workspace, logging.getLogger("tests"), now, iteration_times={}
        ):
            assert not error, error

    def start(self, schedule: str) -> None:
        """Start a schedule, as a person does in the Dagster UI."""
        self.instance.start_schedule(self.repository.get_schedule(schedule))

    def evaluated(self, schedule: str, at: datetime) -> None:
        """Let Dagster have evaluated a tick of a schedule."""
        remote = self.repository.get_schedule(schedule)
        self.instance.create_tick(
            TickData(
                instigator_origin_id=remote.get_remote_origin_id(),
                instigator_name=schedule,
                instigator_type=InstigatorType.SCHEDULE,
                status=TickStatus.SUCCESS,
                timestamp=at.timestamp(),
                selector_id=remote.selector_id,
                run_ids=[],
            )
        )

    def wait(self, run_id: str, *statuses: dg.DagsterRunStatus, timeout_s: float = 240) -> str:
        """Wait until a run has one of some statuses (any end, if none is given)."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            run = self.instance.get_run_by_id(run_id)
            assert run is not None
            if run.status in statuses or (not statuses and run.is_finished):
                return run.status.value
            time.sleep(0.1)
        raise AssertionError(f"run {run_id} is {self.status(run_id)} after {timeout_s} s")

    def until(self, done: Callable[[], bool], rounds: int = 20) -> None:
        """Let the daemon go round until something is so."""
        for _ in range(rounds):
            if done():
                return
            self.gate()
            self.dequeue()
            for run in self.instance.get_runs(
                dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
            ):
                self.wait(run.run_id)
        raise AssertionError(f"not so after {rounds} rounds")

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def trigger_states(self) -> dict[str, str]:
        return {state.name: state.status.value for state in self.instance.all_instigator_state()}

    def forget(self) -> None:
        """Wait for the runs that work, and forget all runs, pools, calls and what the store has."""
        for run in self.instance.get_runs():
            if not run.is_finished and run.status is not dg.DagsterRunStatus.QUEUED:
                self.wait(run.run_id)
            self.instance.delete_run(run.run_id)
        for pool in self.dagster.pools():
            self.dagster.set_pool(pool, UNSET)
        (self.home / "calls").unlink(missing_ok=True)
        with self.store.begin() as conn:
            for table in reversed(t.metadata.sorted_tables):
                if table not in (t.services, t.trials):
                    conn.execute(table.delete())
            # Without an earlier outage in the row, a breaker waits no longer than at its first.
            conn.execute(
                t.services.update().values(
                    state="closed",
                    generation=t.services.c.generation + 1,
                    attempt=0,
                    opened_at=None,
                    open_until=None,
                    closed_at=None,
                )
            )

    def forget_triggers(self) -> None:
        """Forget the states of all schedules and sensors."""
        for state in self.instance.all_instigator_state():
            self.instance.delete_instigator_state(state.instigator_origin_id, state.selector_id)

    def _state(self, remote: RemoteSensor) -> InstigatorState:
        found = self.instance.get_instigator_state(
            remote.get_remote_origin_id(), remote.selector_id
        )
        if found is not None:  # as if its minimum interval were over
            data = found.sensor_instigator_data
            assert data is not None
            data = data._replace(last_tick_timestamp=None, last_tick_start_timestamp=None)
            return self.instance.update_instigator_state(found.with_data(data))
        return self.instance.add_instigator_state(remote.get_current_instigator_state(None))


@contextmanager
def workers(path: Path, module: str) -> Iterator[None]:
    """Run the process that forks for each run."""
    process = subprocess.Popen(forked_runs.command(path, "dagster_postgres", module), cwd=ROOT)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def deployment(
    home: Path,
    store_url: str,
    *,
    dagster_url: str | None = None,
    beside: Deployment | None = None,
    project: Path = PROJECT,
    **settings: object,
) -> Iterator[Deployment]:
    """Run a deployment in a directory.

    Args:
        home: Its DAGSTER_HOME.
        store_url: URL of the store that it uses.
        dagster_url: URL of a PostgreSQL database for Dagster itself; else SQLite.
        beside: A deployment whose code server and run workers it uses, to start at once.
        project: The file of its code location.
        settings: More for dagster.yaml.
    """
    (home / "up").mkdir(parents=True)
    socket = (home if beside is None else beside.home) / SOCKET
    config: dict[str, object] = {
        "concurrency": {"pools": {"granularity": "run"}},
        # Only said: the tests run no daemon.
        "run_monitoring": {"enabled": True, "free_slots_after_run_end_seconds": 1},
        "run_launcher": forked_runs.launcher(socket),
        "telemetry": {"enabled": False},
        **settings,
    }
    if dagster_url is not None:
        config["storage"] = {"postgres": {"postgres_url": dagster_url}}
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))
    environment = {
        "DAGSTER_HOME": str(home),
        "GATE_PROJECT_UP": str(home / "up"),
        "GATE_PROJECT_CALLS": str(home / "calls"),
        "TIDEGATE_STORE_URL": store_url,
    }
    if beside is None:
        target = PythonFileTarget(
            python_file=str(project),
            attribute=None,
            working_directory=str(project.parent),
            location_name=LOCATION,
        )
    else:
        context = beside.workspace.create_request_context()
        code = cast("GrpcServerCodeLocation", context.get_code_location(LOCATION))
        target = GrpcServerTarget(
            host=code.host, port=code.port, socket=code.socket, location_name=LOCATION
        )
    with (
        mock.patch.dict(os.environ, environment),
        workers(socket, _module(project)) if beside is None else nullcontext(),
        dg.DagsterInstance.from_config(str(home)) as instance,
        create_test_daemon_workspace_context(target, instance) as workspace,
    ):
        store = Store(store_url)
        wait_until(socket.exists, "the process that forks has not started")
        yield Deployment(workspace, store, home)
        store.dispose()


def _module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)
