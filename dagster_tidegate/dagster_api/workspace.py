"""Workspaces: the code locations of a deployment, loaded for a command or for a server."""

import os
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import yaml
from dagster._check import CheckError
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.instance.ref import InstanceRef
from dagster._core.remote_origin import (
    CodeLocationOrigin,
    ManagedGrpcPythonEnvCodeLocationOrigin,
)
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext, WorkspaceRequestContext
from dagster._core.workspace.load_target import WorkspaceFileTarget, WorkspaceLoadTarget
from starlette.types import ASGIApp

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api import PAGES_READ_ONLY
from dagster_tidegate.dagster_api.instance import Dagster
from dagster_tidegate.dagster_api.kept_instance import keep_connections
from dagster_tidegate.dagster_api.launch import WorkspaceLauncher
from dagster_tidegate.dagster_api.locations import (
    PART_TAG,
    LocationCode,
    location_code,
    resource_code,
    why_not_loaded,
)
from dagster_tidegate.dagster_api.project import TEMPORARY_HOME, LocationSource, Project

Policies = Mapping[str, Mapping[str, ServicePolicy]]
"""The policies of each service, by service and then by code location."""

TICK_TIMEOUT_S = 30.0
"""How long a tick in progress may take; a killed daemon leaves one that never ends."""


class WorkspaceError(Exception):
    """A workspace can't be loaded; the message says why."""


class Workspace(WorkspaceLauncher):
    """The code locations of a deployment, loaded. Created by `load` and `serve`."""

    def locations(self) -> list[LocationCode]:
        """Return what the code locations contain, or why one can't be loaded."""
        locations = []
        for name, entry in self._context.get_code_location_entries().items():
            if entry.code_location is None:
                locations.append(LocationCode(name, error=why_not_loaded(entry.load_error)))
                continue
            try:
                locations.append(location_code(name, entry.code_location, self._instance))
            except DagsterUserCodeUnreachableError as error:
                locations.append(LocationCode(name, error=str(error)))
        return locations

    def stop_gate(self, location: str | None = None) -> list[str]:
        """Stop the gate's sensors, of one code location or of all, and wait for their ticks.

        Returns:
            `location: sensor` of each that ran.
        """
        stopped, ids = [], []
        for name, entry in self._context.get_code_location_entries().items():
            if entry.code_location is None or location not in (None, name):
                continue
            for repository in entry.code_location.get_repositories().values():
                for sensor in repository.get_sensors():
                    if PART_TAG not in sensor.tags:
                        continue
                    origin, selector = sensor.get_remote_origin_id(), sensor.selector_id
                    state = sensor.get_current_instigator_state(
                        self._instance.get_instigator_state(origin, selector)
                    )
                    if state.is_running:
                        self._instance.stop_sensor(origin, selector, sensor)
                        stopped.append(f"{name}: {sensor.name}")
                    ids.append((origin, selector))
        deadline = time.monotonic() + TICK_TIMEOUT_S
        while time.monotonic() < deadline and any(self._ticks(*each) for each in ids):
            time.sleep(0.2)
        return stopped

    def _ticks(self, origin: str, selector: str) -> bool:
        """Whether a sensor is being evaluated."""
        return any(
            tick.status is TickStatus.STARTED
            for tick in self._instance.get_ticks(origin, selector, limit=1)
        )

    def policies(self) -> tuple[Policies, Mapping[str, str]]:
        """Return the policies, and by code location why some can't be read."""
        policies: dict[str, dict[str, ServicePolicy]] = {}
        errors: dict[str, str] = {}
        for name, entry in self._context.get_code_location_entries().items():
            if entry.code_location is None:
                errors[name] = why_not_loaded(entry.load_error)
                continue
            resource = resource_code(entry.code_location)
            if resource.policy_error is not None:
                errors[name] = resource.policy_error
            for service, policy in resource.policies.items():
                policies.setdefault(service, {})[name] = policy
        return policies, errors


