"""What the store says of the whole fleet at a moment: where every surface begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dagster_tidegate import holds as covers
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.holds import Hold, Target, TargetKind
from dagster_tidegate.settings import GeneralSettings, load
from dagster_tidegate.statuses import CampaignStatus, RunStatus, campaign_status
from dagster_tidegate.store import (
    breakers,
    campaigns,
    heartbeats,
    holds,
    runs,
    service_stats,
    takeovers,
)
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.heartbeats import PARTS, Heartbeat
from dagster_tidegate.store.takeovers import Takeover
from dagster_tidegate.text import utc

STALE_AFTER = timedelta(seconds=60)
"""A part of the gate that has not finished its work for so long is stale."""


@dataclass(frozen=True)
class CampaignSituation:
    """A campaign at a moment.

    Attributes:
        spec: What it is made of.
        services: The services that its ops need.
        runs: How many campaign runs have each status.
        holds: The live holds that cover it, the oldest first.
    """

    spec: CampaignSpec
    services: frozenset[str]
    runs: Mapping[RunStatus, int]
    holds: Sequence[Hold]

    @property
    def status(self) -> CampaignStatus:
        """Its status."""
        return campaign_status(self.runs, held=bool(self.holds))


@dataclass(frozen=True)
class StaleGate:
    """The gate of a code location, where parts of it do not do their work.

    Attributes:
        location: The code location.
        parts: Which of `heartbeats.PARTS`.
        last: When the first of them to fall silent last finished its work (UTC), or None if one
            of them never did.
    """

    location: str
    parts: tuple[str, ...]
    last: datetime | None

    def __str__(self) -> str:
        parts = ", ".join(self.parts)
        since = f"at {utc(self.last)}" if self.last else "never, one of them"
        return f"the gate of {self.location} is stale: its sensors {parts} last finished {since}"


@dataclass(frozen=True)
class Situation:
    """The fleet at a moment. Times are UTC.

    Attributes:
        now: The database's time.
        enabled: Whether Tidegate is switched on where this was read (`TIDEGATE_ENABLED`).
        circuits: The breaker of each service, by name.
        trials: How many trial calls of a service are under way, where there are any.
        campaigns: The campaigns, by name.
        holds: The live holds, the oldest first.
        takeovers: What the gate has changed in Dagster and not given back.
        heartbeats: When each part of the gate last finished its work.
    """

    now: datetime
    enabled: bool
    circuits: Mapping[str, BreakerStatus]
    trials: Mapping[str, int]
    campaigns: Mapping[str, CampaignSituation]
    holds: Sequence[Hold]
    takeovers: Sequence[Takeover]
    heartbeats: Sequence[Heartbeat]

    @property
    def services(self) -> frozenset[str]:
        """All services that anybody knows: with a breaker, or with a hold on them."""
        held = {h.target.name for h in self.holds if h.target.kind is TargetKind.SERVICE}
        return frozenset(self.circuits) | held

    def stale_gates(self) -> list[StaleGate]:
        """Return the gates of code locations with campaigns of which a part is stale."""
        beats = {(beat.location, beat.part): beat.at for beat in self.heartbeats}
        found = []
        for location in sorted({each.spec.location for each in self.campaigns.values()}):
            last = {part: beats.get((location, part)) for part in PARTS}
            parts = tuple(part for part in PARTS if self.stale(last[part]))
            if parts:
                known = [beat for part in parts if (beat := last[part]) is not None]
                oldest = min(known) if len(known) == len(parts) else None
                found.append(StaleGate(location, parts, oldest))
        return found

    def stale(self, beat: datetime | None) -> bool:
        """Return whether a part of the gate with this heartbeat is stale."""
        return beat is None or self.now - beat > STALE_AFTER


def read(conn: Connection, now: datetime) -> Situation:
    """Read the situation of everything.

    Args:
        conn: A connection of the store.
        now: The database's time, UTC.
    """
    circuits = breakers.read(conn)
    live = holds.live(conn, now)
    known = {*circuits, *(h.target.name for h in live if h.target.kind is TargetKind.SERVICE)}
    counts = runs.counts(conn)
    by_target: dict[Target, list[Hold]] = {}  # each campaign looks at its own alone
    for hold in live:
        by_target.setdefault(hold.target, []).append(hold)
    found = {}
    for spec in campaigns.read(conn):
        needed = spec.services(known)
        targets = covers.targets_of(services=needed, campaign=spec.name)
        mine = [hold for target in targets for hold in by_target.get(target, ())]
        found[spec.name] = CampaignSituation(
            spec,
            needed,
            counts.get(spec.name, {}),
            covers.covering(mine, now, services=needed, campaign=spec.name),
        )
    return Situation(
        now=now,
        enabled=load(GeneralSettings).enabled,
        circuits=circuits,
        trials=service_stats.trials(conn, now),
        campaigns=found,
        holds=live,
        takeovers=takeovers.live(conn),
        heartbeats=heartbeats.read(conn),
    )
