"""`tidegate status`: what is paused, since when, and why."""

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from dagster_tidegate.cli import output
from dagster_tidegate.cli.overview import ServiceView, ends, probed
from dagster_tidegate.cli.reading import open_store, reading, url_option
from dagster_tidegate.cli.window import Window
from dagster_tidegate.control.models import AlertHealth, GateHealth, HoldOut, ServiceOut
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.why import ObstacleKind, why
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import alerts
from dagster_tidegate.store.alerts import AlertCounts
from dagster_tidegate.store.database import Store
from dagster_tidegate.text import length, utc


@click.command()
@output.json_option
@click.option("--watch", is_flag=True, help="Show it anew until Ctrl-C; JSON is one line each.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often, with --watch.",
)
@url_option
def status(as_json: bool, watch: bool, interval_s: float, url: str | None) -> None:
    """Show what is paused, since when, and why."""
    store = open_store(url)
    if watch:
        _watch(store, interval_s, as_json=as_json)
        return
    seen, told = _read(store)
    if as_json:
        output.print_json(as_dict(seen, told))
    else:
        output.console().print(render(seen, told))


def _read(store: Store) -> tuple[Situation, AlertCounts]:
    with reading(store) as (conn, seen):
        return seen, alerts.counts(conn, seen.now)


def as_dict(seen: Situation, told: AlertCounts) -> dict[str, Any]:
    """Return the situation, and how people are told of it, as JSON shows them."""
    gate = GateHealth.of(seen)
    return {
        "at": seen.now,
        "enabled": seen.enabled,
        "services": [ServiceOut.of(seen, name) for name in sorted(seen.services)],
        "campaigns": [
            {
                "name": name,
                "location": campaign.spec.location,
                "status": campaign.status,
                "runs": {status.value: campaign.runs.get(status, 0) for status in RunStatus},
                "holds": [hold.id for hold in campaign.holds],
                "why": why_of(seen, name),
            }
            for name, campaign in seen.campaigns.items()
        ],
        "holds": [HoldOut.model_validate(hold) for hold in seen.holds],
        "gate": gate.parts,
        "gate_stale": gate.stale,
        "alerts": {status.value: count for status, count in told.by_status.items()},
        "alerts_stale": AlertHealth.of(told, seen.now).stale,
    }


def render(seen: Situation, told: AlertCounts, *, short: bool = False) -> RenderableType:
    """Return the situation as tables, what is wrong first.

    Args:
        seen: The situation.
        told: How many alerts there are.
        short: Whether what is well is only counted, and each row has one line.
    """
    parts: list[RenderableType] = [*warnings(seen)]
    telling = AlertHealth.of(told, seen.now)
    if telling.stale:
        sentence = f"{telling.text[0].upper()}{telling.text[1:]}. See 'tidegate alerts list'."
        parts.append(output.text(sentence, "red"))
    services = {name: ServiceView(seen, name) for name in sorted(seen.services)}
    closed = [name for name, view in services.items() if view.well]
    others = [name for name in services if name not in closed]
    whys = {name: why_of(seen, name) for name in seen.campaigns}
    going = [
        name for name, campaign in seen.campaigns.items() if not (campaign.holds or whys[name])
    ]
    paused = [name for name in whys if name not in going]
    if others or not short:
        listed = others if short else [*others, *closed]
        parts.append(_services({name: services[name] for name in listed}, seen.now, short=short))
    if seen.holds:
        parts.append(_holds(seen, short=short))
    if paused or not short:
        listed = paused if short else [*paused, *going]
        parts.append(_campaigns({name: whys[name] for name in listed}, seen, short=short))
    if short:
        parts += [
            output.text(f"{len(names)} {what}: {', '.join(names)}", "green")
            for names, what in ((closed, "services closed"), (going, "campaigns not paused"))
            if names
        ]
    return Group(*parts)


