"""`tidegate history`: who changed what, when and why."""

from datetime import datetime, timedelta

import click

from dagster_tidegate.cli import output
from dagster_tidegate.cli.completion import CAMPAIGN, SERVICE, names
from dagster_tidegate.cli.reading import open_store, reading, url_option
from dagster_tidegate.cli.target import NAME, Duration
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.store import history as stored
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.history import Event
from dagster_tidegate.text import utc

LABELS = {"expires_at": "ends", "kept_closed_until": "until"}
LEFT_OUT = {"hold", "source", "actor"}
"""Of a hold: they say which one it is, and do not change."""
TIMES = ("_at", "_until")


@click.command()
@click.argument("name", required=False, type=NAME, shell_complete=names(SERVICE, CAMPAIGN))
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([kind.value for kind in EventKind]),
    help="Only changes of this kind; may be given more than once.",
)
@click.option("--since", type=Duration(), help="Only changes of the last 30m, 2h, 7d.")
@output.limit_option("How many at most, the newest.")
@output.json_option
@url_option
def history(
    name: str | None,
    kinds: tuple[str, ...],
    since: timedelta | None,
    limit: int,
    as_json: bool,
    url: str | None,
) -> None:
    """List who changed what, when and why.

    With NAME only what is about that service, campaign or campaign/partition.
    """
    with reading(open_store(url)) as (conn, seen):
        found = stored.read(
            conn,
            name=name,
            kinds=kinds,
            since=None if since is None else seen.now - since,
            limit=limit,
        )
    if as_json:
        output.print_json(found)
        return
    table = output.table("", "at", "what", "change", "by", "why")
    for event in found:
        by = event.actor if event.address is None else f"{event.actor} from {event.address}"
        table.add_row(
            output.moment(event.at),
            output.text(_what(event)),
            output.text("; ".join([_change(event), *_details(event)])),
            output.text(by),
            output.text(event.reason),
        )
    output.console().print(table if found else "nothing has been written down")


def _what(event: Event) -> str:
    if event.kind == EventKind.TAKEOVER:  # its name says what kind of thing it is
        return event.name
    if event.kind == EventKind.HOLD:
        kind, _, name = event.name.partition(" ")
        return f"hold {Target(TargetKind(kind), name)}"
    return f"{event.kind.replace('_', ' ')} {event.name}"


def _change(event: Event) -> str:
    if event.from_status is None:
        return event.to_status
    if event.kind == EventKind.CANCEL:  # what was asked for, and how the campaign run was then
        return f"{event.to_status} (was {event.from_status})"
    return f"{event.from_status} -> {event.to_status}"


def _details(event: Event) -> list[str]:
    """What else became what, where neither status, reason nor actor say it."""
    before, after = event.before or {}, event.after or {}
    found = []
    for key, new in after.items():
        old = before.get(key)
        said = new in (event.reason, event.actor)
        if key in LEFT_OUT or old == new or (old is None and said):
            continue
        became = _value(key, new) if old is None else f"{_value(key, old)} -> {_value(key, new)}"
        found.append(f"{LABELS.get(key, key.replace('_', ' '))} {became}")
    return found


def _value(key: str, value: object) -> str:
    if isinstance(value, str) and key.endswith(TIMES):
        return utc(datetime.fromisoformat(value))
    return "never" if value is None else str(value)
