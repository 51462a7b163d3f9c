"""How the commands reach the store: where it is, and what is said when it can't be read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

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

LOCAL_HOME = Path(".tidegate", "home")

url_option = click.option(
    "--url",
    help="SQLAlchemy URL of the store. Default: TIDEGATE_STORE_URL, else tidegate.db in "
    "DAGSTER_HOME.",
)


def use_local_home() -> None:
    """Make the home that `tidegate up` keeps in the current directory the DAGSTER_HOME.

    Only where no DAGSTER_HOME is set, so that commands beside a running `tidegate up` find it.
    """
    if not os.environ.get("DAGSTER_HOME") and LOCAL_HOME.is_dir():
        os.environ["DAGSTER_HOME"] = str(LOCAL_HOME.resolve())


def open_store(url: str | None, *, connections: int = 2) -> Store:
    """Open the store for a command, or say in one line why it can't be.

    Raises:
        click.ClickException: If there is none, it can't be reached, or has another schema.
    """
    store = named_store(url, connections=connections)
    with explained():
        schema.require_compatible(store)
    return store


def named_store(url: str | None, *, connections: int = 2) -> Store:
    """Return the store that a command means, whatever is in it.

    Raises:
        click.ClickException: If neither `url` nor the environment names one.
    """
    use_local_home()
    try:
        return Store(url or default_url(), connections=connections)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def explained() -> Iterator[None]:
    """Turn what can be wrong with the store into one line that a person can act on.

    Raises:
        click.ClickException: With that line.
    """
    try:
        yield
    except UNUSABLE as error:
        raise click.ClickException(unreachable(error)) from error
    except schema.SchemaError as error:
        raise click.ClickException(str(error)) from error


def unreachable(error: Exception) -> str:
    """Return in one line that the store can't be reached, and why."""
    return f"the store can't be reached: {why_unreachable(error)}"


@contextmanager
def reading(store: Store) -> Iterator[tuple[Connection, Situation]]:
    """Read the situation, and whatever else is read of the store at the same moment.

    Raises:
        click.ClickException: If the store can't be read.
    """
    with explained(), store.read() as conn:
        yield conn, situation.read(conn, store.now(conn))
