"""`tidegate serve`: the API and Dagster's pages on one port."""

import logging
from pathlib import Path

import click

from dagster_tidegate.cli.deployment import WORKSPACE_FILE
from dagster_tidegate.cli.port import Port
from dagster_tidegate.cli.reading import explained, open_store, url_option
from dagster_tidegate.settings import ServeSettings, SettingsError, load
from dagster_tidegate.store.database import SERVER_CONNECTIONS

LEVELS = ("critical", "error", "warning", "info", "debug")
WORKSPACE = Path("workspace.yaml")


@click.command()
@click.option("--host", "-h", help="Address to listen on; 127.0.0.1 by default.")
@click.option("--port", "-p", type=Port(free=True), help="Port; 3000 by default.")
@click.option(
    "--workspace",
    "-w",
    type=WORKSPACE_FILE,
    help="The workspace file; workspace.yaml by default.",
)
@click.option("--path-prefix", "-l", help="Path below which everything is served: /dagster.")
@click.option("--read-only", is_flag=True, help="Refuse every change, here and in Dagster's pages.")
@click.option(
    "--api-only", is_flag=True, help="Only the API. It starts no runs, unless --workspace is said."
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    default="warning",
    show_default=True,
    help="What is logged.",
)
@url_option
def serve(
    host: str | None,
    port: int | None,
    workspace: Path | None,
    path_prefix: str | None,
    read_only: bool,
    api_only: bool,
    log_level: str,
    url: str | None,
) -> None:
    """Serve the API and Dagster's pages on one port, until Ctrl-C.

    It takes the place of dagster-webserver. Alerts are sent meanwhile.
    """
    try:
        settings = load(
            ServeSettings, host=host, port=port, path_prefix=path_prefix, workspace=workspace
        )
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    file = settings.workspace
    if file is None and not api_only:
        file = WORKSPACE.resolve()
    if file is not None and not file.is_file():
        raise click.ClickException(
            f"there is no workspace file {file}: run this where workspace.yaml is, say --workspace "
            "FILE, or --api-only"
        )
    store = open_store(url, connections=SERVER_CONNECTIONS)
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    from dagster_tidegate.dagster_api.workspace import WorkspaceError
    from dagster_tidegate.web import server
    from dagster_tidegate.web.access.exposure import ExposedError

    try:
        with explained():
            server.run(
                store,
                settings,
                workspace=file,
                pages=not api_only,
                read_only=read_only,
                log_level=log_level,
                ready=_tell,
            )
    except (ExposedError, server.ListenError, WorkspaceError, SettingsError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("stopped", err=True)


def _tell(address: str) -> None:
    click.echo(f"serving {address}, and the API at {address}/api/v1. Ctrl-C stops it.")
