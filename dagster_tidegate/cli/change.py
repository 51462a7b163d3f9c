"""How `hold` and `release` change the holds, and say what that does."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from difflib import get_close_matches
from typing import Any, TypeVar

import click
import sqlalchemy as sa

from dagster_tidegate import holds as covers
from dagster_tidegate.cli import output
from dagster_tidegate.cli.reading import enabled, explained
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.store.database import Store
from dagster_tidegate.views import situation
from dagster_tidegate.views.effects import Effect, effects
from dagster_tidegate.views.situation import Situation

R = TypeVar("R")


class _NotForGoodError(Exception):
    """Rolls a change back that was only made to see what it does."""


def change(
    store: Store,
    target: Target,
    make: Callable[[sa.Connection, datetime], R],
    *,
    dry_run: bool,
) -> tuple[R, Situation, Sequence[Effect]]:
    """Make a change in one transaction, and find out what it does.

    Args:
        store: The store.
        target: What is held or released.
        make: Makes the change.
        dry_run: Take it back again.

    Returns:
        What `make` returned, the situation before, and what becomes of the campaigns.

    Raises:
        click.ClickException: If the store can't be reached.
    """
    on = enabled()
    found: list[tuple[R, Situation, Sequence[Effect]]] = []
    try:
        with explained(), store.begin() as conn:
            now = store.now(conn)
            before = situation.read(conn, now, enabled=on)
            made = make(conn, now)
            after = situation.read(conn, now, enabled=on)
            found.append((made, before, effects(before, after, target)))
            if dry_run:
                raise _NotForGoodError
    except _NotForGoodError:
        pass
    return found[0]


def tell_effects(found: Sequence[Effect], target: Target) -> None:
    """Print what a change does, or would do, to the campaigns."""
    if not found and target.kind is not TargetKind.CAMPAIGN_RUN:
        click.echo("no campaign that the store knows is affected")
    for effect in found:
        click.echo(output.text(_sentence(effect, target)).plain)


def as_dicts(found: Sequence[Effect]) -> list[dict[str, Any]]:
    """Return what a change does as JSON shows it."""
    return [
        {
            **{key: value for key, value in asdict(effect).items() if key != "still_held_by"},
            "still_held_by": [hold.id for hold in effect.still_held_by],
        }
        for effect in found
    ]


def note_unknown(seen: Situation, target: Target) -> None:
    """Say so on stderr where the store knows nothing of what is held: it may be a typo."""
    name = target.name.partition("/")[0] if "/" in target.name else target.name
    if target.kind is TargetKind.SERVICE:
        known, thing = set(seen.circuits), "service"
    elif target.kind in (TargetKind.CAMPAIGN, TargetKind.CAMPAIGN_RUN):
        known, thing = set(seen.campaigns), "campaign"
    else:
        return
    if name in known:
        return
    if close := get_close_matches(name, known, n=3):
        hint = f"did you mean {', '.join(close)}?"
    else:
        hint = f"it knows {', '.join(sorted(known)) or 'none'}"
    click.echo(output.text(f"note: the store knows no {thing} {name!r}; {hint}").plain, err=True)


def _sentence(effect: Effect, target: Target) -> str:
    runs = ", ".join(f"{count} {status}" for status, count in effect.runs.items() if count)
    what = [f"campaign {effect.campaign} (runs: {runs or 'none'})"]
    triggers = ", ".join(effect.triggers)
    if not effect.changes:
        if effect.held_after and effect.still_held_by:
            what.append(f"is paused anyway: {covers.describe(effect.still_held_by)}")
        else:
            what.append("stays as it is" if not effect.held_after else "stays paused")
    elif effect.held_after:
        what.append("pauses: processing runs stop after the record in hand")
        if effect.queue_waits:
            what.append("queued runs wait")
        else:
            what.append(
                f"queued runs start and pause at their first record, as no op has a pool that "
                f"{target} holds"
            )
        if triggers:
            what.append(f"stopped: {triggers}")
    else:
        what.append("goes on: paused runs resume in order, as its ramps let them")
        if triggers:
            what.append(f"back as they were: {triggers}")
    return f"{what[0]} {'; '.join(what[1:])}"
