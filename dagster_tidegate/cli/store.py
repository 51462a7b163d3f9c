"""`tidegate store`: the schema of the store."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import click
from alembic.util import CommandError

from dagster_tidegate.cli.reading import explained, named_store, url_option
from dagster_tidegate.store import retention, schema


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


@store.command()
@url_option
@click.option(
    "--days", type=click.FloatRange(min=0), default=90.0, show_default=True, help="How old."
)
def prune(url: str | None, days: float) -> None:
    """Delete the ledgers of campaign runs that ended more than so many DAYS ago.

    The breaker sensor does so by itself, as its keep_ledgers says. A campaign run whose ledger was
    deleted can't be executed again.
    """
    opened = named_store(url)
    with _explained():
        schema.require_head(opened)
        with opened.read() as conn:
            before = opened.now(conn) - timedelta(days=days)
        total, more = 0, True
        while more:  # each round deletes something, so that it ends
            deleted, more = retention.prune(opened, before, batches=100)
            total += deleted
        click.echo(f"{total} entries deleted")
