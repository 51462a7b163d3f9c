"""The one answer to "why is this paused?". Pure: every surface shows what `why` returns."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from dagster_tidegate import holds as covers
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.holds import EVERYTHING, Hold, HoldSource, Target, TargetKind, targets_of
from dagster_tidegate.pools import needs
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.store.takeovers import TakeoverKind
from dagster_tidegate.text import did_you_mean, utc


class UnknownNameError(LookupError):
    """Nothing has this name."""


class ObstacleKind(StrEnum):
    """What may hold something back, or be wrong with what holds it, besides a hold."""

    KILL_SWITCH = "kill_switch"
    GATE_STALE = "gate_stale"
    CANARY = "canary"
    RAMP = "ramp"
    POOL_FULL = "pool_full"
    LEFT_TO_OPERATOR = "left_to_operator"
    TRIGGER_STOPPED = "trigger_stopped"
    NEXT_TICK = "next_tick"
    NOT_STARTED = "not_started"
    KEPT_CLOSED = "kept_closed"


@dataclass(frozen=True)
class Obstacle:
    """Something besides a hold that one should know of a thing that does not run.

    Attributes:
        kind: What it is.
        text: What it means here, for people.
    """

    kind: ObstacleKind
    text: str


@dataclass(frozen=True)
class Reason:
    """A live hold that covers a thing.

    Attributes:
        hold: The hold.
        retry_at: When the service is probed at the earliest (UTC); None where no open breaker
            placed the hold.
        being_tried: Whether the service is half open: it is being tried.
    """

    hold: Hold
    retry_at: datetime | None = None
    being_tried: bool = False


@dataclass(frozen=True)
class Answer:
    """Why something is paused, or that it is not.

    Attributes:
        target: What was asked about.
        status: State of the breaker, status of the campaign or of the campaign run; None for a
            campaign run that is not there yet, and for everything.
        reasons: The live holds that cover it, the oldest first; it is paused if there are any.
        obstacles: What else holds it back.
        last_word: Why a campaign run has the status that it has, as it was written down.
    """

    target: Target
    status: str | None
    reasons: tuple[Reason, ...]
    obstacles: tuple[Obstacle, ...]
    last_word: str | None = None

    @property
    def paused(self) -> bool:
        """Whether a live hold covers it."""
        return bool(self.reasons)

    @property
    def retry_at(self) -> datetime | None:
        """When it can go on at the earliest (UTC), where the holds tell.

        The latest of the times at which open services are probed and operators' holds end. None
        where it is not paused, or a hold lasts until it is released.
        """
        times = [reason.retry_at or reason.hold.expires_at for reason in self.reasons]
        open_ended = any(
            time is None and not reason.being_tried
            for time, reason in zip(times, self.reasons, strict=True)
        )
        return None if open_ended else max((time for time in times if time), default=None)

    @property
    def summary(self) -> str:
        """The answer in one sentence."""
        if self.reasons:
            return f"paused: {covers.describe([reason.hold for reason in self.reasons])}"
        if self.obstacles:
            return f"not paused, but {self.obstacles[0].text}"
        return "not paused"


def find(
    seen: Situation, name: str, runs: Mapping[str, CampaignRun], kind: TargetKind | None = None
) -> Target:
    """Return what a name means.

    Args:
        seen: The situation.
        name: Name of a service or campaign, `campaign/partition`, or `everything`.
        runs: Campaign runs that have this name, by name: one, or none.
        kind: What it is, where that is known.

    Raises:
        UnknownNameError: If nothing has the name, or a service and a campaign have it.
    """
    possible = {
        TargetKind.SERVICE: name in seen.services,
        TargetKind.CAMPAIGN: name in seen.campaigns,
        # A partition may be held, and asked about, before it has a run.
        TargetKind.CAMPAIGN_RUN: name in runs or name.partition("/")[0] in seen.campaigns,
        TargetKind.EVERYTHING: name == "everything",
    }
    possible[TargetKind.CAMPAIGN_RUN] &= "/" in name.strip("/")
    found = [k for k, is_ in possible.items() if is_ and kind in (None, k)]
    if len(found) > 1:
        kinds = " and ".join(f"a {kind.replace('_', ' ')}" for kind in found)
        raise UnknownNameError(f"{name!r} is the name of {kinds}: say which kind is meant")
    if found:
        return EVERYTHING if found[0] is TargetKind.EVERYTHING else Target(found[0], name)
    raise UnknownNameError(_unknown(seen, name, kind))


def why(seen: Situation, target: Target, run: CampaignRun | None = None) -> Answer:
    """Return why something is paused, or that it is not, and what else holds it back.

    Args:
        seen: The situation.
        target: What is asked about.
        run: The campaign run, where that is the target and it is there already.
    """
    if target.kind is TargetKind.SERVICE:
        circuit = seen.circuits.get(target.name)
        status = None if circuit is None else str(circuit.state)
        held = covers.covering(seen.holds, seen.now, services=[target.name])
        return _answer(seen, target, status, held, {target.name}, None)
    if target.kind is TargetKind.EVERYTHING:
        held = covers.covering(seen.holds, seen.now)
        return _answer(seen, target, None, held, set(), None)
    campaign, _, partition = target.name.partition("/")
    found = seen.campaigns.get(campaign)
    services = frozenset() if found is None else found.services
    held = covers.covering(
        seen.holds,
        seen.now,
        services=services,
        campaign=campaign,
        partition=partition if target.kind is TargetKind.CAMPAIGN_RUN else None,
    )
    if target.kind is TargetKind.CAMPAIGN:
        status = None if found is None else str(found.status)
    else:
        status = None if run is None else str(run.status)
    return _answer(seen, target, status, held, services, run)


@dataclass(frozen=True)
class Waiting:
    """A Dagster run that has begun no op, as Dagster knows it.

    Attributes:
        job: Name of its job.
        partition: The partition of the campaign run that it works on.
        queued: Whether it is in the queue.
        pools: The limit of each of its pools (None: no limit), and how many runs use it.
        tries: The half open services that it is the canary of.
    """

    job: str
    partition: str
    queued: bool
    pools: Mapping[str, tuple[int | None, int]]
    tries: Collection[str] = ()


def in_queue(run: Waiting) -> list[Obstacle]:
    """Return what a run waits for in Dagster's queue."""
    if not run.queued:
        return []
    found = []
    if run.tries:
        text = f"it is the canary of {', '.join(sorted(run.tries))}, and first in the queue"
        found.append(Obstacle(ObstacleKind.CANARY, text))
    for pool, (limit, used) in run.pools.items():
        if limit is not None and used >= limit:
            text = f"it waits for pool {pool}, which has {used} runs and lets in {limit}"
            found.append(Obstacle(ObstacleKind.POOL_FULL, text))
    return found


