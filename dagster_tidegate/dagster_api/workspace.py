"""What Tidegate asks of a Dagster deployment as a whole: its settings, its daemon, and its code
locations, which hold the jobs; and the launch of a run.

Beside `instance`, which knows what the gate reads and writes in every tick, this is the other
module that knows Dagster's inner API.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._check import CheckError
from dagster._core.definitions.selector import RepositorySelector
from dagster._core.errors import DagsterUserCodeProcessError, DagsterUserCodeUnreachableError
from dagster._core.remote_representation.code_location import CodeLocation
from dagster._core.remote_representation.external import (
    RemoteRepository,
    RemoteResource,
    RemoteSensor,
)
from dagster._core.remote_representation.external_data import PartitionExecutionErrorSnap
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.workspace.context import WorkspaceProcessContext, WorkspaceRequestContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_shared.error import SerializableErrorInfo
from pydantic import ValidationError
from starlette.types import ASGIApp

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api import PAGES_READ_ONLY
from dagster_tidegate.dagster_api import LaunchError as LaunchError
from dagster_tidegate.dagster_api import UnreachableError as UnreachableError
from dagster_tidegate.dagster_api.instance import PART_TAG, Dagster
from dagster_tidegate.text import did_you_mean

Policies = Mapping[str, Mapping[str, ServicePolicy]]
"""The policies of each service, by its name and then by the code location that has it."""

# As dagster-webserver has them.
STATEMENT_TIMEOUT_MS = 15_000
POOL_RECYCLE_S = 3600
MAX_OVERFLOW = 20


class WorkspaceError(Exception):
    """A workspace can't be loaded; the message says why."""


@dataclass(frozen=True)
class Settings:
    """The settings of a Dagster instance that the gate depends on.

    Attributes:
        run_coordinator: Class name of the run coordinator.
        queues: Whether it puts runs into the queue that the daemon works through.
        pool_granularity: `run`, `op`, or None where it is not said.
        run_buffer: How many runs the queue lets through beyond a pool's limit.
        run_monitoring: Whether runs are monitored.
        free_slots_after_s: After how long a run that has ended gives its places in pools back, in
            seconds; None: it may keep them.
    """

    run_coordinator: str
    queues: bool
    pool_granularity: str | None
    run_buffer: int
    run_monitoring: bool
    free_slots_after_s: int | None


@dataclass(frozen=True)
class Daemon:
    """A daemon that the instance needs.

    Attributes:
        name: Dagster's name of it: `SENSOR`, `QUEUED_RUN_COORDINATOR`, ...
        alive: Whether its last heartbeat is recent.
        last: Its last heartbeat (UTC), or None if there was never one.
        error: What its last heartbeat told of errors, or None.
    """

    name: str
    alive: bool
    last: datetime | None
    error: str | None


@dataclass(frozen=True)
class OpCode:
    """An op of a job: its name, its pool, and the resources that it requires."""

    name: str
    pool: str | None
    resources: frozenset[str]


@dataclass(frozen=True)
class SensorCode:
    """A sensor of the gate.

    Attributes:
        name: Its name.
        part: Which part of the gate it is.
        runs: Whether it is switched on.
        error: Why its last tick failed; None if it did not.
    """

    name: str
    part: str
    runs: bool
    error: str | None


@dataclass(frozen=True, kw_only=True)
class ResourceCode:
    """What the `BreakerResource` of a code location says.

    Attributes:
        reaches_breakers: Keys of the resources through which an op reaches the breakers: the
            `BreakerResource`, and those that have it within them.
        policies: The policies of the services, by name.
        policy_error: Why the policies can't be read from outside; None if they can.
        store_url: The store that it names; None where the environment does.
        drain_timeout_s: What it says of it; None where it says nothing.
    """

    reaches_breakers: frozenset[str] = frozenset()
    policies: Mapping[str, ServicePolicy] = field(default_factory=dict)
    policy_error: str | None = None
    store_url: str | None = None
    drain_timeout_s: float | None = None


@dataclass(frozen=True)
class LocationCode(ResourceCode):
    """What a code location holds, with what its `BreakerResource` says.

    Attributes:
        name: Its name.
        error: Why it can't be loaded; None if it is loaded.
        dagster_version: The version of Dagster that it runs with, where it tells.
        sensors: The sensors of the gate that are in it.
        jobs: The ops of each job, by its name.
    """

    name: str
    error: str | None = None
    dagster_version: str | None = None
    sensors: Sequence[SensorCode] = ()
    jobs: Mapping[str, Sequence[OpCode]] = field(default_factory=dict)


