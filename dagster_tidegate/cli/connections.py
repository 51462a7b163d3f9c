"""Connections of the commands to the state database and to Dagster, with errors for people."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dagster_tidegate.cli.console import failure, working
from dagster_tidegate.control import situation
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.dagster_api import project
from dagster_tidegate.dagster_api.project import CodeOptions
from dagster_tidegate.store import schema
from dagster_tidegate.store.database import (
    UNUSABLE,
    Connection,
    DamagedError,
    Store,
    why_unreachable,
)

if TYPE_CHECKING:
    import dagster as dg

    from dagster_tidegate.dagster_api.workspace import Workspace


def read_environment() -> None:
    """Use the project's `.env`, and without a `DAGSTER_HOME` the one that runs in this directory.

    Raises:
        click.ClickException: If the files of the project can't be read.
    """
    with explained(project.ProjectError):
        project.read_environment(Path.cwd())


def open_store(url: str | None, *, connections: int = 2) -> Store:
    """Open the store that a command uses; the embedded one is created on first use.

    Raises:
        click.ClickException: If there is none, it is unreachable, or its schema does not fit.
    """
    store = named_store(url, connections=connections)
    with explained():
        schema.make_ready(store)
    return store


def named_store(url: str | None, *, connections: int = 2) -> Store:
    """Return the store that a command uses, whatever its schema.

    Raises:
        click.ClickException: If neither `url` nor the environment names one that can be used here.
    """
    read_environment()
    with explained(ValueError):
        return Store.of_environment(url, connections=connections)


@contextmanager
def explained(*others: type[Exception]) -> Iterator[None]:
    """Turn errors of the store, and others, into a `click.ClickException` of one line."""
    try:
        yield
    except UNUSABLE as error:
        raise failure(f"the store is unreachable: {why_unreachable(error)}") from error
    except (schema.SchemaError, *others) as error:
        raise failure(error) from error
    except DamagedError as error:
        if type(error) is not DamagedError:
            raise
        raise failure(
            f"the store can't be read: {why_unreachable(error)}; name another one, or restore its "
            "backup"
        ) from error


@contextmanager
def reading(store: Store) -> Iterator[tuple[Connection, Situation]]:
    """Read the situation in a transaction, which stays open for further queries."""
    with explained(), store.read() as conn:
        yield conn, situation.read(conn, store.now(conn))


@contextmanager
def loaded(
    code: CodeOptions,
    *,
    instance: "dg.DagsterInstance | None" = None,
    otherwise: str | None = None,
    known: Collection[str] = (),
) -> Iterator["Workspace"]:
    """Load the code locations, which takes seconds.

    Args:
        instance: The Dagster instance; None: that of the environment, which is opened.
        otherwise: An option that makes the command work without one, for the error.
        known: Names of code locations in the store, as for `workspace.load`.

    Raises:
        click.ClickException: If there is no instance or no project.
    """
    try:
        source = project.find(code, Path.cwd())
    except project.ProjectError as error:
        hint = f"; {otherwise} works without one" if otherwise else ""
        raise failure(f"{error}{hint}") from error
    from dagster_tidegate.dagster_api import workspace  # slow to import

    with (
        nullcontext(instance) if instance else instance_of_environment() as opened,
        explained(workspace.WorkspaceError),
        working("loading the code locations"),
        workspace.load(opened, source, known) as loaded,
    ):
        yield loaded


def instance_of_environment() -> "dg.DagsterInstance":
    """Open the Dagster instance.

    Raises:
        click.ClickException: If there is none.
    """
    import dagster as dg

    from dagster_tidegate.dagster_api.workspace import open_instance

    try:
        return open_instance()
    except dg.DagsterError as error:  # no DAGSTER_HOME, or an invalid dagster.yaml
        reason = str(error).splitlines()[0].strip()
        raise failure(f"the Dagster instance can't be opened: {reason}") from error
