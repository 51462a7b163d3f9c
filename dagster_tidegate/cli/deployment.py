"""How the commands reach Dagster: its instance, and the code locations of its workspace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

if TYPE_CHECKING:
    import dagster as dg

    from dagster_tidegate.dagster_api.workspace import Workspace

WORKSPACE_FILE = click.Path(dir_okay=False, resolve_path=True, path_type=Path)
"""Whether the file is there is for the command to say: some can do without."""


def workspace_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the option that names the workspace file."""
    return click.option(
        "--workspace",
        "-w",
        type=WORKSPACE_FILE,
        default="workspace.yaml",
        show_default=True,
        help="The workspace file of the deployment.",
    )(command)


@contextmanager
def loaded(
    path: Path, *, otherwise: str | None = None
) -> Iterator[tuple["dg.DagsterInstance", "Workspace"]]:
    """Open the Dagster instance and load its code locations, which takes seconds.

    Args:
        path: The workspace file.
        otherwise: An option that works without one.

    Raises:
        click.ClickException: If there is no instance, or no workspace file.
    """
    import dagster as dg

    from dagster_tidegate.dagster_api import workspace

    if not path.is_file():
        said = "--workspace FILE" + (f", or {otherwise}" if otherwise else "")
        raise click.ClickException(
            f"there is no workspace file {path}: run this where workspace.yaml is, or say {said}"
        )
    try:
        opened = dg.DagsterInstance.get()
    except dg.DagsterError as error:  # no DAGSTER_HOME, or a dagster.yaml that is none
        why = str(error).splitlines()[0].strip()
        raise click.ClickException(f"the Dagster instance can't be opened: {why}") from error
    try:
        with opened as instance, working("loading the code locations"):
            found = workspace.load(instance, path)
            with found as code:
                yield instance, code
    except workspace.WorkspaceError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal's stderr that something is under way."""
    with Console(stderr=True).status(f"[dim]{what} ...[/]"):
        yield