def _answer(
    seen: Situation,
    target: Target,
    status: str | None,
    held: list[Hold],
    services: frozenset[str] | set[str],
    run: CampaignRun | None,
) -> Answer:
    obstacles = [
        *_switch(seen),
        *_gate(seen, target),
        *_canaries(seen, services),
        *_takeovers(seen, target, services),
        *_kept_closed(seen, target),
    ]
    if run is not None and run.status is RunStatus.PAUSED and not held and not obstacles:
        text = "its next attempt begins with one of the next ticks of the gate"
        obstacles.append(Obstacle(ObstacleKind.NEXT_TICK, text))
    if run is not None and run.waits_for_start:
        tried = run.reason is not None  # of one that waits, why it could not be launched
        text = (
            "its last start failed, and it waits for somebody to start it"
            if tried
            else "a person created it, and nobody has started it yet"
        )
        obstacles.insert(0, Obstacle(ObstacleKind.NOT_STARTED, text))
    return Answer(
        target=target,
        status=status,
        reasons=tuple(_reason(seen, hold) for hold in held),
        obstacles=tuple(obstacles),
        last_word=None if run is None else run.reason,
    )


def _reason(seen: Situation, hold: Hold) -> Reason:
    circuit = seen.circuits.get(hold.target.name)
    if hold.source is not HoldSource.BREAKER or circuit is None:
        return Reason(hold)
    half_open = circuit.state is BreakerState.HALF_OPEN
    return Reason(hold, None if half_open else circuit.open_until, half_open)