def settings(instance: dg.DagsterInstance) -> Settings:
    """Return the settings that the gate depends on."""
    concurrency = instance.get_concurrency_config()
    pools, queue = concurrency.pool_config, concurrency.run_queue_config
    monitoring = instance.run_monitoring_settings or {}
    return Settings(
        run_coordinator=type(instance.run_coordinator).__name__,
        queues=queue is not None,
        pool_granularity=None if pools.pool_granularity is None else pools.pool_granularity.value,
        run_buffer=(0 if queue is None else queue.op_concurrency_slot_buffer)
        or pools.op_granularity_run_buffer
        or 0,
        run_monitoring=instance.run_monitoring_enabled,
        free_slots_after_s=monitoring.get("free_slots_after_run_end_seconds"),
    )


def daemons(instance: dg.DagsterInstance) -> list[Daemon]:
    """Return the daemons that the instance needs, and how they are."""
    found = []
    for name, status in sorted(instance.get_daemon_statuses().items()):
        beat = status.last_heartbeat
        errors = [] if beat is None else beat.errors or []
        found.append(
            Daemon(
                name=name,
                alive=bool(status.healthy),
                last=None if beat is None else datetime.fromtimestamp(beat.timestamp, UTC),
                error=errors[0].message.strip() if errors else None,
            )
        )
    return found


