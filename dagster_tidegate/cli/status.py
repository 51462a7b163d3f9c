"""`tidegate status`: what is paused, since when, and why."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import click
import sqlalchemy as sa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dagster_tidegate import holds as covers
from dagster_tidegate.circuit import Circuit
from dagster_tidegate.cli import target as targets
from dagster_tidegate.holds import Hold
from dagster_tidegate.pools import needs
from dagster_tidegate.statuses import BreakerState, RunStatus, campaign_status
from dagster_tidegate.store import breakers, campaigns, heartbeats, holds, runs
from dagster_tidegate.store.campaigns import CampaignShape
from dagster_tidegate.store.heartbeats import Heartbeat

STALE_AFTER = timedelta(seconds=60)
COLOURS = {"closed": "green", "half_open": "yellow", "open": "red", "paused": "yellow"}
COLOURS |= {"failed": "red", "running": "green", "completed": "green"}


@dataclass(frozen=True)
class Status:
    """What the store says of the fleet at a moment, UTC."""

    now: datetime
    services: list[Circuit]
    campaigns: list[tuple[CampaignShape, dict[RunStatus, int], list[Hold]]]
    holds: list[Hold]
    heartbeats: list[Heartbeat]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--url", help="SQLAlchemy URL of the store, if not the default.")
def status(as_json: bool, url: str | None) -> None:
    """Show what is paused, since when, and why."""
    store = targets.open_store(url)
    with store.read() as conn:
        found = read(conn, store.now(conn))
    if as_json:
        click.echo(json.dumps(as_dict(found), indent=2))
    else:
        show(found, Console())


def read(conn: sa.Connection, now: datetime) -> Status:
    """Read the status of everything.

    Args:
        conn: A connection of the store.
        now: The database's time, UTC.
    """
    services = breakers.read(conn)
    live = list(holds.live(conn, now))
    counts = runs.counts(conn)
    listed = []
    for shape in campaigns.read(conn):
        needed = {name for pool in shape.pools for name in needs(pool, services).services}
        covering = covers.covering(live, now, services=needed, campaign=shape.name)
        listed.append((shape, dict(counts.get(shape.name, {})), covering))
    return Status(now, list(services.values()), listed, live, list(heartbeats.read(conn)))


def as_dict(found: Status) -> dict[str, Any]:
    """Return the status as JSON can hold it; times are ISO 8601."""
    return {
        "at": found.now.isoformat(),
        "services": [
            {
                "name": service.name,
                "state": service.state,
                "since": service.changed_at.isoformat(),
                "reason": service.reason,
                "not_probed_before": _iso(service.open_until),
            }
            for service in found.services
        ],
        "campaigns": [
            {
                "name": shape.name,
                "location": shape.location,
                "status": campaign_status(counts, held=bool(covering)),
                "runs": {status.value: counts.get(status, 0) for status in RunStatus},
                "holds": [hold.id for hold in covering],
            }
            for shape, counts, covering in found.campaigns
        ],
        "holds": [
            {
                "id": hold.id,
                "target_kind": hold.target.kind,
                "target_name": hold.target.name,
                "source": hold.source,
                "reason": hold.reason,
                "actor": hold.actor,
                "placed_at": hold.placed_at.isoformat(),
                "expires_at": _iso(hold.expires_at),
            }
            for hold in found.holds
        ],
        "gate": [
            {
                "location": beat.location,
                "part": beat.part,
                "at": beat.at.isoformat(),
                "stale": found.now - beat.at > STALE_AFTER,
                "summary": beat.summary,
            }
            for beat in found.heartbeats
        ],
    }


def show(found: Status, console: Console) -> None:
    """Print the status as tables."""
    services = Table("service", "state", "for", "why", "probed", title="Services")
    for service in found.services:
        due = service.open_until
        waits = service.state is BreakerState.OPEN and due is not None
        services.add_row(
            service.name,
            _coloured(service.state),
            _length(found.now - service.changed_at),
            escape(service.reason or ""),
            f"in {_length(max(due - found.now, timedelta(0)))}" if waits and due else "",
        )
    console.print(services)
    listed = Table("campaign", "status", "runs", "why", title="Campaigns")
    for shape, counts, covering in found.campaigns:
        listed.add_row(
            shape.name,
            _coloured(campaign_status(counts, held=bool(covering))),
            ", ".join(f"{counts[status]} {status}" for status in RunStatus if status in counts),
            escape(covers.describe(covering)) if covering else "",
        )
    console.print(listed)
    if found.holds:
        live = Table("hold on", "by", "for", "until", "reason", title="Holds")
        for hold in found.holds:
            live.add_row(
                escape(str(hold.target)),
                escape(hold.actor),
                _length(found.now - hold.placed_at),
                "released" if hold.expires_at is None else f"{hold.expires_at:%F %T} UTC",
                escape(hold.reason),
            )
        console.print(live)
    if not found.heartbeats:
        console.print("[yellow]The gate has not run yet: are its sensors on, and the daemon?")
    for beat in found.heartbeats:
        if found.now - beat.at > STALE_AFTER:
            console.print(
                f"[red]The gate is stale: its {beat.part} sensor in {beat.location} last finished "
                f"{_length(found.now - beat.at)} ago. Is the daemon running?"
            )


def _coloured(value: str) -> str:
    colour = COLOURS.get(value)
    return value if colour is None else f"[{colour}]{value}[/]"


def _length(time: timedelta) -> str:
    seconds = int(time.total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    minutes = seconds // 60
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()
