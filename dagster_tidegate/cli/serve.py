"""`tidegate serve`: the API and the Dagster UI on one port."""

import logging
from importlib.util import find_spec
from pathlib import Path

import click

from dagster_tidegate.cli.connections import explained, open_store
from dagster_tidegate.cli.console import failure
from dagster_tidegate.cli.options import Port, code_options, url_option
from dagster_tidegate.dagster_api.project import CodeOptions, Project, ProjectError, find
from dagster_tidegate.settings import ServeSettings, SettingsError, load
from dagster_tidegate.store.database import SERVER_CONNECTIONS

LEVELS = ("critical", "error", "warning", "info", "debug")


@click.command()
@click.option("--host", "-h", help="Address to listen on. Default: 127.0.0.1.")
@click.option("--port", "-p", type=Port(free=True), help="Port. Default: 3000.")
@code_options
@click.option("--path-prefix", "-l", help="URL path prefix, such as /dagster.")
@click.option(
    "--read-only", is_flag=True, help="Refuse every change in the API and the Dagster UI."
)
@click.option(
    "--api-only", is_flag=True, help="Serve only the API. To start runs, also name the code."
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    default="warning",
    show_default=True,
    help="Minimum level of logged messages.",
)
@url_option
def serve(
    host: str | None,
    port: int | None,
    code: CodeOptions,
    path_prefix: str | None,
    read_only: bool,
    api_only: bool,
    log_level: str,
    url: str | None,
) -> None:
    """Serve the API and the Dagster UI on one port until Ctrl-C.

    It replaces dagster-webserver, and also sends alerts.
    """
    with explained(SettingsError, ProjectError):
        settings = load(ServeSettings, host=host, port=port, path_prefix=path_prefix)
        source = _source(code, settings, api_only=api_only)
    if not api_only and find_spec("dagster_webserver") is None:
        raise failure(
            "the Dagster UI is not installed: pip install dagster-webserver, or use --api-only"
        )
    store = open_store(url, connections=SERVER_CONNECTIONS)
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    from dagster_tidegate.dagster_api.workspace import WorkspaceError
    from dagster_tidegate.web import server
    from dagster_tidegate.web.access.exposure import ExposedError

    try:
        with explained(ExposedError, server.ListenError, WorkspaceError, SettingsError):
            server.run(
                store,
                settings,
                code=source,
                pages=not api_only,
                read_only=read_only,
                log_level=log_level,
                ready=_announce,
            )
    except KeyboardInterrupt:
        click.echo("stopped", err=True)


def _source(code: CodeOptions, settings: ServeSettings, *, api_only: bool) -> Project | None:
    if not code and settings.workspace is not None:
        code = CodeOptions(workspaces=[settings.workspace])
    if api_only and not code:
        return None
    try:
        return find(code, Path.cwd())
    except ProjectError as error:
        raise ProjectError(f"{error}; --api-only works without one") from error


def _announce(address: str) -> None:
    click.echo(
        f"serving {address}, Tidegate at {address}/tidegate, API at {address}/api/v1; press "
        "Ctrl-C to stop"
    )
