"""`tidegate hold` and `tidegate release`."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli import options as o
from dagster_tidegate.cli.connections import explained, open_store
from dagster_tidegate.control import operations
from dagster_tidegate.control.effects import in_words
from dagster_tidegate.control.models import EffectOut, Held, HoldOut, Released
from dagster_tidegate.control.operations import Change
from dagster_tidegate.control.why import ObstacleKind, why
from dagster_tidegate.holds import EVERYTHING, Hold, Target, TargetKind
from dagster_tidegate.store import runs
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.holds import NotYourHoldError
from dagster_tidegate.text import did_you_mean

MAX_PAUSED = 10
"""If more campaigns than this stay paused, they are counted instead of listed."""


@click.command()
@o.target_arguments
@o.reason_option
@o.ending_options("Release it automatically")
@o.change_options
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

    If you already hold it, the reason and the expiry are updated.
    """
    o.require_one_ending(length, until)
    target = o.target(kind, name)
    store = open_store(url)
    with explained(ValueError), operations.changing(store, target, dry_run=dry_run) as change:
        placed = operations.hold(
            change.conn,
            change.now,
            target,
            reason=reason,
            actor=actor,
            expires_at=o.ending(change.now, length, until),
        )
    show_notes(change, store, target)
    if as_json:
        made = HoldOut.model_validate(placed)
        console.print_json(Held(dry_run=dry_run, hold=made, campaigns=effects_of(change)))
        return
    is_held = "would be held" if dry_run else "is held"
    console.say(f"{target} {is_held} by {placed.actor} {_until(placed)}: {placed.reason}")
    former = next((hold for hold in change.before.holds if hold.id == placed.id), None)
    if former == placed:
        console.say("nothing changed: this hold was already in place")
    elif former is not None:
        console.say(f"it replaces your hold {_until(former)}: {former.reason}")
    if dry_run:
        show_effects(change, target)


@click.command()
@o.target_arguments
@click.option(
    "--force", is_flag=True, help="Also release the breaker's own hold and close the breaker."
)
@o.change_options
def release(
    kind: str,
    name: str | None,
    actor: str,
    url: str | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Release operators' holds on a service, a campaign, a run or everything."""
    target = o.target(kind, name)
    if force and target.kind is not TargetKind.SERVICE:
        raise click.UsageError("--force closes a breaker: use it with a service")
    store = open_store(url)
    try:
        with explained(), operations.changing(store, target, dry_run=dry_run) as change:
            released = operations.release(change.conn, change.now, target, actor=actor, force=force)
    except NotYourHoldError as error:
        raise console.failure(str(error).replace("use force", "use --force")) from error
    show_notes(change, store, target)
    if as_json:
        console.print_json(
            Released(
                dry_run=dry_run,
                released=[HoldOut.model_validate(hold) for hold in released],
                still_held_by=[
                    HoldOut.model_validate(reason.hold)
                    for reason in why(change.after, target, change.run).reasons
                ],
                campaigns=effects_of(change),
            )
        )
        return
    verb = "would be released" if dry_run else "released"
    for held in released:
        console.say(f"{verb}: {target}, held by {held.actor} ({held.reason})")
    if not released:
        everything = target == EVERYTHING
        console.say(
            "there is no hold on everything" if everything else f"no operator holds {target}"
        )
    if dry_run and released:
        show_effects(change, target)
    else:
        _show_paused(change, target)


def effects_of(change: Change) -> list[EffectOut]:
    """Return the effects of a change in the form of `--json`."""
    return [EffectOut.model_validate(effect) for effect in change.effects]


def show_effects(change: Change, target: Target) -> None:
    """Print the effects of a change."""
    if not change.effects:
        console.say("no known campaign is affected")
    for effect in change.effects:
        console.say(in_words(effect, target, change.after.breakers))


def show_notes(change: Change, store: Store, target: Target) -> None:
    """Warn on stderr of a name that may be misspelt, and of a gate that does not act on holds."""
    obstacles = why(change.after, target, change.run).obstacles
    kinds = (ObstacleKind.KILL_SWITCH, ObstacleKind.GATE_STALE)
    for note in (
        *_unknown(change, store, target),
        *(each.text for each in obstacles if each.kind in kinds),
    ):
        console.say(f"note: {note}", err=True)


def _unknown(change: Change, store: Store, target: Target) -> Iterator[str]:
    if target.kind is TargetKind.EVERYTHING:
        return
    if target.kind is TargetKind.SERVICE:
        thing, name, partition, names = "service", target.name, "", set(change.before.breakers)
    else:
        name, _, partition = target.name.partition("/")
        thing, names = "campaign", set(change.before.campaigns)
    if name not in names:
        hint = did_you_mean(name, names, f"known: {', '.join(sorted(names)) or 'none'}")
        yield f"no {thing} named {name!r} is known yet; {hint}"
    elif partition and change.run is None:
        with store.read() as conn:
            partitions = runs.newest_partitions(conn, name)
        hint = did_you_mean(partition, partitions, "a new run will be held from its start")
        yield f"campaign {name} has no run {partition!r} yet; {hint}"


def _show_paused(change: Change, target: Target) -> None:
    """Print what stays paused after a release, and why."""
    paused = [effect for effect in change.effects if effect.held_after]
    if len(paused) > MAX_PAUSED:
        console.say(f"{len(paused)} campaigns stay paused: see 'tidegate status'")
        return
    for effect in paused:
        console.say(in_words(effect, target, change.after.breakers))


def _until(hold: Hold) -> str:
    return f"until {console.moment(hold.expires_at) or 'it is released'}"
