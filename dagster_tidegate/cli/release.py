"""`tidegate release`: let something run again."""

from collections.abc import Sequence
from datetime import datetime

import click

from dagster_tidegate.cli import output
from dagster_tidegate.cli import target as targets
from dagster_tidegate.cli.change import as_dicts, notes, tell_effects, tell_paused
from dagster_tidegate.cli.reading import explained, open_store
from dagster_tidegate.control import operations
from dagster_tidegate.control.models import HoldOut
from dagster_tidegate.holds import EVERYTHING, Hold, TargetKind
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.holds import NotYourHoldError


@click.command()
@targets.arguments
@click.option("--force", is_flag=True, help="Release the breaker's own hold too, and close it.")
@output.json_option
def release(
    kind: str,
    name: str | None,
    actor: str,
    url: str | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Release what operators hold: a service, a campaign, a run or everything."""
    target = targets.target(kind, name)
    if force and target.kind is not TargetKind.SERVICE:
        raise click.UsageError("--force closes a breaker: it goes with a service")
    store = open_store(url)

    def let_go(conn: Connection, now: datetime) -> Sequence[Hold]:
        return operations.release(conn, now, target, actor=actor, force=force)

    try:
        with explained():
            change = operations.change(store, target, let_go, dry_run=dry_run)
    except NotYourHoldError as error:
        raise click.ClickException(
            output.text(str(error).replace("use force", "use --force")).plain
        ) from error
    released, found = change.made, change.effects
    notes(change, store, target)
    if as_json:
        listed = [HoldOut.model_validate(hold) for hold in released]
        affected = as_dicts(found)
        output.print_json({"dry_run": dry_run, "released": listed, "campaigns": affected})
        return
    verb = "would be released" if dry_run else "released"
    for hold in released:
        click.echo(output.text(f"{verb}: {target}, held by {hold.actor} ({hold.reason})").plain)
    if not released:
        everything = target == EVERYTHING
        said = "there is no hold on everything" if everything else f"nobody holds {target} itself"
        click.echo(output.text(said).plain)
    if dry_run and released:
        tell_effects(found, target)
    else:
        tell_paused(found, target)
