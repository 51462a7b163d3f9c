"""`tidegate init`: the settings that Dagster's instance needs."""

import difflib
import os
from pathlib import Path

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli.options import yes_option
from dagster_tidegate.dagster_api.project import TEMPORARY_HOME, root
from dagster_tidegate.doctor.dagster_yaml import NotEditableError, with_settings


@click.command()
@yes_option
def init(yes: bool) -> None:
    """Write the settings that Tidegate needs into the instance's dagster.yaml.

    Shows the difference first, and asks. Everything else in the file stays as it is.
    """
    path = _path()
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    try:
        after = with_settings(before)
    except NotEditableError as error:
        raise console.failure(f"{path}: {error}") from error
    if after == before:
        console.say(f"{path} has all settings that Tidegate needs")
        return
    for line in difflib.unified_diff(
        before.splitlines(), after.splitlines(), str(path), str(path), lineterm=""
    ):
        colour = {"+": "green", "-": "red"}.get(line[:1])
        click.secho(line, fg=colour)
    if not yes:
        click.confirm(f"Write {path}?", abort=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(after, encoding="utf-8")
    console.say(f"wrote {path}: restart the daemon and the webserver, or dg dev")


def _path() -> Path:
    """Return the dagster.yaml of DAGSTER_HOME; without one, `dg dev` reads that of the project."""
    home = os.environ.get("DAGSTER_HOME")
    if not home or Path(home).name.startswith(TEMPORARY_HOME):  # gone when dg dev ends
        return root(Path.cwd()) / "dagster.yaml"
    return Path(home).expanduser() / "dagster.yaml"
