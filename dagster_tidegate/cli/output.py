"""How the commands show what they found: tables for people, JSON for programs."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any

import click
from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from dagster_tidegate.cli.table import FittingTable
from dagster_tidegate.text import shown, utc

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
    "kept closed": "magenta",
    "pending": "cyan",
    "warning": "yellow",
    "open": "red",
    "failed": "red",
    "cancelled": "red",
    "error": "red",
}
# What is not shown on a terminal is read by grep and by eyes in a log: it is not cut short.
WIDTH_ELSEWHERE = 200

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def limit_option(
    what: str, *, default: int = 50, most: int = 100_000
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option that says how many things a command shows at most.

    Args:
        what: Its help.
        default: How many, where it is not said.
        most: How many it can say.
    """
    return click.option(
        "--limit", type=click.IntRange(1, most), default=default, show_default=True, help=what
    )


def console() -> Console:
    """Return where a command prints."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=WIDTH_ELSEWHERE)


def table(
    title: str, *columns: str, less: Collection[str] = (), short: bool = False
) -> FittingTable:
    """Return an empty table; its cells show text as it is and obey no markup in it.

    Args:
        title: What is above it.
        columns: Headers of the columns.
        less: Headers of those that are left out where it is narrow, the first of them first.
        short: Whether each row has one line, and text is cut.
    """
    return FittingTable(title, *columns, less=less, short=short)


def text(value: object, style: str = "") -> Text:
    """Return what a cell shows of a value: text that people gave can do nothing to a terminal."""
    return Text("" if value is None else shown(str(value)), style)


def status(value: str | None) -> Text:
    """Return a status in its colour."""
    return text(value, COLOURS.get(str(value), ""))


def moment(time: datetime | None) -> str:
    """Return a time for people; nothing for none."""
    return "" if time is None else utc(time)


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print a value as JSON; times are ISO 8601, in UTC. Without an indent it is one line."""
    click.echo(json.dumps(_plain(value), indent=indent))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, Collection) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value
