"""`tidegate status`: what is paused, since when, and why."""

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.cli import console
from dagster_tidegate.cli.connections import open_store, reading
from dagster_tidegate.cli.options import json_option, url_option
from dagster_tidegate.cli.tables import FirstFit
from dagster_tidegate.control.leftovers import leftovers
from dagster_tidegate.control.models import (
    AlertHealth,
    CampaignDetails,
    GateHealth,
    HoldOut,
    ServiceOut,
    WindowOut,
)
from dagster_tidegate.control.service_state import ServiceState, service_state
from dagster_tidegate.control.situation import CampaignSituation, Situation
from dagster_tidegate.control.why import ObstacleKind, why
from dagster_tidegate.holds import Hold, HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import alerts
from dagster_tidegate.store.alerts import AlertCounts
from dagster_tidegate.store.database import Store
from dagster_tidegate.text import length, plural, sentence, utc


@click.command()
@json_option
@click.option(
    "--watch", is_flag=True, help="Refresh until Ctrl-C; with --json, one line per refresh."
)
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between refreshes, with --watch.",
)
@url_option
def status(as_json: bool, watch: bool, interval_s: float, url: str | None) -> None:
    """Show what is paused, since when, and why."""
    store = open_store(url)
    if watch:
        _watch(store, interval_s, as_json=as_json)
        return
    situation, counts = _read(store)
    if as_json:
        console.print_json(as_dict(situation, counts))
    else:
        console.console().print(render(situation, counts))


def _read(store: Store) -> tuple[Situation, AlertCounts]:
    with reading(store) as (conn, situation):
        return situation, alerts.counts(conn, situation.now)


def as_dict(situation: Situation, counts: AlertCounts) -> dict[str, Any]:
    """Return the output of `--json`."""
    gate = GateHealth.of(situation)
    return {
        "at": situation.now,
        "enabled": situation.enabled,
        "services": [ServiceOut.of(situation, name) for name in sorted(situation.services)],
        "campaigns": [
            CampaignDetails.all_of(situation, campaign) for campaign in situation.campaigns.values()
        ],
        "holds": [HoldOut.model_validate(hold) for hold in situation.holds],
        "windows": [WindowOut.model_validate(window) for window in situation.windows],
        "gate": gate.parts,
        "gate_stale": gate.stale,
        "leftovers": [vars(leftover) for leftover in leftovers(situation)],
        "alerts": counts.by_status,
        "alerts_stale": AlertHealth.of(counts, situation.now).stale,
    }


def render(situation: Situation, counts: AlertCounts, *, short: bool = False) -> RenderableType:
    """Return the situation as tables, problems first.

    Args:
        short: Whether healthy things are only counted, and each row gets one line.
    """
    parts: list[RenderableType] = [*warnings(situation)]
    alerting = AlertHealth.of(counts, situation.now)
    if alerting.stale:
        line = f"{sentence(alerting.text)}. See 'tidegate alerts list'."
        parts.append(console.text(line, "red"))
    services = {name: service_state(situation, name) for name in sorted(situation.services)}
    closed = [name for name, state in services.items() if state.status == "closed"]
    others = [name for name in services if name not in closed]
    whys = {name: why_of(situation, name) for name in situation.campaigns}
    running = [name for name in whys if not (situation.campaigns[name].holds or whys[name])]
    paused = [name for name in whys if name not in running]
    if others or not short:
        listed = others if short else [*others, *closed]
        states = {name: services[name] for name in listed}
        parts.append(_services(states, situation, short=short))
    if situation.holds:
        parts.append(_holds(situation, short=short))
    parts += [
        console.text(window.announcement(situation.now), "yellow")
        for window in situation.windows
        if window.is_soon(situation.now)
    ]
    if paused or not short:
        listed = paused if short else [*paused, *running]
        parts.append(_campaigns({name: whys[name] for name in listed}, situation, short=short))
    if short:
        parts += [
            console.text(f"{len(names)} {what}: {', '.join(names)}", "green")
            for names, what in ((closed, "services closed"), (running, "campaigns not paused"))
            if names
        ]
    return Group(*parts)


def why_service(state: ServiceState, breaker: BreakerStatus | None) -> Text:
    """Return the reasons of the state of a service, and what repairs it."""
    until = f"until {utc(state.next_at)}: " if state.status == "throttled" and state.next_at else ""
    parts = [f"{until}{state.reason}"] if state.reason else []
    if breaker is not None and breaker.remedy:
        parts.append(f"once repaired: {breaker.remedy}")
    if state.status != "held":
        parts += [f"held by {hold.actor}: {hold.reason}" for hold in state.held_by]
    return console.text("; ".join(parts))


def ends(hold: Hold, breaker: BreakerStatus | None) -> str:
    """Return when a hold ends.

    Args:
        breaker: The breaker of its service, if it has one.
    """
    if hold.source is not HoldSource.BREAKER:
        return console.moment(hold.expires_at) or "on release"
    return "once repaired" if breaker is not None and breaker.is_denied else "on recovery"


