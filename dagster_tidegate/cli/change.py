"""How `hold` and `release` say what a change of the holds does."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from dagster_tidegate import holds as covers
from dagster_tidegate.cli import output
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.views.effects import Effect
from dagster_tidegate.views.situation import Situation
from dagster_tidegate.wording import did_you_mean


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
    hint = did_you_mean(name, known, f"it knows {', '.join(sorted(known)) or 'none'}")
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
