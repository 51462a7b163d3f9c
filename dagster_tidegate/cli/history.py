"""`tidegate history`: who changed what, when and why."""

from datetime import datetime, timedelta

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli import options as o
from dagster_tidegate.cli.connections import open_store, reading
from dagster_tidegate.cli.why import answer_for
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.store import history as audit_log
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.history import Event
from dagster_tidegate.text import utc, words

LABELS = {"expires_at": "ends", "kept_closed_until": "until"}
LEFT_OUT = {"hold", "source", "actor", "services", "done", "total", "slow", "counted_s", "p95_s"}
"""Fields that identify a hold and do not change, or that the reason has."""
TIMES = ("_at", "_until")


@click.command()
@click.argument(
    "name", required=False, type=o.NAME, shell_complete=o.completing(o.SERVICE, o.CAMPAIGN)
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([kind.value for kind in EventKind]),
    help="Only changes of this kind. Repeatable.",
)
@click.option("--since", type=o.Duration(), help="Only changes in the last 30m, 2h, 7d.")
@o.limit_option("Maximum number of changes, the newest.")
@o.json_option
@o.url_option
def history(
    name: str | None,
    kinds: tuple[str, ...],
    since: timedelta | None,
    limit: int,
    as_json: bool,
    url: str | None,
) -> None:
    """List changes: who, what, when and why.

    With NAME, only changes of that service, campaign or campaign/partition.
    """
    with reading(open_store(url)) as (conn, situation):
        start = None if since is None else situation.now - since
        events = audit_log.read(conn, name=name, kinds=kinds, since=start, limit=limit)
        # What was deleted still has a history.
        if name and not events and not audit_log.read(conn, name=name, limit=1):
            answer_for(conn, situation, name)
    if as_json:
        console.print_json(events)
        return
    table = console.table("", "at", "what", "change", "by", "why")
    for event in events:
        by = event.actor if event.address is None else f"{event.actor} from {event.address}"
        table.add_row(
            event.at, _what(event), "; ".join([_change(event), *_details(event)]), by, event.reason
        )
    console.console().print(table if events else "no changes")


def _what(event: Event) -> str:
    if event.kind == EventKind.TAKEOVER:  # its name includes its kind
        return event.name
    if event.kind == EventKind.HOLD:
        kind, _, name = event.name.partition(" ")
        return f"hold {Target(TargetKind(kind), name)}"
    return f"{words(event.kind)} {event.name}"


def _change(event: Event) -> str:
    if event.from_status is None:
        return event.to_status
    if event.kind == EventKind.CANCEL:  # the request, and the run's status at that time
        return f"{event.to_status} (was {event.from_status})"
    return f"{event.from_status} -> {event.to_status}"


def _details(event: Event) -> list[str]:
    """Return the changed fields that neither status, reason nor actor show."""
    before, after = event.before or {}, event.after or {}
    details = []
    for key, new in after.items():
        old = before.get(key)
        repeated = new in (event.reason, event.actor)
        if key in LEFT_OUT or old == new or (old is None and repeated):
            continue
        change = _value(key, new) if old is None else f"{_value(key, old)} -> {_value(key, new)}"
        details.append(f"{LABELS.get(key, words(key))} {change}")
    return details


def _value(key: str, value: object) -> str:
    if isinstance(value, str) and key.endswith(TIMES):
        return utc(datetime.fromisoformat(value))
    return "never" if value is None else str(value)
