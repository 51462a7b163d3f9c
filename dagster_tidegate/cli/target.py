"""What an operator holds, releases or asks about, as the command line says it."""

import getpass
import os
import re
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from dagster_tidegate.cli import output
from dagster_tidegate.cli.completion import CAMPAIGN, SERVICE, names
from dagster_tidegate.cli.reading import url_option
from dagster_tidegate.holds import Target, TargetKind, named
from dagster_tidegate.text import MAX_ACTOR, MAX_NAME, checked

KINDS = {
    "service": TargetKind.SERVICE,
    "campaign": TargetKind.CAMPAIGN,
    "run": TargetKind.CAMPAIGN_RUN,
    "everything": TargetKind.EVERYTHING,
}
EXAMPLES = {"service": "instantly", "campaign": "outreach", "run": "outreach/leads-1"}
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


class Moment(click.ParamType):
    """A time in ISO 8601 with its zone, such as `2026-03-01T18:00Z`."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the time, in UTC.

        Raises:
            click.BadParameter: If it is none, or has no zone.
        """
        if isinstance(value, datetime):
            return value
        refusal = (
            f"{value!r} is no time with a zone: use 2026-03-01T18:00Z or 2026-03-01T18:00+01:00"
        )
        try:
            time = datetime.fromisoformat(value)
            if time.tzinfo is None:
                self.fail(refusal, param, ctx)
            return time.astimezone(UTC)
        except (ValueError, OverflowError):  # UTC has no year 10,000
            self.fail(refusal, param, ctx)


class Words(click.ParamType):
    """Text that people give: on one line, without control characters, of bounded length.

    Args:
        what: What it is, for the refusal.
        longest: How many characters it may have.
    """

    name = "text"

    def __init__(self, what: str, longest: int) -> None:
        self.what = what
        self.longest = longest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text.

        Raises:
            click.BadParameter: If it may not be kept.
        """
        try:
            return checked(value, self.what, self.longest)
        except ValueError as error:
            self.fail(str(error), param, ctx)


NAME = Words("name", MAX_NAME)


def target(kind: str, name: str | None) -> Target:
    """Return the target that the command line names.

    Raises:
        click.UsageError: If nothing of this kind can have the name.
    """
    if not name and kind in EXAMPLES:
        raise click.UsageError(f"name the {kind}, for example: {kind} {EXAMPLES[kind]}")
    try:
        return named(KINDS[kind], name or "")
    except ValueError as error:
        raise click.UsageError(output.text(str(error)).plain) from error


def operator() -> str:
    """Return who is at the keyboard, as `user@host`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in many containers
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


actor_option = click.option(
    "--actor",
    default=operator,
    show_default="user@host",
    type=Words("actor", MAX_ACTOR),
    help="Who does it.",
)


def arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the arguments and options that name a target and an actor."""
    for decorate in (
        click.argument("name", required=False, type=NAME, shell_complete=names(SERVICE, CAMPAIGN)),
        click.argument("kind", type=click.Choice(list(KINDS))),
        actor_option,
        url_option,
        click.option("--dry-run", is_flag=True, help="Only say what would be affected."),
    ):
        command = decorate(command)
    return command