def open_instance() -> dg.DagsterInstance:
    """Open the instance of DAGSTER_HOME, which may be the temporary one of `dg dev`.

    Raises:
        dagster.DagsterError: If there is none, or its dagster.yaml is invalid.
    """
    home = Path(os.environ.get("DAGSTER_HOME", ""))
    if home.name.startswith(TEMPORARY_HOME) and not (home / "dagster.yaml").exists():
        # `dg dev` reads dagster.yaml from the directory in which it was started.
        return dg.DagsterInstance.from_ref(
            InstanceRef.from_dir(str(home), config_dir=str(home.parent))
        )
    return dg.DagsterInstance.get()


def make_storage(instance: dg.DagsterInstance) -> None:
    """Create Dagster's SQLite databases, which it otherwise does on first use.

    Processes that do so at once fail with "Version table 'alembic_version' has more than one head
    present".
    """
    instance.get_runs_count()
    dagster = Dagster(instance)
    dagster.triggers()
    dagster.pools()


@contextmanager
def load(
    instance: dg.DagsterInstance, project: Project, known: Collection[str] = ()
) -> Iterator[Workspace]:
    """Load the code locations of a project, and close them afterwards.

    A code location that can't be loaded is in the workspace with its error.

    Args:
        known: Names of code locations in the store. Of several names that a code location may
            have, it gets one of them.

    Raises:
        WorkspaceError: If a workspace file can't be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `locations` reports what can't be loaded
        process = _process(instance, project, known, log_level="CRITICAL", read_only=False)
    with process:
        yield Workspace(process.create_request_context())


class Server:
    """The code locations of a project for as long as a server runs. Created by `serve`."""

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
def serve(project: Project, *, log_level: str, read_only: bool = False) -> Iterator[Server]:
    """Open the Dagster instance and the code locations of a project, for a server.

    Args:
        read_only: Whether the Dagster UI refuses every change.

    Raises:
        WorkspaceError: If a workspace file can't be read, or there is no instance.
    """
    try:
        instance = open_instance()
    except dg.DagsterInvariantViolationError as error:
        raise WorkspaceError(f"the Dagster instance can't be opened: {error}") from error
    with instance:
        keep_connections(instance)
        with _process(instance, project, log_level=log_level, read_only=read_only) as process:
            yield Server(process)


class _Process(WorkspaceProcessContext):
    """Hides the buttons of the Dagster UI from users who may not make changes."""

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
    instance: dg.DagsterInstance,
    project: Project,
    known: Collection[str] = (),
    *,
    log_level: str,
    read_only: bool,
) -> WorkspaceProcessContext:
    target = _ProjectTarget(project, frozenset(known))
    try:
        target.create_origins()
    except (dg.DagsterError, CheckError, yaml.YAMLError, OSError, ValueError) as error:
        paths = ", ".join(map(str, project.workspaces)) or project.options
        raise WorkspaceError(f"{paths} can't be read as a workspace: {error}") from error
    return _Process(
        instance,
        target,
        version=dg.__version__,
        read_only=read_only,
        code_server_log_level=log_level,
    )


class _ProjectTarget(WorkspaceLoadTarget):
    """The code locations of a project, for Dagster."""

    def __init__(self, project: Project, known: frozenset[str]) -> None:
        self._project = project
        self._known = known

    def create_origins(self) -> Sequence[CodeLocationOrigin]:
        project = self._project
        files = WorkspaceFileTarget([str(path) for path in project.workspaces])
        origins = list(files.create_origins()) if project.workspaces else []
        return [*origins, *(self._origin(source) for source in project.locations)]

    def _origin(self, source: LocationSource) -> CodeLocationOrigin:
        names = [each for each in (source.name, *source.aliases) if each in self._known]
        return ManagedGrpcPythonEnvCodeLocationOrigin(
            loadable_target_origin=LoadableTargetOrigin(
                executable_path=None if source.python is None else str(source.python),
                python_file=source.target if source.is_file else None,
                module_name=None if source.is_file or source.autoload else source.target,
                autoload_defs_module_name=source.target if source.autoload else None,
                working_directory=str(source.directory),
                attribute=None,
            ),
            location_name=names[0] if names else source.name,
        )