def _switch(seen: Situation) -> Iterator[Obstacle]:
    if not seen.enabled:
        yield Obstacle(
            ObstacleKind.KILL_SWITCH,
            "TIDEGATE_ENABLED is false here: processes that have it so heed no hold",
        )


def _gate(seen: Situation, target: Target) -> Iterator[Obstacle]:
    name = target.name.partition("/")[0]
    of_campaign = target.kind in (TargetKind.CAMPAIGN, TargetKind.CAMPAIGN_RUN)
    campaign = seen.campaigns.get(name) if of_campaign else None
    location = None if campaign is None else campaign.spec.location
    for gate in seen.stale_gates():
        if location in (None, gate.location):
            yield Obstacle(
                ObstacleKind.GATE_STALE,
                f"{gate}. Nothing is stopped or resumed meanwhile: see 'tidegate doctor'",
            )


def _canaries(seen: Situation, services: frozenset[str] | set[str]) -> Iterator[Obstacle]:
    for name in sorted(services):
        circuit = seen.circuits.get(name)
        if circuit is not None and circuit.state is BreakerState.HALF_OPEN:
            count = seen.trials.get(name, 0)
            calls = f"{count} trial calls are under way" if count else "no trial call is under way"
            yield Obstacle(
                ObstacleKind.CANARY,
                f"{name} is half open since {utc(circuit.changed_at)}: one run, the canary, "
                f"or its probe tries it; {calls}",
            )


def _kept_closed(seen: Situation, target: Target) -> Iterator[Obstacle]:
    circuit = seen.circuits.get(target.name) if target.kind is TargetKind.SERVICE else None
    if circuit is not None and circuit.kept_closed(seen.now):
        until = circuit.kept_closed_until
        yield Obstacle(
            ObstacleKind.KEPT_CLOSED,
            f"its breaker is kept closed by {circuit.kept_closed_by} until "
            f"{utc(until) if until else 'it is told otherwise'}: it does not trip",
        )


def _takeovers(
    seen: Situation, target: Target, services: frozenset[str] | set[str]
) -> Iterator[Obstacle]:
    name = target.name.partition("/")[0]
    campaign = None if target.kind is TargetKind.SERVICE else seen.campaigns.get(name)
    held = {hold.target for hold in seen.holds}
    for takeover in seen.takeovers:
        if takeover.kind is not TakeoverKind.POOL:
            if campaign is None or takeover.campaign != campaign.spec.name:
                continue
            if takeover.left_at is None and not campaign.holds:
                text = f"{takeover} is not given back yet"
                yield Obstacle(ObstacleKind.TRIGGER_STOPPED, text)
            continue
        need = needs(takeover.name, seen.services)
        concerned = (
            takeover.name in campaign.spec.pools
            if campaign is not None
            else not need.services.isdisjoint(services)
        )
        if not concerned:
            continue
        if takeover.left_at is not None:
            yield Obstacle(
                ObstacleKind.LEFT_TO_OPERATOR,
                f"a person changed the limit of pool {takeover.name} at "
                f"{utc(takeover.left_at)}: the gate leaves it as it is",
            )
        elif held.isdisjoint(targets_of(services=need.services, campaign=need.campaign)):
            back_to = "no limit" if takeover.former == "unset" else takeover.former
            yield Obstacle(
                ObstacleKind.RAMP,
                f"pool {takeover.name} lets {takeover.set_to} runs in at a time, on its way back "
                f"to {back_to}",
            )


def _unknown(seen: Situation, name: str, kind: TargetKind | None) -> str:
    known = {
        *(seen.services if kind in (None, TargetKind.SERVICE) else ()),
        *(seen.campaigns if kind is not TargetKind.SERVICE else ()),
    }
    thing = "service, campaign or campaign run" if kind is None else kind.replace("_", " ")
    otherwise = (
        f"known are {', '.join(sorted(known)[:20])}"
        if known
        else "the store knows none yet: a gate tells it of them with its first tick"
    )
    hint = did_you_mean(name.partition("/")[0], known, otherwise)
    return f"no {thing} is named {name!r}; {hint}"
