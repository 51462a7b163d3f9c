"""What the gate is to change in Dagster. Pure: what was observed goes in, actions come out.

The gate is level-triggered. It compares what Dagster looks like with what the live holds say it
should look like, and does not ask what happened in between. So a gate that died, or did not run
for a while, goes on with its next plan.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import dagster as dg

from dagster_tidegate.dagster_api.instance import TriggerState
from dagster_tidegate.holds import Hold, HoldSource, TargetKind, targets_of
from dagster_tidegate.pools import PoolNeeds, needs
from dagster_tidegate.store.campaigns import CampaignSpec, Trigger
from dagster_tidegate.store.missed_ticks import MissedTick
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.store.takeovers import (
    DECLARED_IN_CODE,
    DEFAULT,
    RUNNING,
    STOPPED,
    UNSET,
    Outcome,
    Takeover,
    TakeoverKind,
)

# The steps of a pool that no code location took, of services whose policy this one doesn't know.
UNKNOWN_INTERVAL_S = 30.0
# A pool that has no limit of its own ramps up to this, and then has none again.
TOP_OF_RAMP = 16


@dataclass(frozen=True)
class ServiceView:
    """What the gate needs to know of a service.

    Attributes:
        ramp_interval_s: How long it must be healthy between two steps of the ramp, in seconds;
            None where this gate does not know its policy.
        last_failure_at: When a call to it last failed (UTC), as far as known.
    """

    ramp_interval_s: float | None = None
    last_failure_at: datetime | None = None


@dataclass(frozen=True)
class Candidates:
    """The runs that could try a half open service.

    Attributes:
        waiting: Dagster runs that are its canary already, are in the queue or have left it, and
            have not ended.
        paused: Paused campaign runs whose Dagster runs have ended, in the order in which they are
            to try it.
        queued: Dagster runs in the queue, the oldest first.
    """

    waiting: Sequence[dg.DagsterRun]
    paused: Sequence[CampaignRun]
    queued: Sequence[dg.DagsterRun]

    @property
    def starving(self) -> bool:
        """Whether nothing is there to try it, so that schedules have to bring something."""
        return not self.waiting and not self.paused and not self.queued


@dataclass(frozen=True)
class Observed:
    """What a gate saw. Times are UTC.

    Attributes:
        now: When.
        location: The code location of the gate.
        holds: The live holds.
        services: All services that anybody knows, by name.
        campaigns: The campaigns of the code location; all, for a gate that has none.
        takeovers: The live takeovers.
        pools: Pools that have a limit: `default` or the number, by name.
        default_limit: The limit of pools that have none of their own, or None.
        newest_takeover: Id of the newest takeover of all times, from before Dagster was read.
        triggers: Stored states of schedules and sensors, by selector id.
        canaries: Services whose canary waits in the queue.
        in_progress: How many runs that have left the queue use a pool; of the pools that a
            canary waits for.
        candidates: The runs that could try each half open service that has no health probe.
        cursor: Up to when Dagster's run changes are known to the location; None where it has no
            heartbeat yet.
        paused: All paused campaign runs, in the order in which they resume; for who resumes.
        active: How many campaign runs of each campaign have an attempt and are to work or do.
        missed: The missed ticks that are yet to be launched.
    """

    now: datetime
    location: str
    holds: Sequence[Hold] = ()
    services: Mapping[str, ServiceView] = field(default_factory=dict)
    campaigns: Sequence[CampaignSpec] = ()
    takeovers: Sequence[Takeover] = ()
    pools: Mapping[str, str] = field(default_factory=dict)
    default_limit: int | None = None
    newest_takeover: int = 0
    triggers: Mapping[str, TriggerState] = field(default_factory=dict)
    canaries: Collection[str] = ()
    in_progress: Mapping[str, int] = field(default_factory=dict)
    candidates: Mapping[str, Candidates] = field(default_factory=dict)
    cursor: datetime | None = None
    paused: Sequence[CampaignRun] = ()
    active: Mapping[str, int] = field(default_factory=dict)
    missed: Sequence[MissedTick] = ()


@dataclass(frozen=True)
class Take:
    """Take a pool, schedule or sensor over."""

    kind: TakeoverKind
    name: str
    label: str
    campaign: str | None
    location: str
    former: str
    set_to: str
    running_since: datetime | None = None


@dataclass(frozen=True)
class Write:
    """Give something that was taken over another value, or note that it has it already.

    Attributes:
        takeover: What.
        found: The value that Dagster has.
        set_to: The value that it is to have.
        ramp_step_at: When the ramp took its latest step, or None outside a ramp.
        tightens: Whether less may run than before.
    """

    takeover: Takeover
    found: str
    set_to: str
    ramp_step_at: datetime | None
    tightens: bool


@dataclass(frozen=True)
class Leave:
    """Leave something to the person who changed it to `found`."""

    takeover: Takeover
    found: str


@dataclass(frozen=True)
class End:
    """Note that something is Dagster's own again."""

    takeover: Takeover
    outcome: Outcome


