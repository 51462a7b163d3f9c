"""What an operator holds or releases, as the command line says it."""

import getpass
import re
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import click
from sqlalchemy.exc import ArgumentError, OperationalError

from dagster_tidegate.holds import EVERYTHING, Target, TargetKind
from dagster_tidegate.store import schema
from dagster_tidegate.store.database import Store, default_url

KINDS = {
    "service": TargetKind.SERVICE,
    "campaign": TargetKind.CAMPAIGN,
    "run": TargetKind.CAMPAIGN_RUN,
    "everything": TargetKind.EVERYTHING,
}
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Duration(click.ParamType):
    """A length of time such as `90s`, `30m`, `2h` or `1d`."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Return the length of time.

        Raises:
            click.BadParameter: If it is none, or not longer than 0.
        """
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"(\d{1,6})([smhd])", value)
        if match is None or int(match[1]) == 0:
            self.fail(f"{value!r} is no length of time: use 90s, 30m, 2h or 1d", param, ctx)
        return timedelta(**{UNITS[match[2]]: int(match[1])})


def target(kind: str, name: str | None) -> Target:
    """Return the target that the command line names.

    Raises:
        click.UsageError: If a name is missing, or is there where none belongs.
    """
    if kind == "everything":
        if name is not None:
            raise click.UsageError("'everything' takes no name")
        return EVERYTHING
    if not name:
        raise click.UsageError(f"name the {kind}, for example: {kind} {_example(kind)}")
    if kind == "run" and "/" not in name:
        raise click.UsageError(f"{name!r} names no campaign run: say campaign/partition")
    return Target(KINDS[kind], name)


def operator() -> str:
    """Return who is at the keyboard, as `user@host`."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the arguments and options that name a target and an actor."""
    for decorate in (
        click.argument("name", required=False),
        click.argument("kind", type=click.Choice(list(KINDS))),
        click.option("--actor", default=operator, show_default="user@host", help="Who does it."),
        click.option("--url", help="SQLAlchemy URL of the store, if not the default."),
    ):
        command = decorate(command)
    return command


def open_store(url: str | None) -> Store:
    """Open the store for a command, or say in one line why it can't be.

    Raises:
        click.ClickException: If there is none, it can't be reached, or has another schema.
    """
    try:
        store = Store(url or default_url())
        schema.require_head(store)
    except (ValueError, ArgumentError, schema.SchemaError) as error:
        raise click.ClickException(str(error)) from error
    except OperationalError as error:
        raise click.ClickException(f"the store can't be reached: {error.orig}") from error
    return store


def _example(kind: str) -> str:
    return {"service": "instantly", "campaign": "outreach", "run": "outreach/leads-1"}[kind]
