"""Connections of the commands to the state database and to Dagster, with errors for people."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dagster_tidegate.cli.console import failure, working
from dagster_tidegate.control import situation
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.store import schema
from dagster_tidegate.store.database import (
    UNUSABLE,
    Connection,
    Store,
    default_url,
    why_unreachable,
)

if TYPE_CHECKING:
    import dagster as dg

    from dagster_tidegate.dagster_api.workspace import Workspace

LOCAL_HOME = Path(".tidegate", "home")


def use_local_home() -> None:
    """Without a `DAGSTER_HOME`, use the one that `python -m demo up` keeps in this directory."""
    if not os.environ.get("DAGSTER_HOME") and LOCAL_HOME.is_dir():
        os.environ["DAGSTER_HOME"] = str(LOCAL_HOME.resolve())


def open_store(url: str | None, *, connections: int = 2) -> Store:
    """Open the store that a command uses.

    Raises:
        click.ClickException: If there is none, it is unreachable, or its schema does not fit.
    """
    store = named_store(url, connections=connections)
    with explained():
        schema.require_compatible(store)
    return store


def named_store(url: str | None, *, connections: int = 2) -> Store:
    """Return the store that a command uses, whatever its schema.

    Raises:
        click.ClickException: If neither `url` nor the environment names one.
    """
    use_local_home()
    try:
        return Store(url or default_url(), connections=connections)
    except ValueError as error:
        raise failure(error) from error


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors of the store into a `click.ClickException` of one line."""
    try:
        yield
    except UNUSABLE as error:
        raise failure(f"the store is unreachable: {why_unreachable(error)}") from error
    except schema.SchemaError as error:
        raise failure(error) from error


@contextmanager
def reading(store: Store) -> Iterator[tuple[Connection, Situation]]:
    """Read the situation in a transaction, which stays open for further queries."""
    with explained(), store.read() as conn:
        yield conn, situation.read(conn, store.now(conn))


@contextmanager
def loaded(
    path: Path, *, otherwise: str | None = None
) -> Iterator[tuple["dg.DagsterInstance", "Workspace"]]:
    """Open the Dagster instance and load its code locations, which takes seconds.

    Args:
        otherwise: An option that makes the command work without one, for the error.

    Raises:
        click.ClickException: If there is no instance or no workspace file.
    """
    import dagster as dg

    from dagster_tidegate.dagster_api import workspace

    if not path.is_file():
        option = "--workspace FILE" + (f", or {otherwise}" if otherwise else "")
        raise failure(
            f"no workspace file {path}: run this in the directory of workspace.yaml, or use "
            f"{option}"
        )
    try:
        opened = dg.DagsterInstance.get()
    except dg.DagsterError as error:  # no DAGSTER_HOME, or an invalid dagster.yaml
        reason = str(error).splitlines()[0].strip()
        raise failure(f"the Dagster instance can't be opened: {reason}") from error
    try:
        with (
            opened as instance,
            working("loading the code locations"),
            workspace.load(instance, path) as code,
        ):
            yield instance, code
    except workspace.WorkspaceError as error:
        raise failure(error) from error