Action = Take | Write | Leave | End


class Cover:
    """Which services and campaigns the live holds cover. Sets, so that many things cost little.

    Args:
        holds: The live holds.
        services: Names of all services.
        without: Services whose breaker's own hold does not count.
    """

    def __init__(
        self, holds: Sequence[Hold], services: Collection[str], without: Collection[str] = ()
    ) -> None:
        counted = [
            hold
            for hold in holds
            if not (
                hold.source is HoldSource.BREAKER
                and hold.target.kind is TargetKind.SERVICE
                and hold.target.name in without
            )
        ]
        self.everything = any(hold.target.kind is TargetKind.EVERYTHING for hold in counted)
        self.services = {h.target.name for h in counted if h.target.kind is TargetKind.SERVICE}
        self.campaigns = {h.target.name for h in counted if h.target.kind is TargetKind.CAMPAIGN}
        self._known = {*services, *self.services}

    def __bool__(self) -> bool:
        return bool(self.everything or self.services or self.campaigns)

    def needs(self, pool: str) -> PoolNeeds:
        """Return the services and the campaign that a pool stands for."""
        return needs(pool, self._known)

    def pool(self, pool: str) -> bool:
        """Return whether a pool is covered."""
        need = self.needs(pool)
        if not need.services and need.campaign is None:
            return False  # not one of ours
        return (
            self.everything
            or not self.services.isdisjoint(need.services)
            or need.campaign in self.campaigns
        )

    def campaign(self, campaign: CampaignSpec) -> bool:
        """Return whether a campaign is covered: by a hold on it, or on a service it needs."""
        return (
            self.everything
            or campaign.name in self.campaigns
            or bool(campaign.services(self.services))
        )


def plan(seen: Observed) -> list[Action]:
    """Return what brings Dagster from what it looks like to what it should look like.

    Applied, and planned again, it ends: a plan of what it wanted is empty.

    Args:
        seen: What was observed.

    Returns:
        The actions, pools before schedules and sensors; the order does not matter otherwise.
    """
    return [*_pools(seen), *_triggers(seen)]


def limit_of(value: str, default_limit: int | None) -> int | None:
    """Return how many runs a value of a pool lets in; None where it is no limit.

    Args:
        value: `unset`, `default` or a number.
        default_limit: The instance's default, or None.
    """
    return default_limit if value in (UNSET, DEFAULT) else int(value)


def runs(status: str | None, *, runs_by_default: bool) -> bool:
    """Return whether a schedule or sensor of this status runs; None: nothing is stored of it."""
    if status is None or status == DECLARED_IN_CODE:
        return runs_by_default
    return status == RUNNING


def _pools(seen: Observed) -> Iterator[Action]:
    cover = Cover(seen.holds, seen.services)
    taken = {t.name: t for t in seen.takeovers if t.kind is TakeoverKind.POOL}
    names = set(taken)
    if cover:
        names |= {pool for campaign in seen.campaigns for pool in campaign.pools}
        names |= {*seen.pools, *cover.services}
    for name in sorted(names):
        value = seen.pools.get(name, UNSET)
        takeover = taken.get(name)
        held = cover.pool(name)
        if takeover is None:
            if held and limit_of(value, seen.default_limit) != 0:
                yield Take(TakeoverKind.POOL, name, name, None, seen.location, value, "0")
        elif takeover.left_at is not None:
            if not held:
                yield End(takeover, Outcome.LEFT_TO_OPERATOR)
        elif not _ours(takeover, value):
            yield Leave(takeover, value)
        else:
            yield from _taken_pool(seen, cover, takeover, value, held=held)


def _ours(takeover: Takeover, value: str) -> bool:
    """Whether a pool has a value that the gate gave it, and not one that a person did."""
    known = {takeover.set_to, *([takeover.set_from] if takeover.pending else [])}
    return any(same_pool(value, other) for other in known)


def same_pool(one: str, other: str) -> bool:
    """Return whether two values of a pool are the same to anybody but a database.

    Where the instance has a default, Dagster gives every pool that runs wait for a row that
    follows it; where it has none, such rows go.
    """
    return one == other or {one, other} == {UNSET, DEFAULT}


def _taken_pool(
    seen: Observed, cover: Cover, takeover: Takeover, value: str, *, held: bool
) -> Iterator[Action]:
    step_at = None
    if held:
        target = str(_canary_limit(seen, cover, takeover))
    else:
        step = _ramp(seen, cover, takeover, value)
        if step is None:
            return
        target, step_at = step
    if same_pool(value, target):
        if not held and target == takeover.former:
            yield End(takeover, Outcome.RESTORED)
        elif takeover.pending or takeover.set_to != target or takeover.ramp_step_at != step_at:
            yield Write(takeover, target, target, step_at, tightens=held)
        return
    new, old = limit_of(target, seen.default_limit), limit_of(value, seen.default_limit)
    tightens = new is not None and (old is None or new < old)
    yield Write(takeover, value, target, step_at, tightens)


