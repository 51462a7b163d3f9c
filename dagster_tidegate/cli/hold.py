"""`tidegate hold`: keep something from running."""

from datetime import timedelta

import click

from dagster_tidegate.cli import target as targets
from dagster_tidegate.holds import Hold, HoldSource
from dagster_tidegate.store import holds


@click.command()
@targets.arguments
@click.option("--reason", required=True, help="Why, for everybody who finds it paused.")
@click.option("--for", "length", type=targets.Duration(), help="Release by itself after 30m, 2h.")
def hold(
    kind: str, name: str | None, actor: str, url: str | None, reason: str, length: timedelta | None
) -> None:
    """Hold a service, a campaign, a run (campaign/partition) or everything.

    Held by you already, it gets the new reason and end.
    """
    target = targets.target(kind, name)
    store = targets.open_store(url)
    with store.begin() as conn:
        now = store.now(conn)
        before = {hold.id: hold for hold in holds.live(conn, now)}
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
    former = before.get(placed.id)
    if former is None:
        again = ""
    elif former == placed:
        again = ", as it was already"
    else:
        again = f", no longer {_until(former)} ({former.reason})"
    click.echo(f"{target} is held by {placed.actor} {_until(placed)}{again}: {placed.reason}")


def _until(hold: Hold) -> str:
    return "until released" if hold.expires_at is None else f"until {hold.expires_at:%F %T} UTC"
