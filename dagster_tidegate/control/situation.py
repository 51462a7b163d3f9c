"""A snapshot of the fleet, read from the store."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.holds import (
    Hold,
    Target,
    TargetKind,
    covering,
    held_services,
    targets_of,
)
from dagster_tidegate.pools import Adopted, merged, whole_of
from dagster_tidegate.settings import GeneralSettings, load
from dagster_tidegate.statuses import CampaignStatus, RunStatus, campaign_status
from dagster_tidegate.store import (
    breakers,
    budgets,
    campaign_stats,
    campaigns,
    heartbeats,
    holds,
    runs,
    service_stats,
    takeovers,
    windows,
)
from dagster_tidegate.store.budgets import BudgetUsage
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.heartbeats import DETACHED, PARTS, PAUSE, Heartbeat
from dagster_tidegate.store.takeovers import Takeover
from dagster_tidegate.store.windows import PlannedWindow
from dagster_tidegate.text import utc

STALE_AFTER = timedelta(seconds=60)
"""A sensor of the gate is stale if it has not completed a tick for this long."""


@dataclass(frozen=True)
class CampaignSituation:
    """A campaign in a snapshot.

    Attributes:
        spec: Its job, pools and triggers.
        holds: The live holds that cover it, oldest first.
        failed_records: Number of records that failed, in all its runs.
    """

    spec: CampaignSpec
    services: frozenset[str]
    runs: Mapping[RunStatus, int]
    holds: Sequence[Hold]
    failed_records: int = 0

    @property
    def status(self) -> CampaignStatus:
        """Its status."""
        # A hold on a service covers some runs of a code location's assets; others continue.
        kinds = {hold.target.kind for hold in self.holds}
        if self.spec.is_of_assets:
            kinds -= {TargetKind.SERVICE}
        return campaign_status(self.runs, held=bool(kinds))


@dataclass(frozen=True)
class StaleGate:
    """The stale sensors of a code location's gate.

    Attributes:
        parts: Which of `heartbeats.PARTS` are stale.
        last: The oldest of their last completed ticks (UTC); None if one never completed a tick.
    """

    location: str
    parts: tuple[str, ...]
    last: datetime | None

    def __str__(self) -> str:
        return f"the gate of {self.location} is stale: {self.text}"

    @property
    def text(self) -> str:
        """Since when it has not worked."""
        parts = ", ".join(self.parts)
        when = f"has finished since {utc(self.last)}" if self.last else "has ever finished"
        return f"no tick of its sensors ({parts}) {when}"


@dataclass(frozen=True)
class Situation:
    """A snapshot of the fleet. Times are UTC.

    Attributes:
        enabled: `TIDEGATE_ENABLED` in the process that read it.
        trials: Number of trial calls in flight, by service.
        holds: The live holds, oldest first.
        takeovers: What the gate has changed in Dagster and not restored.
        heartbeats: The last completed tick of each sensor of a gate.
        undefined: Number of paused runs of each campaign that no code location defines.
        locations: The code locations with campaigns, where only some campaigns were read.
        windows: The maintenance windows that have not begun, the next one first.
        budgets: How much of the budget of each service is spent, where it has one.
    """

    now: datetime
    enabled: bool
    breakers: Mapping[str, BreakerStatus]
    trials: Mapping[str, int]
    campaigns: Mapping[str, CampaignSituation]
    holds: Sequence[Hold]
    takeovers: Sequence[Takeover]
    heartbeats: Sequence[Heartbeat]
    undefined: Mapping[str, int] = field(default_factory=dict)
    locations: Collection[str] | None = None
    windows: Sequence[PlannedWindow] = ()
    budgets: Mapping[str, BudgetUsage] = field(default_factory=dict)

    @property
    def detached(self) -> frozenset[str]:
        """The code locations whose gates were detached on purpose."""
        return frozenset(beat.location for beat in self.heartbeats if beat.summary == DETACHED)

    @property
    def adopted(self) -> Adopted:
        """The services that pools stand for whose names don't say it."""
        return merged(campaign.spec.adopted for campaign in self.campaigns.values())

    @property
    def services(self) -> frozenset[str]:
        """Names of the services that have a breaker or a hold."""
        return frozenset(self.breakers) | self.held_services

    @property
    def held_services(self) -> frozenset[str]:
        """Names of the services that have a hold."""
        return held_services(self.holds)

    @cached_property
    def campaigns_by_hold(self) -> Mapping[int, Sequence[CampaignSituation]]:
        """The campaigns that each hold covers as a whole, by the hold's id."""
        covered: dict[int, list[CampaignSituation]] = {}
        for campaign in self.campaigns.values():
            for hold in campaign.holds:
                covered.setdefault(hold.id, []).append(campaign)
        return covered

    def windows_of(self, service: str) -> list[PlannedWindow]:
        """Return the coming maintenance windows of a service, and of that which it is a part of."""
        names = (service, whole_of(service))
        return [window for window in self.windows if window.service in names]

    def would_pause(self, service: str) -> list[str]:
        """Return the campaigns that an open breaker would have paused, were it enforced."""
        breaker = self.breakers.get(service)
        if breaker is None or breaker.would_open_at is None:
            return []
        return [name for name, campaign in self.campaigns.items() if service in campaign.services]

    @cached_property
    def _beats(self) -> Mapping[tuple[str, str], datetime]:
        return {(beat.location, beat.part): beat.at for beat in self.heartbeats}

    def stale_gates(self) -> list[StaleGate]:
        """Return the gates, of code locations with campaigns, that have a stale sensor."""
        stale = []
        locations = self.locations
        if locations is None:
            locations = {each.spec.location for each in self.campaigns.values()}
        for location in sorted(set(locations) - self.detached):
            last = {part: self._beats.get((location, part)) for part in PARTS}
            parts = tuple(part for part in PARTS if self.stale(last[part]))
            if parts:
                ticks = [beat for part in parts if (beat := last[part]) is not None]
                oldest = min(ticks) if len(ticks) == len(parts) else None
                stale.append(StaleGate(location, parts, oldest))
        return stale

    def ticks(self, location: str) -> bool:
        """Return whether the pause sensor of a code location completes its ticks."""
        return not self.stale(self._beats.get((location, PAUSE)))

    def stale(self, beat: datetime | None) -> bool:
        """Return whether a sensor with this heartbeat is stale."""
        return beat is None or self.now - beat > STALE_AFTER


