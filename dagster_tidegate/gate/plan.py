"""Plans: compares what was observed with what the live holds ask for, and returns actions. Pure.

The gate is level-triggered: it compares the present state of Dagster with the desired one, and
does not ask what happened in between. After a crash or an outage, the next plan continues.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import dagster as dg

from dagster_tidegate.dagster_api.triggers import TriggerState
from dagster_tidegate.holds import Hold, HoldSource, TargetKind, held_services
from dagster_tidegate.pools import Adopted, PoolNeeds, needs, with_wholes
from dagster_tidegate.store.campaigns import CampaignSpec, Trigger
from dagster_tidegate.store.gate_view import GateView
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.store.takeovers import (
    DECLARED_IN_CODE,
    DEFAULT,
    RUNNING,
    STOPPED,
    UNSET,
    Take,
    Takeover,
    TakeoverKind,
    TakeoverOutcome,
)

# Seconds between ramp steps of a pool taken outside a sensor, whose services' policies are unknown.
UNKNOWN_INTERVAL_S = 30.0
# A pool without a limit of its own ramps up to this at least, and then until it has room for all
# runs that wait for it. Then it has no limit again.
TOP_OF_RAMP = 16
# How long schedules stay stopped for paused runs whose Dagster runs have not ended. Dagster cancels
# a run whose process is dead after 3 minutes by default, and never without run monitoring.
MAX_ENDING = timedelta(minutes=10)
# What a service throttled for no longer than this is restored at once.
BRIEF_THROTTLE = timedelta(minutes=10)


@dataclass(frozen=True)
class ServiceView:
    """What the gate needs to know about a service.

    Attributes:
        ramp_interval_s: Seconds that it must be healthy between two ramp steps; None if this gate
            does not know its policy.
        last_failure_at: When a call to it last failed (UTC); None if none did since the ramp began.
        recovered_at: When its breaker last closed (UTC), or None.
        was_throttled: Whether its breaker had opened since the service throttled, which was well.
    """

    ramp_interval_s: float | None = None
    last_failure_at: datetime | None = None
    recovered_at: datetime | None = None
    was_throttled: bool = False


@dataclass(frozen=True)
class Candidates:
    """The runs that could try a half-open service.

    Attributes:
        canaries: Unfinished Dagster runs that are its canary already, queued or launched.
        waiting: Paused campaign runs whose Dagster runs have finished, and Dagster runs in the
            queue, in order of preference.
        ending: Paused campaign runs that can try it once Dagster has ended their runs.
    """

    canaries: Sequence[dg.DagsterRun] = ()
    waiting: Sequence[CampaignRun | dg.DagsterRun] = ()
    ending: Sequence[CampaignRun] = ()

    def starving(self, now: datetime) -> bool:
        """Return whether no run can try it soon."""
        paused = [run.paused_at for run in self.ending if run.paused_at is not None]
        ends_soon = any(now - paused_at < MAX_ENDING for paused_at in paused)
        return not (self.canaries or self.waiting or ends_soon)


@dataclass(frozen=True)
class Observation(GateView):
    """What a gate observed: what the store says, and the state of Dagster.

    Attributes:
        location: The code location of the gate.
        services: All known services, by name.
        campaigns: The campaigns of the code location; all, for a gate without one.
        pools: The pools that have a limit: `default` or the number, by name.
        default_limit: The limit of pools that have none of their own, or None.
        triggers: Stored states of schedules and sensors, by selector id.
        canaries: Services whose canary waits in the queue.
        in_progress: How many launched and unfinished runs use a pool, for the pools that a canary
            waits for.
        candidates: The runs that could try each half-open service that no health probe can close.
        enabled: False if Tidegate is switched off: then pools are restored without a ramp.
    """

    location: str = ""
    services: Mapping[str, ServiceView] = field(default_factory=dict)
    campaigns: Sequence[CampaignSpec] = ()
    pools: Mapping[str, str] = field(default_factory=dict)
    default_limit: int | None = None
    triggers: Mapping[str, TriggerState] = field(default_factory=dict)
    canaries: Set[str] = frozenset()
    in_progress: Mapping[str, int] = field(default_factory=dict)
    candidates: Mapping[str, Candidates] = field(default_factory=dict)
    enabled: bool = True

    @property
    def starving(self) -> Sequence[str]:
        """The services that no run can try soon, so that their schedules have to start one."""
        return [name for name, each in self.candidates.items() if each.starving(self.now)]


@dataclass(frozen=True)
class Write:
    """Set a takeover to another value, or record that Dagster has the value already.

    Attributes:
        value: The value in Dagster.
        set_to: The desired value.
        ramp_step_at: When the ramp took its latest step, or None outside a ramp.
        tightens: Whether it lets less run than before.
    """

    takeover: Takeover
    value: str
    set_to: str
    ramp_step_at: datetime | None
    tightens: bool


@dataclass(frozen=True)
class Leave:
    """Leave something to the person who changed it to `value`."""

    takeover: Takeover
    value: str


@dataclass(frozen=True)
class End:
    """Record that a takeover is over."""

    takeover: Takeover
    outcome: TakeoverOutcome


Action = Take | Write | Leave | End


class Cover:
    """Which services and campaigns the live holds cover. Sets, so that each lookup is cheap.

    Args:
        holds: The live holds.
        services: Names of all known services.
        adopted: The services that pools stand for whose names don't say it.
        without: Services whose breaker's own hold is ignored.
    """

    def __init__(
        self,
        holds: Sequence[Hold],
        services: Collection[str],
        adopted: Adopted,
        *,
        without: Collection[str] = (),
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
        self.services = held_services(counted)
        self.campaigns = {h.target.name for h in counted if h.target.kind is TargetKind.CAMPAIGN}
        self._known = {*services, *self.services}
        self._adopted = adopted

    def __bool__(self) -> bool:
        return bool(self.everything or self.services or self.campaigns)

    def any_of(self, services: Collection[str]) -> bool:
        """Return whether one of some services is covered."""
        return not self.services.isdisjoint(with_wholes(services))

    def needs(self, pool: str) -> PoolNeeds:
        """Return the services and the campaign that a pool stands for."""
        return needs(pool, self._known, self._adopted)

    def pool(self, pool: str) -> bool:
        """Return whether a pool is covered."""
        need = self.needs(pool)
        if not need.services and need.campaign is None:
            return False  # not one of ours
        return (
            self.everything
            or bool(need.blocked_by(self.services))
            or need.campaign in self.campaigns
        )

    def campaign(self, campaign: CampaignSpec) -> bool:
        """Return whether a campaign is covered: by a hold on it, or on a service it needs."""
        return (
            self.everything
            or campaign.name in self.campaigns
            or bool(campaign.blocked_by(self.services))
        )


def plan(observation: Observation) -> list[Action]:
    """Return the actions that bring Dagster to the desired state, pools first.

    It converges: once they are applied, the next plan is empty.
    """
    return [*_pools(observation), *_triggers(observation)]


def giving_back(observation: Observation) -> list[Action]:
    """Return the actions that give every takeover back at once; for a gate that is removed."""
    actions: list[Action] = []
    for takeover in observation.takeovers:
        if takeover.kind is TakeoverKind.POOL:
            value = observation.pools.get(takeover.name, UNSET)
            is_ours, is_back = _ours(takeover, value), same_pool(value, takeover.former)
        else:
            value, is_ours = _trigger(observation, takeover)
            is_back = value == takeover.former
        if takeover.left_at is not None:
            actions.append(End(takeover, TakeoverOutcome.LEFT_TO_OPERATOR))
        elif is_back and (takeover.set_to == takeover.former or not is_ours):
            actions.append(End(takeover, TakeoverOutcome.RESTORED))
        elif not is_ours:
            actions.append(Leave(takeover, value))
        else:
            actions.append(Write(takeover, value, takeover.former, None, tightens=False))
    return actions


def limit_of(value: str, default_limit: int | None) -> int | None:
    """Return how many runs a pool with this value lets in; None for no limit."""
    return default_limit if value in (UNSET, DEFAULT) else int(value)


def is_running(status: str | None, *, runs_by_default: bool) -> bool:
    """Return whether a schedule or sensor of this status runs; None: nothing is stored."""
    if status is None or status == DECLARED_IN_CODE:
        return runs_by_default
    return status == RUNNING


def _pools(observation: Observation) -> Iterator[Action]:
    cover = Cover(observation.holds, observation.services, observation.adopted)
    taken = {t.name: t for t in observation.takeovers if t.kind is TakeoverKind.POOL}
    names = set(taken)
    if cover:
        names |= {pool for campaign in observation.campaigns for pool in campaign.pools}
        names |= {*observation.pools, *observation.adopted, *cover.services}
    for name in sorted(names):
        value = observation.pools.get(name, UNSET)
        takeover = taken.get(name)
        held = cover.pool(name)
        if takeover is None:
            if held and limit_of(value, observation.default_limit) != 0:
                yield Take(TakeoverKind.POOL, name, name, None, observation.location, value, "0")
        elif takeover.left_at is not None:
            if not held:
                yield End(takeover, TakeoverOutcome.LEFT_TO_OPERATOR)
        elif not _ours(takeover, value):
            yield Leave(takeover, value)
        else:
            yield from _taken_pool(observation, cover, takeover, value, held=held)


def _ours(takeover: Takeover, value: str) -> bool:
    """Whether a pool has a value that the gate set, and not one that a person set."""
    values = {takeover.set_to, *([takeover.set_from] if takeover.pending else [])}
    return any(same_pool(value, other) for other in values)


def same_pool(one: str, other: str) -> bool:
    """Return whether two values of a pool have the same effect.

    If the instance has a default limit, Dagster itself creates a row that follows it for every pool
    that runs wait for; if it has none, Dagster deletes such rows.
    """
    return one == other or {one, other} == {UNSET, DEFAULT}


def _taken_pool(
    observation: Observation, cover: Cover, takeover: Takeover, value: str, *, held: bool
) -> Iterator[Action]:
    step_at = None
    if held:
        target = str(_canary_limit(observation, cover, takeover))
    else:
        step = _ramp(observation, cover, takeover, value)
        if step is None:
            return
        target, step_at = step
    if same_pool(value, target):
        if not held and target == takeover.former:
            yield End(takeover, TakeoverOutcome.RESTORED)
        elif takeover.pending or takeover.set_to != target or takeover.ramp_step_at != step_at:
            yield Write(takeover, target, target, step_at, tightens=held)
        return
    new, old = (limit_of(each, observation.default_limit) for each in (target, value))
    tightens = new is not None and (old is None or new < old)
    yield Write(takeover, value, target, step_at, tightens)


def _canary_limit(observation: Observation, cover: Cover, takeover: Takeover) -> int:
    """How many runs a held pool lets in: none, except a waiting canary."""
    canaries = observation.canaries
    if canaries.isdisjoint(cover.needs(takeover.name).services):
        return 0
    others = Cover(observation.holds, observation.services, observation.adopted, without=canaries)
    if others.pool(takeover.name):
        return 0
    # Each launched run occupies a slot, even if it no longer needs the service.
    limit = observation.in_progress.get(takeover.name, 0) + 1
    ceiling = limit_of(takeover.former, observation.default_limit)
    return limit if ceiling is None else min(limit, ceiling)


def _ramp(
    observation: Observation, cover: Cover, takeover: Takeover, value: str
) -> tuple[str, datetime | None] | None:
    """The next value of a pool that is no longer held, and the time of that ramp step.

    None if another gate has to decide, since this one does not know the policies.
    """
    names = cover.needs(takeover.name).services
    services = [observation.services.get(name, ServiceView()) for name in names]
    intervals = [service.ramp_interval_s for service in services]
    unknown = None in intervals
    if unknown and takeover.location not in (observation.location, ""):
        return None
    # A pool taken outside a sensor belongs to no location, even if some gate knows the policies.
    default = UNKNOWN_INTERVAL_S if unknown and not takeover.location else 0
    interval = timedelta(seconds=max((i for i in intervals if i is not None), default=default))
    if not interval or not observation.enabled or _was_throttled_briefly(services, takeover):
        return takeover.former, None
    step_at = takeover.ramp_step_at
    current = limit_of(value, observation.default_limit)
    if current is None or same_pool(value, takeover.former):
        return takeover.former, step_at
    if step_at is None or current == 0:
        current, step_at = 1, observation.now
    elif any(s.last_failure_at is not None and s.last_failure_at > step_at for s in services):
        current, step_at = max(1, current // 2), observation.now
    elif observation.now - step_at >= interval:
        current, step_at = current * 2, observation.now
    else:
        return value, step_at
    ceiling = limit_of(takeover.former, observation.default_limit)
    if ceiling is None:
        ceiling = max(TOP_OF_RAMP * 2, _waiting(observation, takeover.name))
    if current >= ceiling:
        return takeover.former, step_at
    return str(current), step_at


def _was_throttled_briefly(services: Sequence[ServiceView], takeover: Takeover) -> bool:
    """Whether a pool was taken for a short throttle alone, so that no ramp is needed.

    What has gathered during a long one, such as a used-up day, would all start at the reset.
    """
    recovered = [s for s in services if s.recovered_at and s.recovered_at >= takeover.taken_at]
    return bool(recovered) and all(
        service.was_throttled and service.recovered_at - takeover.taken_at <= BRIEF_THROTTLE
        for service in recovered
        if service.recovered_at
    )


def _waiting(observation: Observation, pool: str) -> int:
    """How many runs wait for a pool; those of other code locations may."""
    others = {spec.name for spec in observation.campaigns if pool not in spec.pools}
    return sum(count for name, count in observation.waiting.items() if name not in others)


def _triggers(observation: Observation) -> Iterator[Action]:
    cover = Cover(
        observation.holds,
        observation.services,
        observation.adopted,
        without=observation.starving,
    )
    taken = {t.name: t for t in observation.takeovers if t.kind is not TakeoverKind.POOL}
    if not cover and not taken:
        return
    held: dict[str, tuple[CampaignSpec, Trigger]] = {}
    # A trigger that also starts a campaign that may run keeps running; held runs wait in the queue.
    needed: set[str] = set()
    for campaign in observation.campaigns:
        if not campaign.triggers:
            continue
        if cover.campaign(campaign):
            held |= {trigger.selector_id: (campaign, trigger) for trigger in campaign.triggers}
        else:
            needed |= {trigger.selector_id for trigger in campaign.triggers}
    held = {selector_id: each for selector_id, each in held.items() if selector_id not in needed}
    for selector_id, (campaign, trigger) in held.items():
        state = observation.triggers.get(selector_id)
        status = None if state is None else state.status
        if selector_id not in taken and is_running(status, runs_by_default=trigger.runs_by_default):
            yield Take(
                trigger.kind,
                selector_id,
                trigger.name,
                campaign.name,
                campaign.location,
                # If nothing is stored yet, Dagster is about to store this.
                DECLARED_IN_CODE if status is None else status,
                STOPPED,
                None if state is None else state.started_at,
            )
    for takeover in taken.values():
        yield from _taken_trigger(observation, takeover, held=takeover.name in held)


def _taken_trigger(observation: Observation, takeover: Takeover, *, held: bool) -> Iterator[Action]:
    if not held and takeover.location != observation.location:
        return  # only its own gate knows whether it is held, and what it missed
    value, is_ours = _trigger(observation, takeover)
    if takeover.left_at is not None:
        if not held:
            yield End(takeover, TakeoverOutcome.LEFT_TO_OPERATOR)
        return
    if not is_ours:
        yield Leave(takeover, value)
        return
    target = STOPPED if held else takeover.former
    if value != target:
        yield Write(takeover, value, target, None, tightens=held)
    elif not held:
        yield End(takeover, TakeoverOutcome.RESTORED)
    elif takeover.pending or takeover.set_to != target:
        yield Write(takeover, target, target, None, tightens=True)


def _trigger(observation: Observation, takeover: Takeover) -> tuple[str, bool]:
    """The value of a schedule or sensor, and whether it is one that the gate or Dagster set."""
    state = observation.triggers.get(takeover.name)
    value = UNSET if state is None else state.status
    ours = {takeover.set_to, UNSET, *([takeover.set_from] if takeover.pending else [])}
    return value, value in ours or _written_late(takeover, state)


def _written_late(takeover: Takeover, state: TriggerState | None) -> bool:
    """Whether Dagster's daemon wrote back a row that it had read before the takeover.

    It does so to record its progress: for a schedule about once an hour, for a sensor in every
    tick. Such a row has the old start time, while starting a schedule by hand sets a new one.
    Resetting a sensor by hand keeps the old one too; that takes effect when it is given back.
    """
    if state is None or state.status != takeover.former:
        return False
    if state.started_at is None:  # as for a sensor that was never started by hand
        return takeover.running_since is None
    return state.started_at < takeover.taken_at