class Workspace:
    """The code locations of a deployment, loaded. Made by `load`."""

    def __init__(self, context: WorkspaceRequestContext) -> None:
        self._context = context
        self._instance = context.instance

    def locations(self) -> list[LocationCode]:
        """Return what the code locations hold; of one that can't be loaded, why."""
        found = []
        for name, entry in self._context.get_code_location_entries().items():
            if entry.code_location is None:
                found.append(LocationCode(name, error=_why_not_loaded(entry.load_error)))
                continue
            try:
                found.append(self._location(name, entry.code_location))
            except DagsterUserCodeUnreachableError as error:
                found.append(LocationCode(name, error=str(error)))
        return found

    def check(self, job: str, partition: str | None, location: str | None = None) -> None:
        """Check that a job has a partition, or that it has none where none is named.

        Raises:
            LaunchError: If not, or if there is no such job; the message says what would be right.
        """
        with _reaching(job):
            self._check(job, partition, location)

    def _check(self, job: str, partition: str | None, location: str | None) -> None:
        known = self._partitions(job, location)
        if known is None:
            if partition is not None:
                raise LaunchError(f"job {job!r} has no partitions: name none")
            return
        last = ", ".join(known[-3:]) or "none yet"
        if partition is None:
            raise LaunchError(f"job {job!r} has partitions: name one, the last are {last}")
        if partition not in known:
            hint = did_you_mean(partition, known, f"the last are {last}")
            raise LaunchError(f"job {job!r} has no partition {partition!r}; {hint}")

    def _partitions(self, job: str, location: str | None) -> Sequence[str] | None:
        """The partitions of a job; None where it has none."""
        where, repository = self._find(job, location)
        sets = {found.job_name for found in repository.get_partition_sets()}
        assets = repository.get_asset_node_snaps(job)
        if job not in sets and not any(asset.partitions is not None for asset in assets):
            return None
        found = self._context.get_partition_names(
            RepositorySelector(location_name=where.name, repository_name=repository.name),
            job,
            self._instance,
            selected_asset_keys=None,
        )
        return _unless_failed(found).partition_names

    def launch(
        self,
        job: str,
        *,
        partition: str | None = None,
        tags: Mapping[str, str],
        location: str | None = None,
        run_id: str | None = None,
    ) -> str:
        """Put a run of a job into the queue, as Dagster's own pages do.

        Args:
            job: Name of the job.
            partition: The partition, where the job has any.
            tags: More tags of the run.
            location: The code location, where several have a job of the name.
            run_id: The id that the run is to have; Dagster makes one up for None.

        Returns:
            The id of the run.

        Raises:
            LaunchError: If `check` says so, or its code makes no run of this partition.
        """
        with _reaching(job):
            self._check(job, partition, location)
            return self._launch(job, partition, tags, location, run_id)

    def has_run(self, run_id: str) -> bool:
        """Return whether Dagster has a run, and has put it into the queue."""
        run = self._instance.get_run_by_id(run_id)
        return run is not None and run.status is not dg.DagsterRunStatus.NOT_STARTED

    def _launch(
        self,
        job: str,
        partition: str | None,
        tags: Mapping[str, str],
        location: str | None,
        run_id: str | None,
    ) -> str:
        if run_id is not None and self._instance.has_run(run_id):  # it died before the queue
            return self._instance.submit_run(run_id, self._context).run_id
        where, repository = self._find(job, location)
        remote = repository.get_full_job(job)
        config: Mapping = {}
        if partition is not None:
            selector = RepositorySelector(location_name=where.name, repository_name=repository.name)
            found = self._context.get_partition_config(
                repository.handle, job, partition, self._instance
            )
            config = _unless_failed(found).run_config
            found = self._context.get_partition_tags(
                selector, job, partition, self._instance, selected_asset_keys=None
            )
            tags = {**_unless_failed(found).tags, **tags}
        plan = where.get_execution_plan(remote, config, None, None, instance=self._instance)
        snapshot = plan.execution_plan_snapshot
        run = self._instance.create_run(
            job_name=job,
            run_id=run_id,
            run_config=config,
            status=dg.DagsterRunStatus.NOT_STARTED,
            tags={**remote.run_tags, **tags},
            root_run_id=None,
            parent_run_id=None,
            step_keys_to_execute=snapshot.step_keys_to_execute,
            execution_plan_snapshot=snapshot,
            job_snapshot=remote.job_snapshot,
            parent_job_snapshot=remote.parent_job_snapshot,
            asset_selection=None,
            asset_check_selection=None,
            resolved_op_selection=remote.resolved_op_selection,
            op_selection=None,
            remote_job_origin=remote.get_remote_origin(),
            job_code_origin=remote.get_python_origin(),
            asset_graph=repository.asset_graph,
        )
        try:
            return self._instance.submit_run(run.run_id, self._context).run_id
        except BaseException:
            if run_id is None:  # nobody could submit it again
                self._instance.report_run_canceled(run, "It could not be put into the queue.")
            raise

    def terminate(self, job: str, partition: str) -> Sequence[str]:
        """Ask Dagster to end the runs that work on a campaign run, or may.

        Args:
            job: Name of the campaign's job.
            partition: Its partition; of a job without partitions, the id of its first run.

        Returns:
            The ids of those that had not ended.

        Raises:
            UnreachableError: If one can't be ended now, as while it starts.
        """
        unfinished = Dagster(self._instance).unfinished_of([partition])
        found = [run for run in unfinished if run.job_name == job]
        starting = [run.run_id for run in found if run.status is dg.DagsterRunStatus.STARTING]
        if starting:
            raise UnreachableError(
                f"Dagster run {starting[0]} is starting, and can't be ended until it has: try "
                "again in a moment"
            )
        for run in found:
            if run.status is dg.DagsterRunStatus.NOT_STARTED:  # it never came into the queue
                self._instance.report_run_canceled(run)
            elif run.status is not dg.DagsterRunStatus.CANCELING:
                self._terminate(run.run_id)
        return [run.run_id for run in found]

    def _terminate(self, run_id: str) -> None:
        try:
            ended = self._instance.run_coordinator.cancel_run(run_id)
        except dg.DagsterError as error:
            raise UnreachableError(f"Dagster run {run_id} can't be ended: {error}") from error
        run = self._instance.get_run_by_id(run_id)
        if not ended and run is not None and not run.is_finished:
            raise UnreachableError(
                f"Dagster run {run_id} is {run.status.value}, and its process can't be reached: "
                "see its page"
            )

    def policies(self) -> tuple[Policies, Mapping[str, str]]:
        """Return the policies, and by code location why some can't be read."""
        found: dict[str, dict[str, ServicePolicy]] = {}
        troubles: dict[str, str] = {}
        for name, entry in self._context.get_code_location_entries().items():
            if entry.code_location is None:
                troubles[name] = _why_not_loaded(entry.load_error)
                continue
            resource = _resource(entry.code_location)
            if resource.policy_error is not None:
                troubles[name] = resource.policy_error
            for service, policy in resource.policies.items():
                found.setdefault(service, {})[name] = policy
        return found, troubles

    def _find(self, job: str, location: str | None) -> tuple[CodeLocation, RemoteRepository]:
        found, errors = [], []
        for name, entry in self._context.get_code_location_entries().items():
            if location not in (None, name):
                continue
            if entry.code_location is None:
                errors.append(name)
                continue
            for repository in entry.code_location.get_repositories().values():
                if repository.has_job(job):
                    found.append((entry.code_location, repository))
        if len(found) > 1:
            names = ", ".join(sorted(where.name for where, _ in found))
            raise LaunchError(f"several code locations have a job {job!r}: {names}")
        if not found:
            message = f"no code location of this workspace has a job {job!r}"
            if errors:
                raise UnreachableError(f"{message}; {', '.join(errors)} can't be loaded")
            raise LaunchError(message)
        return found[0]

    def _location(self, name: str, location: CodeLocation) -> LocationCode:
        sensors: list[SensorCode] = []
        jobs: dict[str, Sequence[OpCode]] = {}
        for repository in location.get_repositories().values():
            sensors += [
                self._sensor(sensor)
                for sensor in repository.get_sensors()
                if PART_TAG in sensor.tags
            ]
            for job in repository.get_all_jobs():
                if job.name.startswith("__"):  # those that Dagster makes for assets
                    continue
                ops = job.job_snapshot.node_defs_snapshot.op_def_snaps
                jobs[job.name] = [
                    OpCode(op.name, op.pool, frozenset(op.required_resource_keys)) for op in ops
                ]
        versions = location.get_dagster_library_versions() or {}
        return LocationCode(
            name=name,
            dagster_version=versions.get("dagster"),
            sensors=sensors,
            jobs=jobs,
            **vars(_resource(location)),
        )

    def _sensor(self, sensor: RemoteSensor) -> SensorCode:
        origin, selector = sensor.get_remote_origin_id(), sensor.selector_id
        stored = self._instance.get_instigator_state(origin, selector)
        state = sensor.get_current_instigator_state(stored)
        ticks = self._instance.get_ticks(origin, selector, limit=1)
        failed = ticks[0] if ticks and ticks[0].status is TickStatus.FAILURE else None
        error = None
        if failed is not None:
            error = _innermost(failed.error) or "it does not say why"
        return SensorCode(sensor.name, sensor.tags[PART_TAG], state.is_running, error)


