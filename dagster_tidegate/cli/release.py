"""`tidegate release`: let something run again."""

import click

from dagster_tidegate.cli import target as targets
from dagster_tidegate.holds import HoldSource
from dagster_tidegate.store import breakers, holds


@click.command()
@targets.arguments
@click.option("--force", is_flag=True, help="Release the breaker's own hold too, and close it.")
def release(kind: str, name: str | None, actor: str, url: str | None, force: bool) -> None:
    """Release what operators hold: a service, a campaign, a run or everything."""
    target = targets.target(kind, name)
    store = targets.open_store(url)
    with store.begin() as conn:
        now = store.now(conn)
        released = []
        if force:
            live = [hold for hold in holds.live(conn, now) if hold.target == target]
            released = [hold for hold in live if hold.source is HoldSource.BREAKER]
        if released:
            breakers.close(conn, now, target.name, actor=actor)
        try:
            released += holds.release(conn, now, target, source=HoldSource.OPERATOR, actor=actor)
        except holds.NotYourHoldError as error:
            raise click.ClickException(str(error).replace("use force", "use --force")) from error
    for hold in released:
        click.echo(f"released: {target}, held by {hold.actor} ({hold.reason})")
    if not released:
        click.echo(f"{target} was not held")
