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
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import runs
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
            run = runs.find(conn, *target.name.split("/", 1)) if "/" in target.name else None
            found.append((made, before, effects(before, after, target, run)))
            if dry_run:
                raise _NotForGoodError
    except _NotForGoodError:
        pass
    return found[0]


def tell_effects(found: Sequence[Effect], target: Target) -> None:
    """Print what a change does, or would do, to the campaigns."""
    if not found:
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
    name = f"campaign {effect.campaign}" if effect.run is None else f"run {effect.run}"
    if not effect.changes:
        if effect.held_after and effect.still_held_by:
            return f"{name} is paused anyway: {covers.describe(effect.still_held_by)}"
        return f"{name} stays {'paused' if effect.held_after else 'as it is'}"
    counts = {status: effect.runs.get(status, 0) for status in RunStatus}
    triggers = ", ".join(effect.triggers)
    if not effect.held_after:
        what = [f"{name} goes on"]
        if count := counts[RunStatus.PAUSED]:
            what.append(f"{count} paused runs resume in order")
        if triggers:
            what.append(f"back as they were: {triggers}")
        return "; ".join(what)
    what = [f"{name} pauses"]
    if count := counts[RunStatus.PROCESSING]:
        still = " if they still need it" if target.kind is TargetKind.SERVICE else ""
        what.append(f"{count} processing runs stop after the record in hand{still}")
    pending = counts[RunStatus.PENDING]
    if effect.queue_waits and pending:
        what.append(f"{pending} pending runs wait in the queue")
    elif not effect.queue_waits:
        why = "a pool can't tell runs apart" if effect.run else "no op has a pool for it"
        what.append(f"what is queued starts, and pauses at its first record ({why})")
    if triggers:
        what.append(f"stopped: {triggers}")
    return "; ".join(what)
