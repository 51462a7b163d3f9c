"""Output of the commands: tables for people, JSON for programs."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any

import click
from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from dagster_tidegate.cli.tables import FittingTable, text
from dagster_tidegate.text import shown, utc, words

COLOURS = {
    "closed": "green",
    "running": "green",
    "processing": "green",
    "completed": "green",
    "ok": "green",
    "live": "green",
    "half_open": "yellow",
    "paused": "yellow",
    "held": "magenta",
    "kept_closed": "magenta",
    "pending": "cyan",
    "warning": "yellow",
    "throttled": "yellow",
    "open": "red",
    "denied": "red",
    "failed": "red",
    "cancelled": "red",
    "error": "red",
}
# Output to a file or pipe is read by grep, or later in a log: it is not cut to 80 columns.
WIDTH_WITHOUT_TERMINAL = 200


def console() -> Console:
    """Return the console for stdout."""
    terminal = Console(highlight=False)
    if terminal.is_terminal:
        return terminal
    return Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)


def table(
    title: str, *columns: str, less: Collection[str] = (), short: bool = False
) -> FittingTable:
    """Return an empty table.

    Args:
        less: Headers of the columns to drop in a narrow terminal, the first of them first.
        short: Whether each row gets one line, with its text cut.
    """
    return FittingTable(title, *columns, less=less, short=short)


def status(value: str | None) -> Text:
    """Return a status in its colour."""
    return text(words(value or ""), COLOURS.get(str(value), ""))


def moment(time: datetime | None) -> str:
    """Return a time for people, or an empty string."""
    return "" if time is None else utc(time)


def say(message: object, *, err: bool = False) -> None:
    """Print one line, with control characters escaped."""
    click.echo(shown(str(message)), err=err)


def failure(message: object) -> click.ClickException:
    """Return the exception that ends a command with one line on stderr and exit code 1."""
    return click.ClickException(shown(str(message)))


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal's stderr that something is in progress."""
    with Console(stderr=True).status(f"[dim]{what} ...[/]"):
        yield


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print a value as JSON, with times as ISO 8601 in UTC. Without an indent it is one line."""
    click.echo(json.dumps(value, indent=indent, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Collection):
        return list(value)
    raise TypeError(f"{type(value).__name__} can't be printed as JSON")
