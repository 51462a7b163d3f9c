"""`tidegate store`: the schema of the store."""

from collections.abc import Iterator
from contextlib import contextmanager

import click
from alembic.util import CommandError

from dagster_tidegate.cli.reading import explained, named_store, url_option
from dagster_tidegate.store import schema


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors of the database into one line that a person can act on."""
    try:
        with explained():
            yield
    except CommandError as error:
        raise click.ClickException(str(error)) from error


@click.group()
def store() -> None:
    """Make, upgrade and inspect the store."""


@store.command()
@url_option
@click.argument("revision", default="head")
def upgrade(url: str | None, revision: str) -> None:
    """Bring the store up to REVISION (default: the newest)."""
    opened = named_store(url)
    with _explained():
        schema.upgrade(opened, revision)
        click.echo(f"{opened.url.render_as_string()} is at {schema.current(opened)}")


@store.command()
@url_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("revision")
def downgrade(url: str | None, yes: bool, revision: str) -> None:
    """Bring the store down to REVISION; 'base' removes every table and what it holds."""
    opened = named_store(url)
    if not yes:
        click.confirm(
            f"Take {opened.url.render_as_string()} down to {revision}? Data is lost", abort=True
        )
    with _explained():
        schema.downgrade(opened, revision)
        click.echo(f"{opened.url.render_as_string()} is at {schema.current(opened) or 'base'}")


@store.command()
@url_option
def current(url: str | None) -> None:
    """Print the store's revision, and whether this version works with it. Exit code 1 if not."""
    opened = named_store(url)
    with _explained():
        found = schema.current(opened)
        click.echo(f"{found or 'none'} (this version needs {schema.head()})")
        if found != schema.head():
            raise click.ClickException("run 'tidegate store upgrade'")