def _services(views: Mapping[str, ServiceView], now: datetime, *, short: bool) -> RenderableType:
    table = output.table("Services", "service", "state", "for", "why", "probed", short=short)
    for name, view in views.items():
        table.add_row(
            output.text(name),
            output.status(view.state),
            length(now - view.since) if view.since else "",
            view.why(),
            probed(view.due, now) if view.due else "",
        )
    return table


def _holds(seen: Situation, *, short: bool) -> RenderableType:
    table = output.table("Holds", "hold on", "by", "for", "until", "reason", short=short)
    for hold in seen.holds:
        until = f"in {length(hold.expires_at - seen.now)}" if short and hold.expires_at else None
        table.add_row(
            output.text(hold.target),
            output.text(hold.actor),
            length(seen.now - hold.placed_at),
            until or ends(hold),
            output.text(hold.reason),
        )
    return table


def _campaigns(whys: Mapping[str, str], seen: Situation, *, short: bool) -> RenderableType:
    table = output.table("Campaigns", "campaign", "status", "runs", "why", short=short)
    for name, why_paused in whys.items():
        campaign = seen.campaigns[name]
        table.add_row(
            output.text(name),
            output.status(campaign.status),
            run_counts(campaign.runs),
            output.text(why_paused),
        )
    return table


def warnings(seen: Situation) -> list[Text]:
    """Return what is wrong with the gate, a line each."""
    found = []
    if not seen.enabled:
        found.append(
            Text(
                "TIDEGATE_ENABLED is false here: processes that have it so heed no hold.", "yellow"
            )
        )
    if not seen.campaigns:
        found.append(
            Text(
                "No gate has told of its campaigns yet: are its sensors on, and the daemon? "
                "See 'tidegate doctor'.",
                "yellow",
            )
        )
    for gate in seen.stale_gates():
        sentence = str(gate)
        found.append(
            output.text(f"{sentence[0].upper()}{sentence[1:]}. See 'tidegate doctor'.", "red")
        )
    return found


def why_of(seen: Situation, campaign: str) -> str:
    """Return why a campaign is paused, or what else holds it back; empty where nothing does."""
    answer = why(seen, Target(TargetKind.CAMPAIGN, campaign))
    if answer.paused:
        return answer.summary.removeprefix("paused: ")
    of_all = (ObstacleKind.KILL_SWITCH, ObstacleKind.GATE_STALE)  # `warnings` has these
    return "; ".join(each.text for each in answer.obstacles if each.kind not in of_all)


def run_counts(runs: Any) -> str:
    """Return how many campaign runs have each status, for people."""
    return ", ".join(f"{runs[status]} {status}" for status in RunStatus if runs.get(status))


def _watch(store: Store, interval_s: float, *, as_json: bool) -> None:
    console = Console(highlight=False)
    if as_json:
        _repeat(store, interval_s, lambda *read: output.print_json(as_dict(*read), indent=None))
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False, screen=True) as live:

            def show(seen: Situation, told: AlertCounts) -> None:
                note = Text(f"{utc(seen.now)}, every {interval_s:g} s; Ctrl-C ends", "dim")
                tellings = [Group(note, render(seen, told, short=short)) for short in (False, True)]
                live.update(Window(tellings, instead="tidegate status"), refresh=True)

            _repeat(
                store,
                interval_s,
                show,
                lambda error: live.update(Text(str(error), "red"), refresh=True),
            )
    else:
        _repeat(store, interval_s, lambda *read: output.console().print(render(*read)))


def _repeat(
    store: Store,
    interval_s: float,
    show: Callable[[Situation, AlertCounts], object],
    show_error: Callable[[click.ClickException], object] = lambda error: click.echo(
        f"Error: {error.message}", err=True
    ),
) -> None:
    """Show the situation again and again. A store that is away is told, and waited for."""
    try:
        while True:
            try:
                show(*_read(store))
            except click.ClickException as error:
                show_error(error)
            time.sleep(interval_s)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:  # who read it has read enough
        return