@contextmanager
def load(instance: dg.DagsterInstance, path: Path) -> Iterator[Workspace]:
    """Load the code locations of a workspace file, and let go of them afterwards.

    Args:
        instance: The Dagster instance.
        path: The `workspace.yaml`.

    Yields:
        The workspace; a code location that can't be loaded is in it with its error.

    Raises:
        WorkspaceError: If the file can't be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a location that can't be loaded, `locations` tells
        process = _process(instance, path, log_level="CRITICAL", read_only=False)
    with process:
        yield Workspace(process.create_request_context())


class Server:
    """The code locations of a workspace file for as long as a server runs. Made by `serve`."""

    def __init__(self, process: WorkspaceProcessContext) -> None:
        self._process = process

    def pages(self, path_prefix: str) -> ASGIApp:
        """Return Dagster's webserver."""
        from dagster_webserver.app import create_app_from_workspace_process_context

        return create_app_from_workspace_process_context(self._process, path_prefix)

    def workspace(self) -> Workspace:
        """Return the code locations as they are now; a person may have reloaded one."""
        return Workspace(self._process.create_request_context())


@contextmanager
def serve(path: Path, *, log_level: str, read_only: bool = False) -> Iterator[Server]:
    """Open the Dagster instance and the code locations of a workspace file, for a server.

    Args:
        path: The `workspace.yaml`.
        log_level: Of what the code servers log.
        read_only: Whether Dagster's pages refuse every change.

    Yields:
        The code locations.

    Raises:
        WorkspaceError: If the file can't be read, or there is no instance.
    """
    try:
        instance = dg.DagsterInstance.get()
    except dg.DagsterInvariantViolationError as error:
        raise WorkspaceError(f"the Dagster instance can't be opened: {error}") from error
    with instance:
        instance.optimize_for_webserver(STATEMENT_TIMEOUT_MS, POOL_RECYCLE_S, MAX_OVERFLOW)
        with _process(instance, path, log_level=log_level, read_only=read_only) as process:
            yield Server(process)


