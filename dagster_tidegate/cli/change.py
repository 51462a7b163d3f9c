"""How `hold` and `release` say what a change of the holds does."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import click

from dagster_tidegate import holds as covers
from dagster_tidegate.cli import output
from dagster_tidegate.control.effects import Effect
from dagster_tidegate.control.operations import Change
from dagster_tidegate.control.why import ObstacleKind, why
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store.database import Store
from dagster_tidegate.text import did_you_mean

MAX_PAUSED = 10
"""More campaigns than this that stay paused are counted, not listed."""


def tell_effects(found: Sequence[Effect], target: Target) -> None:
    """Print what a change would do to the campaigns."""
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


def tell_paused(found: Sequence[Effect], target: Target) -> None:
    """Print what stays paused after a release, and why."""
    paused = [effect for effect in found if effect.held_after]
    if len(paused) > MAX_PAUSED:
        click.echo(f"{len(paused)} campaigns stay paused: see 'tidegate status'")
        return
    for effect in paused:
        click.echo(output.text(_sentence(effect, target)).plain)


def notes(change: Change[Any], store: Store, target: Target) -> None:
    """Say on stderr what one should know of a change: what may be a typo, and who heeds no hold."""
    found = [*_unknown(change, store, target)]
    found += [
        obstacle.text
        for obstacle in why(change.after, target, change.run).obstacles
        if obstacle.kind in (ObstacleKind.KILL_SWITCH, ObstacleKind.GATE_STALE)
    ]
    for text in found:
        click.echo(output.text(f"note: {text}").plain, err=True)


def _unknown(change: Change[Any], store: Store, target: Target) -> Iterator[str]:
    seen = change.before
    name, _, partition = target.name.partition("/")
    if target.kind is TargetKind.EVERYTHING:
        return
    is_service = target.kind is TargetKind.SERVICE
    name, known = (target.name, set(seen.circuits)) if is_service else (name, set(seen.campaigns))
    if name not in known:
        thing = "service" if is_service else "campaign"
        hint = did_you_mean(name, known, f"it knows {', '.join(sorted(known)) or 'none'}")
        yield f"the store knows no {thing} {name!r}; {hint}"
    elif target.kind is TargetKind.CAMPAIGN_RUN and change.run is None:
        with store.read() as conn:
            there = runs.newest_partitions(conn, name)
        hint = did_you_mean(partition, there, "a new one is held from its start")
        yield f"campaign {name} has no run {partition!r} yet; {hint}"


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
