"""`tidegate history`: who changed what, when and why."""

from datetime import timedelta

import click

from dagster_tidegate.cli import output
from dagster_tidegate.cli.reading import open_store, reading, url_option
from dagster_tidegate.cli.target import NAME, Duration
from dagster_tidegate.store import history as stored
from dagster_tidegate.store.events import EventKind


@click.command()
@click.argument("name", required=False, type=NAME)
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
        kind = event.kind.replace("_", " ")
        change = (
            f"{event.from_status} -> {event.to_status}" if event.from_status else event.to_status
        )
        table.add_row(
            output.moment(event.at),
            output.text(event.name if event.kind == EventKind.TAKEOVER else f"{kind} {event.name}"),
            output.text(change),
            output.text(event.actor),
            output.text(event.reason),
        )
    output.console().print(table if found else "nothing has been written down")
