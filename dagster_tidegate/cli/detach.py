"""`tidegate detach`: the way out."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli import options as o
from dagster_tidegate.cli.connections import (
    explained,
    instance_of_environment,
    loaded,
    open_store,
    reading,
)
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.dagster_api.project import CodeOptions
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import events, heartbeats, runs
from dagster_tidegate.store.database import Connection, shown_url
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.text import did_you_mean, plural, shown

if TYPE_CHECKING:
    import dagster as dg

    from dagster_tidegate.gate.gate import Gate

MAX_QUEUED = 10_000
MAX_NAMES = 5


@dataclass(frozen=True, kw_only=True)
class Detached:
    """What was done, and what is left.

    Attributes:
        stopped: The gate's sensors that were stopped.
        changes: What was given back, or would be.
        problem: Why the gate's sensors could not be stopped, or None.
        queued: Dagster runs of campaigns in the queue.
        paused: Names of the paused campaign runs.
    """

    dry_run: bool
    stopped: list[str]
    changes: list[str]
    problem: str | None
    queued: int
    paused: list[str]
    holds: int
    store: str


@click.command()
@click.option("--location", type=o.NAME, help="Only the gate of this code location.")
@o.code_options
@o.yes_option
@o.change_options
def detach(
    location: str | None,
    code: CodeOptions,
    yes: bool,
    dry_run: bool,
    actor: str,
    as_json: bool,
    url: str | None,
) -> None:
    """Restore everything that the gate changed in Dagster, and stop the gate.

    Stops the gate's sensors, and restores pools, schedules and sensors. Runs, holds and the store
    are kept. To attach the gate again, start the gate's sensors.
    """
    store = open_store(url)
    with reading(store) as (_, situation):
        locations = _locations(situation, location)
    if not (yes or dry_run):
        names = ", ".join(sorted(locations)) or "every code location"
        click.confirm(shown(f"Detach the gate of {names}?"), abort=True)
    from dagster_tidegate.dagster_api.instance import Dagster
    from dagster_tidegate.gate.gate import Gate

    with instance_of_environment() as instance:
        gate = Gate(Dagster(instance), store, {}, location=location or "", enabled=False)
        stopped, problem = ([], None) if dry_run else _stop(instance, code, location, locations)
        changes = _dry_changes(gate) if dry_run else _give_back(gate, locations, actor)
        with reading(store) as (conn, situation):
            queued, paused = _left(conn, situation, gate, locations)
            done = Detached(
                dry_run=dry_run,
                stopped=stopped,
                changes=changes,
                problem=problem,
                queued=queued,
                paused=paused,
                holds=len(situation.holds),
                store=shown_url(store.url),
            )
    if as_json:
        console.print_json(done)
    else:
        _show(done)
    if problem is not None:
        raise click.exceptions.Exit(1)


def _locations(situation: Situation, location: str | None) -> set[str]:
    known = {beat.location for beat in situation.heartbeats}
    known |= {each.spec.location for each in situation.campaigns.values()}
    known |= {takeover.location for takeover in situation.takeovers} - {""}
    if location is None:
        return known
    if location not in known:
        hint = did_you_mean(location, known, "see 'tidegate campaigns --json'")
        raise console.failure(f"no code location is named {location!r}; {hint}")
    return {location}


def _stop(
    instance: "dg.DagsterInstance",
    code: CodeOptions,
    location: str | None,
    locations: Collection[str],
) -> tuple[list[str], str | None]:
    """Stop the gate's sensors; return which, and why some can't be."""
    try:
        with loaded(code, instance=instance, known=locations) as workspace:
            return workspace.stop_gate(location), None
    except click.ClickException as error:
        return [], (
            f"the gate's sensors could not be stopped: {error.message}. Stop them on the page "
            "Automation, or remove them from the code; until then they stop again what is held"
        )


def _dry_changes(gate: "Gate") -> list[str]:
    from dagster_tidegate.gate.detach import takeovers_of

    return [f"{each} {each.set_to} -> {each.former}" for each in takeovers_of(gate)]


def _give_back(gate: "Gate", locations: Collection[str], actor: str) -> list[str]:
    from dagster_tidegate.gate.detach import give_back, takeovers_of
    from dagster_tidegate.store.gate_lock import GateBusyError

    try:
        with explained():
            report = give_back(gate)
    except GateBusyError as error:
        raise console.failure(f"{error}: try again in a minute") from error
    with explained(), gate.store.begin() as conn:
        now = gate.store.now(conn)
        for name in locations:
            heartbeats.detach(conn, name)
            events.write(
                conn, now, kind=EventKind.LOCATION, name=name, to_status="detached", actor=actor
            )
    left = [str(each) for each in takeovers_of(gate)]
    if left or report.errors:
        why = "; ".join(str(error) for error in report.errors) or "a gate has changed them again"
        raise console.failure(
            f"not restored: {', '.join(left)} ({why}); restored: "
            f"{', '.join(report.changes) or 'nothing'}. Run the command again"
        )
    return report.changes


def _left(
    conn: Connection, situation: Situation, gate: "Gate", locations: Collection[str]
) -> tuple[int, list[str]]:
    """Return how many runs of campaigns are queued, and the names of the paused campaign runs."""
    from dagster_tidegate.dagster_api.lineage import campaign_of

    names = {name for name, each in situation.campaigns.items() if each.spec.location in locations}
    paused = runs.with_status(conn, RunStatus.PAUSED, campaigns=names) if names else []
    queued = [run for run in gate.dagster.queued(MAX_QUEUED) if campaign_of(run) in names]
    return len(queued), [run.name for run in paused]


def _show(done: Detached) -> None:
    for sensor in done.stopped:
        console.say(f"stopped {sensor}")
    for change in done.changes:
        console.say(f"{'would restore' if done.dry_run else 'restored'} {change}")
    if not done.changes:
        console.say("there is nothing to restore")
    console.say("left unchanged:")
    if done.queued:
        console.say(f"- {plural(done.queued, 'queued run')}: Dagster starts them now")
    if done.paused:
        names = ", ".join(done.paused[:MAX_NAMES]) + (
            ", ..." if len(done.paused) > MAX_NAMES else ""
        )
        console.say(
            f"- {plural(len(done.paused), 'paused campaign run')} ({names}): they will not "
            "resume; re-execute them in Dagster, or attach the gate again"
        )
    if done.holds:
        console.say(
            f"- {plural(done.holds, 'hold')}: they stop record loops, see 'tidegate status'"
        )
    console.say(f"- the store {done.store}: delete it when you no longer need its history")
    if done.stopped:
        console.say("to attach the gate again, start its sensors (page Automation)")
    if done.problem is not None:
        console.say(done.problem, err=True)