def probe_in(due: datetime, now: datetime) -> str:
    """Return the time until a probe, or since it was due."""
    return f"in {length(due - now)}" if due > now else f"overdue by {length(now - due)}"


def _services(
    states: Mapping[str, ServiceState], situation: Situation, *, short: bool
) -> RenderableType:
    table = console.table("Services", "service", "state", "for", "why", "next probe", short=short)
    for name, state in states.items():
        probe = state.next_at if state.status in ("open", "throttled") else None
        table.add_row(
            name,
            console.status(state.status),
            length(situation.now - state.since) if state.since else "",
            why_service(state, situation.breakers.get(name)),
            probe_in(probe, situation.now) if probe else "",
        )
    return table


def _holds(situation: Situation, *, short: bool) -> RenderableType:
    table = console.table("Holds", "hold on", "by", "for", "ends", "reason", short=short)
    for hold in situation.holds:
        left = f"in {length(hold.expires_at - situation.now)}" if hold.expires_at else None
        table.add_row(
            hold.target,
            hold.actor,
            length(situation.now - hold.placed_at),
            (short and left) or ends(hold, situation.breakers.get(hold.target.name)),
            hold.reason,
        )
    return table


def _campaigns(whys: Mapping[str, str], situation: Situation, *, short: bool) -> RenderableType:
    table = console.table("Campaigns", "campaign", "status", "runs", "why", short=short)
    for name, reason in whys.items():
        campaign = situation.campaigns[name]
        table.add_row(name, console.status(campaign.status), run_counts(campaign), reason)
    return table


def warnings(situation: Situation) -> list[Text]:
    """Return the problems of the gate and what nothing clears by itself, a line each."""
    lines = []
    if not situation.enabled:
        line = "TIDEGATE_ENABLED is false here: processes with this setting ignore holds."
        lines.append(Text(line, "yellow"))
    if not situation.campaigns:
        line = (
            "There is no campaign: no op or asset has the pool of a service. See 'tidegate doctor'."
            if any(situation.ticks(beat.location) for beat in situation.heartbeats)
            else "No gate has registered its campaigns yet: check that the daemon and the gate's "
            "sensors are running. See 'tidegate doctor'."
        )
        lines.append(Text(line, "yellow"))
    for gate in situation.stale_gates():
        lines.append(console.text(f"{sentence(str(gate))}. See 'tidegate doctor'.", "red"))
    for leftover in leftovers(situation):
        line = f"{leftover.name} {leftover.what}. To clear it: {leftover.do}"
        lines.append(console.text(line, "red"))
    return lines


def why_of(situation: Situation, campaign: str) -> str:
    """Return why a campaign is paused or what else holds it back, or an empty string."""
    answer = why(situation, Target(TargetKind.CAMPAIGN, campaign))
    if answer.paused:
        return answer.summary.removeprefix("paused: ")
    of_all = (ObstacleKind.KILL_SWITCH, ObstacleKind.GATE_STALE)  # `warnings` has these
    return "; ".join(each.text for each in answer.obstacles if each.kind not in of_all)


def run_counts(campaign: CampaignSituation) -> Text:
    """Return the number of campaign runs of each status, and of their failed records."""
    runs = campaign.runs
    counts = ", ".join(f"{runs[status]} {status}" for status in RunStatus if runs.get(status))
    shown = console.text(counts)
    if campaign.failed_records:
        shown.append(f", {plural(campaign.failed_records, 'record')} failed", "red")
    return shown


def _watch(store: Store, interval_s: float, *, as_json: bool) -> None:
    terminal = Console(highlight=False)
    if as_json:
        _repeat(store, interval_s, lambda *read: console.print_json(as_dict(*read), indent=None))
    elif terminal.is_terminal:
        with Live(console=terminal, auto_refresh=False, screen=True) as live:

            def show(situation: Situation, counts: AlertCounts) -> None:
                note = Text(f"{utc(situation.now)}, every {interval_s:g} s; Ctrl-C to stop", "dim")
                renderings = [
                    Group(note, render(situation, counts, short=short)) for short in (False, True)
                ]
                live.update(FirstFit(renderings, instead="tidegate status"), refresh=True)

            def show_error(error: click.ClickException) -> None:
                live.update(Text(str(error), "red"), refresh=True)

            _repeat(store, interval_s, show, show_error)
    else:
        _repeat(store, interval_s, lambda *read: console.console().print(render(*read)))


def _repeat(
    store: Store,
    interval_s: float,
    show: Callable[[Situation, AlertCounts], object],
    show_error: Callable[[click.ClickException], object] = click.ClickException.show,
) -> None:
    """Show the situation until interrupted; if the store is unreachable, say so and retry."""
    try:
        while True:
            try:
                show(*_read(store))
            except click.ClickException as error:
                show_error(error)
            time.sleep(interval_s)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        return
