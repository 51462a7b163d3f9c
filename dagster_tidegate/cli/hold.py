"""`tidegate hold`: keep something from running."""

from datetime import datetime, timedelta

import click

from dagster_tidegate.cli import output
from dagster_tidegate.cli import target as targets
from dagster_tidegate.cli.change import as_dicts, notes, tell_effects
from dagster_tidegate.cli.reading import explained, open_store
from dagster_tidegate.control import operations
from dagster_tidegate.control.models import HoldOut
from dagster_tidegate.holds import Hold
from dagster_tidegate.store.database import Connection
from dagster_tidegate.text import MAX_REASON


@click.command()
@targets.arguments
@click.option(
    "--reason",
    required=True,
    type=targets.Words("reason", MAX_REASON),
    help="Why, for everybody who finds it paused.",
)
@click.option("--for", "length", type=targets.Duration(), help="Release by itself after 30m, 2h.")
@click.option(
    "--until", type=targets.Moment(), help="Release by itself at a time: 2026-03-01T18:00Z."
)
@output.json_option
def hold(
    kind: str,
    name: str | None,
    actor: str,
    url: str | None,
    dry_run: bool,
    reason: str,
    length: timedelta | None,
    until: datetime | None,
    as_json: bool,
) -> None:
    """Hold a service, a campaign, a run (campaign/partition) or everything.

    Held by you already, it gets the new reason and end.
    """
    if length is not None and until is not None:
        raise click.UsageError("say --for or --until, not both")
    target = targets.target(kind, name)
    store = open_store(url)

    def place(conn: Connection, now: datetime) -> Hold:
        return operations.hold(
            conn,
            now,
            target,
            reason=reason,
            actor=actor,
            expires_at=until if length is None else now + length,
        )

    try:
        with explained():
            change = operations.change(store, target, place, dry_run=dry_run)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    placed, found = change.made, change.effects
    notes(change, store, target)
    if as_json:
        shown = HoldOut.model_validate(placed)
        output.print_json({"dry_run": dry_run, "hold": shown, "campaigns": as_dicts(found)})
        return
    former = next((hold for hold in change.before.holds if hold.id == placed.id), None)
    if former is None:
        again = ""
    elif former == placed:
        again = ", as it was already"
    else:
        again = f", no longer {_until(former)} ({former.reason})"
    is_held = "would be held" if dry_run else "is held"
    said = f"{target} {is_held} by {placed.actor} {_until(placed)}{again}: {placed.reason}"
    click.echo(output.text(said).plain)
    if dry_run:
        tell_effects(found, target)


def _until(hold: Hold) -> str:
    return f"until {output.moment(hold.expires_at) or 'it is released'}"