class _Process(WorkspaceProcessContext):
    """Hides the buttons of Dagster's pages from users who may not change anything in them."""

    def create_request_context(self, source: object | None = None) -> WorkspaceRequestContext:
        state = getattr(source, "scope", {}).get("state", {})
        return WorkspaceRequestContext(
            instance=self.instance,
            current_workspace=self.get_current_workspace(),
            process_context=self,
            version=self.version,
            source=source,
            read_only=self.read_only or state.get(PAGES_READ_ONLY, False),
        )


def _process(
    instance: dg.DagsterInstance, path: Path, *, log_level: str, read_only: bool
) -> WorkspaceProcessContext:
    target = WorkspaceFileTarget([str(path)])
    try:
        target.create_origins()
    except (dg.DagsterError, CheckError, yaml.YAMLError, OSError, ValueError) as error:
        raise WorkspaceError(f"{path} can't be read as a workspace: {error}") from error
    return _Process(
        instance,
        target,
        version=dg.__version__,
        read_only=read_only,
        code_server_log_level=log_level,
    )


@contextmanager
def _reaching(job: str) -> Iterator[None]:
    """Say in one line what Dagster can't do."""
    try:
        yield
    except DagsterUserCodeUnreachableError as error:
        raise UnreachableError(f"the code location of {job} can't be reached: {error}") from error
    except DagsterUserCodeProcessError as error:  # its text has configuration and stack traces
        raise LaunchError(
            f"the code of {job} refuses to be launched: its launchpad in Dagster's pages says why"
        ) from error
    except dg.DagsterError as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        raise LaunchError(f"Dagster can't launch {job}: {said}") from error


def _resource(location: CodeLocation) -> ResourceCode:
    reach: set[str] = set()
    policies: dict[str, ServicePolicy] = {}
    policy_error = store_url = drain_timeout_s = None
    for repository in location.get_repositories().values():
        resources = {resource.name: resource for resource in repository.get_resources()}
        for key, resource in resources.items():
            if not _is_breakers(resource):
                continue
            reach |= _with_parents(key, resources)
            try:
                for policy in _policies(resource):
                    policies[policy.name] = policy
            except (ValueError, TypeError) as error:
                policy_error = f"resource {key}: {error}"
            store_url = store_url or _text(resource, "store_url")
            if drain := _text(resource, "drain_timeout_s", raw=True):
                drain_timeout_s = float(drain)
    return ResourceCode(
        reaches_breakers=frozenset(reach),
        policies=policies,
        policy_error=policy_error,
        store_url=store_url,
        drain_timeout_s=drain_timeout_s,
    )


def _why_not_loaded(error: SerializableErrorInfo | None) -> str:
    return _innermost(error) or "it is not loaded"


def _is_breakers(resource: RemoteResource) -> bool:
    # By its fields, since a deployment may have a subclass.
    fields = {field.name for field in resource.config_field_snaps}
    return {"services", "store_url"} <= fields


def _with_parents(key: str, resources: Mapping[str, RemoteResource]) -> set[str]:
    """A resource and all that have it within them."""
    found: set[str] = set()
    todo = [key]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += resources[name].parent_resources if name in resources else ()
    return found


def _policies(resource: RemoteResource) -> list[ServicePolicy]:
    services = json.loads(_text(resource, "services", raw=True) or "[]")
    try:
        return [ServicePolicy.model_validate(service) for service in services]
    except ValidationError as error:
        raise ValueError(f"its services can't be read: {error.errors()[0]['msg']}") from error


def _text(resource: RemoteResource, field: str, *, raw: bool = False) -> str | None:
    """A configured value; None where there is none, or the environment has it."""
    value = resource.configured_values.get(field)
    if not isinstance(value, str):
        return None
    if raw:
        return value
    found = json.loads(value)
    return found if isinstance(found, str) else None


def _innermost(error: SerializableErrorInfo | None) -> str:
    """The message of what went wrong first; Dagster wraps it several times."""
    message = ""
    while error is not None:
        message = error.message.strip() or message
        error = error.cause
    return message


def _unless_failed(found: Any) -> Any:
    if isinstance(found, PartitionExecutionErrorSnap):
        raise LaunchError(f"the code location could not answer: {_innermost(found.error)}")
    return found
