"""`python -m demo up`: run the whole deployment on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape

from dagster_tidegate.cli.options import Port
from demo.sandbox.command import DEFAULT_PORT, URL_VARIABLE

if TYPE_CHECKING:
    from demo.up.deployment import Addresses

workspace_option = click.option(
    "--workspace",
    "-w",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    default="workspace.yaml",
    show_default=True,
    help="The project's workspace file; dagster.yaml is beside it.",
)


def explained() -> tuple[type[Exception], ...]:
    """Return the errors whose message says what to do."""
    from sqlalchemy.exc import OperationalError

    from demo.up.children import ChildDiedError, NotReadyError
    from demo.up.dagster_web import LocationError
    from demo.up.home import HomeError
    from demo.up.ports import PortTakenError

    return (
        ChildDiedError,
        HomeError,
        LocationError,
        NotReadyError,
        PortTakenError,
        ValueError,
        OperationalError,
    )


@click.command()
@workspace_option
@click.option(
    "--port",
    type=Port(),
    default=3000,
    show_default=True,
    help="Port of Dagster's UI and the API.",
)
@click.option(
    "--sandbox-port",
    type=Port(),
    default=DEFAULT_PORT,
    show_default=True,
    help="Port of the sandbox.",
)
@click.option(
    "--latency",
    type=click.FloatRange(0, 60),
    default=0.1,
    show_default=True,
    metavar="SECONDS",
    help="Latency of the sandbox.",
)
@click.option(
    "--with-parent",
    is_flag=True,
    help="Also stop when the process that started this one ends.",
)
def up(workspace: Path, port: int, sandbox_port: int, latency: float, with_parent: bool) -> None:
    """Run everything on this machine until Ctrl-C.

    Starts the sandbox (simulated third-party services), Dagster's webserver and its daemon, with
    the store and all data in DAGSTER_HOME (default: .tidegate/home beside the workspace file).
    """
    # Imports Dagster, which takes seconds, and which the sandbox does without.
    from demo.up import deployment

    console = Console(highlight=False, soft_wrap=True)

    def tell(message: str) -> None:
        console.print(f"[dim]tidegate:[/] {escape(message)}")

    def ready(where: "Addresses") -> None:
        _print_ready(console, where, sandbox_port)

    tell("starting the sandbox, Dagster's webserver and its daemon")
    try:
        deployment.run(
            workspace,
            port=port,
            sandbox_port=sandbox_port,
            latency_s=latency,
            ready=ready,
            tell=tell,
            with_parent=with_parent,
        )
    except explained() as error:
        raise click.ClickException(str(error)) from error


def _print_ready(console: Console, where: "Addresses", sandbox_port: int) -> None:
    environment = "" if sandbox_port == DEFAULT_PORT else f"{URL_VARIABLE}={where.sandbox} "
    console.print(f"""
[bold]Tidegate is up[/] (in {where.started_in_s:.1f} s). Ctrl-C stops it.

  Dagster   {where.web}
  Tidegate  {where.web}/tidegate  (what is paused, why, and what to do about it)
  API       {where.web}/api/v1
  Sandbox   {where.sandbox}  (simulated third-party services)
  Home      {where.home}
  Logs      {where.logs}

The sensor new_lead_files starts a run of outreach for each lead file.

[bold]Try[/], in a second terminal:
  {environment}make outage SERVICE=instantly FOR=120
[bold]and watch[/]
  {where.web}/runs  runs that reach instantly end as Canceled, with the reason
  {where.web}/deployment/concurrency  its pools have the limit 0
  {where.web}/automation  schedules and sensors of the affected campaigns are stopped
When the service recovers, everything resumes where it stopped.
""")
