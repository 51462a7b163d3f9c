"""Gathers the facts about a deployment. A fact that can't be read is recorded as an error."""

import platform
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import dagster as dg
from packaging.requirements import Requirement

from dagster_tidegate.control import situation
from dagster_tidegate.dagster_api import deployment, project, workspace
from dagster_tidegate.dagster_api.project import CodeOptions
from dagster_tidegate.dagster_api.workspace import WorkspaceError
from dagster_tidegate.doctor.facts import Facts, StoreFacts, Version
from dagster_tidegate.settings import GeneralSettings, load
from dagster_tidegate.store import schema, service_stats
from dagster_tidegate.store.database import (
    Store,
    StoreError,
    shown_url,
    why_unreachable,
)

PACKAGE = "dagster-tidegate"


def gather(
    code: CodeOptions, store_url: str | None, *, instance: dg.DagsterInstance | None = None
) -> Facts:
    """Gather what `diagnose` needs.

    Args:
        code: The code to load; empty: the project of the current directory.
        store_url: The store; None: that of the environment.
        instance: The Dagster instance; None: that of `DAGSTER_HOME`.
    """
    store = _store_facts(store_url)
    package = metadata.metadata(PACKAGE)
    facts = {
        "now": datetime.now(UTC),
        "python": Version(platform.python_version(), package["Requires-Python"] or ""),
        "dagster": Version(dg.__version__, _supported("dagster")),
        "enabled": load(GeneralSettings).enabled,
        "store": store,
    }
    try:
        with workspace.open_instance() if instance is None else nullcontext(instance) as opened:
            facts["settings"] = deployment.settings(opened)
            facts["daemons"] = deployment.daemons(opened)
            facts |= _locations(opened, code, store)
    except Exception as error:  # noqa: BLE001 -- every problem with Dagster is a finding
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        facts["instance_error"] = lines[0] if lines else repr(error)
    return Facts(**facts)


def _store_facts(url: str | None) -> StoreFacts:
    """Read the store, or record why it can't be read; None is the store of the environment."""
    try:
        store = Store.of_environment(url)
    except ValueError as error:
        return StoreFacts(url="the store", error=str(error))
    shown = shown_url(store.url)
    try:
        schema.make_ready(store)
        with store.read() as conn:
            now = store.now(conn)
            return StoreFacts(
                shown,
                situation=situation.read(conn, now),
                called=frozenset(
                    name
                    for name, stats in service_stats.read(conn, now).items()
                    if stats.ok or stats.failed
                ),
            )
    except schema.SchemaError as error:
        return StoreFacts(shown, refusal=str(error))
    except StoreError as error:
        return StoreFacts(shown, error=why_unreachable(error))
    finally:
        store.dispose()


def _locations(instance: dg.DagsterInstance, code: CodeOptions, store: StoreFacts) -> dict:
    try:
        source = project.find(code, Path.cwd())
        with workspace.load(instance, source, store.locations) as loaded:
            return {"locations": loaded.locations(), "code_options": source.options}
    except (project.ProjectError, WorkspaceError) as error:
        return {"workspace_error": str(error)}


def _supported(name: str) -> str:
    """Return the supported versions of a dependency."""
    for line in metadata.requires(PACKAGE) or ():
        requirement = Requirement(line)
        if requirement.name == name and requirement.marker is None:
            return str(requirement.specifier)
    raise LookupError(f"{PACKAGE} does not depend on {name}")
