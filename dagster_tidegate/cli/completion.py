"""What the shell offers for a name: the services and campaigns that the store knows."""

from collections.abc import Callable
from contextlib import suppress

import click

from dagster_tidegate.cli.reading import explained, named_store
from dagster_tidegate.holds import TargetKind
from dagster_tidegate.store import breakers, campaigns

SERVICE, CAMPAIGN = TargetKind.SERVICE, TargetKind.CAMPAIGN


def names(
    *kinds: TargetKind,
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return what completes a name.

    Args:
        kinds: What may be named; where the command line says a kind, only what is of it.
    """

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        said = context.params.get("kind")
        wanted = [kind for kind in kinds if said in (None, kind)]
        found: list[str] = []
        # A shell that is typed in is no place for what is wrong with the store.
        with suppress(click.ClickException), explained():
            store = named_store(context.params.get("url"), connections=1)
            with store.read() as conn:
                if SERVICE in wanted:
                    found += breakers.read(conn)
                if CAMPAIGN in wanted:
                    found += (each.name for each in campaigns.read(conn))
        return sorted(each for each in found if each.startswith(incomplete))

    return complete