def read(conn: Connection, now: datetime, only: Collection[str] | None = None) -> Situation:
    """Read the situation.

    Args:
        only: The campaigns that matter, which is quick however many there are; None: all.
    """
    statuses = breakers.read(conn)
    live = holds.live(conn, now)
    held = held_services(live)
    services = {*statuses, *held}
    counts = runs.counts(conn, only)
    failed = campaign_stats.failed_records(conn, only)
    by_target: dict[Target, list[Hold]] = {}
    for hold in live:
        by_target.setdefault(hold.target, []).append(hold)
    by_name = {}
    for spec in campaigns.read(conn, only):
        needed = spec.services(services)
        targets = targets_of(services=needed, campaign=spec.name)
        mine = [hold for target in targets for hold in by_target.get(target, ())]
        by_name[spec.name] = CampaignSituation(
            spec,
            needed,
            counts.get(spec.name, {}),
            covering(mine, now, services=spec.blocked_by(held), campaign=spec.name),
            failed.get(spec.name, 0),
        )
    return Situation(
        now=now,
        enabled=load(GeneralSettings).enabled,
        breakers=statuses,
        trials=service_stats.trials(conn, now),
        campaigns=by_name,
        holds=live,
        takeovers=takeovers.live(conn),
        heartbeats=heartbeats.read(conn),
        undefined={
            name: paused
            for name, by_status in counts.items()
            if name not in by_name and (paused := by_status.get(RunStatus.PAUSED))
        },
        locations=None if only is None else campaigns.defined_at(conn).keys(),
        windows=[window for window in windows.read(conn) if window.starts_at > now],
        budgets=budgets.read(conn, now),
    )