def _canary_limit(seen: Observed, cover: Cover, takeover: Takeover) -> int:
    """How many runs a covered pool lets in: none, but for a canary that waits."""
    if not seen.canaries:
        return 0
    need = cover.needs(takeover.name)
    covering = targets_of(services=need.services, campaign=need.campaign)
    if any(
        hold.source is not HoldSource.BREAKER or hold.target.name not in seen.canaries
        for hold in seen.holds
        if hold.target in covering
    ):
        return 0
    # Runs that have left the queue hold a place each, also those that are past the service.
    limit = seen.in_progress.get(takeover.name, 0) + 1
    ceiling = limit_of(takeover.former, seen.default_limit)
    return limit if ceiling is None else min(limit, ceiling)


def _ramp(
    seen: Observed, cover: Cover, takeover: Takeover, value: str
) -> tuple[str, datetime | None] | None:
    """The value that a pool is to have after the holds are gone, and the time of its step.

    None where another gate has to say: this one does not know the policies.
    """
    names = cover.needs(takeover.name).services
    services = [seen.services.get(name, ServiceView()) for name in names]
    intervals = [service.ramp_interval_s for service in services]
    unknown = None in intervals
    if unknown and takeover.location not in (seen.location, ""):
        return None
    # Whoever trips a breaker takes pools for nobody, also for a gate that knows the policy.
    least = UNKNOWN_INTERVAL_S if unknown and not takeover.location else 0
    known = [i for i in intervals if i is not None]
    interval = timedelta(seconds=max(known, default=least))
    if not interval:
        return takeover.former, None
    step_at = takeover.ramp_step_at
    current = limit_of(value, seen.default_limit)
    if current is None or same_pool(value, takeover.former):
        return takeover.former, step_at
    if step_at is None or current == 0:
        current, step_at = 1, seen.now
    elif any(s.last_failure_at is not None and s.last_failure_at > step_at for s in services):
        current, step_at = max(1, current // 2), seen.now
    elif seen.now - step_at >= interval:
        current, step_at = current * 2, seen.now
    ceiling = limit_of(takeover.former, seen.default_limit)
    if current >= (TOP_OF_RAMP * 2 if ceiling is None else ceiling):
        return takeover.former, step_at
    return str(current), step_at


def _triggers(seen: Observed) -> Iterator[Action]:
    starving = [name for name, found in seen.candidates.items() if found.starving]
    cover = Cover(seen.holds, seen.services, without=starving)
    taken = {t.name: t for t in seen.takeovers if t.kind is not TakeoverKind.POOL}
    if not cover and not taken:
        return
    held: dict[str, tuple[CampaignSpec, Trigger]] = {}
    for campaign in seen.campaigns:
        if campaign.triggers and cover.campaign(campaign):
            held |= {trigger.selector_id: (campaign, trigger) for trigger in campaign.triggers}
    for selector_id, (campaign, trigger) in held.items():
        state = seen.triggers.get(selector_id)
        status = None if state is None else state.status
        if selector_id not in taken and runs(status, runs_by_default=trigger.runs_by_default):
            yield Take(
                trigger.kind,
                selector_id,
                trigger.name,
                campaign.name,
                campaign.location,
                # Where nothing is stored, Dagster is about to store this.
                DECLARED_IN_CODE if status is None else status,
                STOPPED,
                None if state is None else state.started_at,
            )
    for takeover in taken.values():
        yield from _taken_trigger(seen, takeover, held=takeover.name in held)


def _taken_trigger(seen: Observed, takeover: Takeover, *, held: bool) -> Iterator[Action]:
    if not held and takeover.location != seen.location:
        return  # its own gate knows whether it is held, and what it missed
    state = seen.triggers.get(takeover.name)
    value = UNSET if state is None else state.status
    if takeover.left_at is not None:
        if not held:
            yield End(takeover, Outcome.LEFT_TO_OPERATOR)
        return
    known = {takeover.set_to, UNSET, *([takeover.set_from] if takeover.pending else [])}
    if value not in known and not _written_late(takeover, state):
        yield Leave(takeover, value)
        return
    target = STOPPED if held else takeover.former
    if value != target:
        yield Write(takeover, value, target, None, tightens=held)
    elif not held:
        yield End(takeover, Outcome.RESTORED)
    elif takeover.pending or takeover.set_to != target:
        yield Write(takeover, target, target, None, tightens=True)


def _written_late(takeover: Takeover, state: TriggerState | None) -> bool:
    """Whether Dagster's daemon wrote a row back that it had read before the takeover.

    It does so to note how far it is: of a schedule about once an hour, of a sensor in every tick.
    A person who starts it gives it a new start time; this keeps the old one. So does a person who
    resets a sensor, who gets what they want when nothing holds it any more.
    """
    if state is None or state.status != takeover.former:
        return False
    if state.started_at is None:  # as of a sensor that was never started by hand
        return takeover.running_since is None
    return state.started_at < takeover.taken_at
