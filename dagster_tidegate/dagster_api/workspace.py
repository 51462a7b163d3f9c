"""Workspaces: the code locations of a deployment, loaded for a command or for a server."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import yaml
from dagster._check import CheckError
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.workspace.context import WorkspaceProcessContext, WorkspaceRequestContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from starlette.types import ASGIApp

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api import PAGES_READ_ONLY
from dagster_tidegate.dagster_api.launch import WorkspaceLauncher
from dagster_tidegate.dagster_api.locations import (
    LocationCode,
    location_code,
    resource_code,
    why_not_loaded,
)

Policies = Mapping[str, Mapping[str, ServicePolicy]]
"""The policies of each service, by service and then by code location."""

# dagster-webserver's defaults.
STATEMENT_TIMEOUT_MS = 15_000
POOL_RECYCLE_S = 3600
MAX_OVERFLOW = 20


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


@contextmanager
def load(instance: dg.DagsterInstance, path: Path) -> Iterator[Workspace]:
    """Load the code locations of a workspace file, and close them afterwards.

    A code location that can't be loaded is in the workspace with its error.

    Raises:
        WorkspaceError: If the file can't be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `locations` reports what can't be loaded
        process = _process(instance, path, log_level="CRITICAL", read_only=False)
    with process:
        yield Workspace(process.create_request_context())


class Server:
    """The code locations of a workspace file for as long as a server runs. Created by `serve`."""

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
        read_only: Whether the Dagster UI refuses every change.

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
