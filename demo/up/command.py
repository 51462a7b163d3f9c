"""`python -m demo up`: the whole deployment on this machine."""

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from sqlalchemy.exc import OperationalError

from dagster_tidegate.cli.port import Port
from demo.sandbox.command import DEFAULT_PORT, URL_VARIABLE
from demo.up import deployment
from demo.up.children import ChildDiedError, NotReadyError
from demo.up.dagster_web import LocationError
from demo.up.home import HomeError
from demo.up.ports import PortTakenError

workspace_option = click.option(
    "--workspace",
    "-w",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    default="workspace.yaml",
    show_default=True,
    help="The project's workspace file; dagster.yaml is beside it.",
)
EXPLAINED = (
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
    help="Port of Dagster's web pages.",
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
    help="How long the sandbox takes to answer.",
)
@click.option(
    "--with-parent",
    is_flag=True,
    help="Also stop when the process that started this one ends.",
)
def up(workspace: Path, port: int, sandbox_port: int, latency: float, with_parent: bool) -> None:
    """Start everything on this machine, and stay until Ctrl-C.

    The store, the sandbox that plays the third-party services, Dagster's webserver and its
    daemon. All of it is in DAGSTER_HOME (default: .tidegate/home beside the workspace file).
    """
    console = Console(highlight=False, soft_wrap=True)

    def tell(message: str) -> None:
        console.print(f"[dim]tidegate:[/] {escape(message)}")

    def ready(where: deployment.Addresses) -> None:
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
    except EXPLAINED as error:
        raise click.ClickException(str(error)) from error


def _print_ready(console: Console, where: deployment.Addresses, sandbox_port: int) -> None:
    tidegate = _command()
    away = "" if sandbox_port == DEFAULT_PORT else f"{URL_VARIABLE}={where.sandbox} "
    console.print(f"""
[bold]Tidegate is up[/] (in {where.started_in_s:.1f} s). Ctrl-C stops it.

  Dagster   {where.web}
  API       {where.web}/api/v1
  Sandbox   {where.sandbox}  plays the third-party services
  Home      {where.home}
  Logs      {where.logs}

The sensor new_lead_files finds the lead files and starts a run of outreach for each.

[bold]Try[/], in another terminal:
  {away}{tidegate} sandbox fail instantly --for 120
[bold]and look at[/]
  {where.web}/runs  runs that come to instantly end as Canceled, with the reason; others go on
  {where.web}/deployment/concurrency  its pools are at 0
  {where.web}/automation  schedules and sensors of campaigns that need it are stopped
A while after the two minutes all of it is back, and each run goes on where it stopped.
""")


def _command() -> str:
    """Return how a person in the current directory calls `tidegate`."""
    local = Path(".venv/bin/tidegate")
    return str(local) if local.exists() else "tidegate"
