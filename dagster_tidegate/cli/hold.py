"""`tidegate hold`: keep something from running."""

from datetime import timedelta

import click

from dagster_tidegate.cli import target as targets
from dagster_tidegate.holds import HoldSource
from dagster_tidegate.store import holds


@click.command()
@targets.arguments
@click.option("--reason", required=True, help="Why, for everybody who finds it paused.")
@click.option("--for", "length", type=targets.Duration(), help="Release by itself after 30m, 2h.")
def hold(
    kind: str, name: str | None, actor: str, url: str | None, reason: str, length: timedelta | None
) -> None:
    """Hold a service, a campaign, a run (campaign/partition) or everything."""
    target = targets.target(kind, name)
    store = targets.open_store(url)
    with store.begin() as conn:
        now = store.now(conn)
        try:
            placed = holds.place(
                conn,
                now,
                target,
                source=HoldSource.OPERATOR,
                reason=reason,
                actor=actor,
                expires_at=None if length is None else now + length,
            )
        except ValueError as error:
            raise click.ClickException(str(error)) from error
    until = (
        "until released" if placed.expires_at is None else f"until {placed.expires_at:%F %T} UTC"
    )
    again = "" if placed.placed_at == now else ", as it was already"
    click.echo(f"{target} is held by {placed.actor} {until}{again}: {placed.reason}")
