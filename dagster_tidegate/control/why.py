"""The one answer to "why is this paused?", shown by every surface. Pure."""

import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.holds import (
    EVERYTHING,
    Hold,
    HoldSource,
    Target,
    TargetKind,
    covering,
    describe,
    targets_of,
)
from dagster_tidegate.pools import needs, with_wholes
from dagster_tidegate.statuses import UNFINISHED, RunStatus
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.store.takeovers import TakeoverKind
from dagster_tidegate.text import did_you_mean, plural, utc, words


class UnknownNameError(LookupError):
    """Nothing has this name, or several things have it."""


class ObstacleKind(StrEnum):
    """What may keep something from running besides a hold."""

    KILL_SWITCH = "kill_switch"
    GATE_STALE = "gate_stale"
    CANARY = "canary"
    RAMP = "ramp"
    POOL_FULL = "pool_full"
    LEFT_TO_OPERATOR = "left_to_operator"
    TRIGGER_STOPPED = "trigger_stopped"
    NEXT_TICK = "next_tick"
    WINDOW = "window"
    NO_GATE = "no_gate"
    NOT_STARTED = "not_started"
    ENDED = "ended"
    KEPT_CLOSED = "kept_closed"


@dataclass(frozen=True)
class Obstacle:
    """Something besides a hold that keeps a thing from running, or affects its holds."""

    kind: ObstacleKind
    text: str


@dataclass(frozen=True)
class Reason:
    """A live hold that covers a thing.

    Attributes:
        retry_at: Earliest time of the next probe (UTC), for the hold of an open breaker.
        being_tried: Whether the service is half open and being probed.
        breaker: The breaker whose hold it is.
    """

    hold: Hold
    retry_at: datetime | None = None
    being_tried: bool = False
    breaker: BreakerStatus | None = None


@dataclass(frozen=True)
class Explanation:
    """Whether and why something is paused.

    Attributes:
        status: State of the breaker, or status of the campaign or campaign run. None for
            everything, and for a campaign run that does not exist yet.
        reasons: The live holds that cover it, oldest first. It is paused if there are any.
        obstacles: What else keeps it from running.
        last_word: The recorded reason of the campaign run's status.
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
        """Earliest time at which it can resume (UTC).

        This is the latest of the next probes and of the ends of operators' holds. None if it is
        not paused, or if a hold lasts until it is released.
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
            breakers = {each.breaker.name: each.breaker for each in self.reasons if each.breaker}
            return f"paused: {describe([each.hold for each in self.reasons], breakers)}"
        if self.obstacles and self.obstacles[0].kind is ObstacleKind.ENDED:
            return f"over: {self.obstacles[0].text}"
        if self.obstacles:
            return f"not paused, but {self.obstacles[0].text}"
        return "not paused"


def find(
    situation: Situation,
    name: str,
    runs: Mapping[str, CampaignRun],
    kind: TargetKind | None = None,
) -> Target:
    """Return the thing that a name means.

    Args:
        name: Name of a service or campaign, `campaign/partition`, or `everything`.
        runs: The campaign run with this name, by name, if it exists.

    Raises:
        UnknownNameError: If nothing has the name, or a service and a campaign both have it.
    """
    is_run_name = "/" in name.strip("/")
    possible = {
        TargetKind.SERVICE: name in situation.services,
        TargetKind.CAMPAIGN: name in situation.campaigns,
        # A partition can be held and asked about before it has a run.
        TargetKind.CAMPAIGN_RUN: is_run_name
        and (name in runs or name.partition("/")[0] in situation.campaigns),
        TargetKind.EVERYTHING: name == "everything",
    }
    kinds = [each for each, matches in possible.items() if matches and kind in (None, each)]
    if len(kinds) > 1:
        both = " and ".join(f"a {words(each)}" for each in kinds)
        raise UnknownNameError(f"{name!r} is the name of {both}: name the kind")
    if kinds:
        return EVERYTHING if kinds[0] is TargetKind.EVERYTHING else Target(kinds[0], name)
    raise UnknownNameError(_unknown(situation, name, kind))


def campaigns_of_asset(situation: Situation, asset: str) -> list[str]:
    """Return the campaigns whose ops make an asset and have a pool."""
    return [
        name
        for name, campaign in situation.campaigns.items()
        if any(asset in assets for assets in campaign.spec.assets.values())
    ]


def why(situation: Situation, target: Target, run: CampaignRun | None = None) -> Explanation:
    """Return whether and why something is paused.

    Args:
        run: The campaign run, if that is the target and exists.
    """
    now, holds = situation.now, situation.holds
    if target.kind is TargetKind.SERVICE:
        breaker = situation.breakers.get(target.name)
        status = None if breaker is None else str(breaker.state)
        held = covering(holds, now, services=[target.name])
        return _answer(situation, target, status, held, {target.name}, None)
    if target.kind is TargetKind.EVERYTHING:
        return _answer(situation, target, None, covering(holds, now), set(), None)
    name, _, partition = target.name.partition("/")
    campaign = situation.campaigns.get(name)
    services = blocking = frozenset[str]()
    of_run = target.kind is TargetKind.CAMPAIGN_RUN
    if campaign is not None:
        spec = campaign.spec if run is None else campaign.spec.part(run.assets)
        services = spec.services(situation.services)
        blocking = spec.blocked_by(situation.held_services)
    if of_run and run is not None:
        services, blocking = services.union(run.refused_by), blocking.union(run.refused_by)
    held = covering(
        holds, now, services=blocking, campaign=name, partition=partition if of_run else None
    )
    subject = run if of_run else campaign
    status = None if subject is None else str(subject.status)
    return _answer(situation, target, status, held, services, run)


def why_waiting(situation: Situation, run: CampaignRun) -> str | None:
    """Return why a campaign run is not at work, in one line, or why it ended.

    What was recorded when it paused says why then: another hold may be in its way by now.
    """
    if run.status not in (RunStatus.PENDING, RunStatus.PAUSED):
        return run.reason
    answer = why(situation, Target(TargetKind.CAMPAIGN_RUN, run.name), run)
    if answer.paused:
        now = answer.summary.removeprefix("paused: ")
    elif answer.obstacles and run.status is RunStatus.PAUSED:
        now = answer.obstacles[0].text
    else:
        return run.reason
    reached = (run.reason or "").partition(": ")[0]
    return f"{reached}: {now}" if reached.startswith("Paused at ") else now


def reason_of(situation: Situation, hold: Hold) -> Reason:
    """Return a live hold with what is known of the breaker whose it is."""
    breaker = situation.breakers.get(hold.target.name)
    if hold.source is not HoldSource.BREAKER or breaker is None:
        return Reason(hold)
    has_time = not breaker.is_half_open and not breaker.is_denied
    return Reason(hold, breaker.open_until if has_time else None, breaker.is_half_open, breaker)


@dataclass(frozen=True)
class QueuedRun:
    """A Dagster run that has not begun an op, as Dagster knows it.

    Attributes:
        pools: Limit of each of its pools (None: unlimited), and the number of runs using it.
        tries: The half-open services whose canary it is.
    """

    job: str
    partition: str
    queued: bool
    pools: Mapping[str, tuple[int | None, int]]
    tries: Collection[str] = ()


def in_queue(run: QueuedRun) -> list[Obstacle]:
    """Return what a run waits for in Dagster's queue."""
    if not run.queued:
        return []
    obstacles = []
    if run.tries:
        text = f"it is the canary for {', '.join(sorted(run.tries))} and first in the queue"
        obstacles.append(Obstacle(ObstacleKind.CANARY, text))
    for pool, (limit, used) in run.pools.items():
        if limit is not None and used >= limit:
            text = f"it waits for pool {pool}, which is full: {plural(used, 'run')}, limit {limit}"
            obstacles.append(Obstacle(ObstacleKind.POOL_FULL, text))
    return obstacles


def _answer(
    situation: Situation,
    target: Target,
    status: str | None,
    held: list[Hold],
    services: frozenset[str] | set[str],
    run: CampaignRun | None,
) -> Explanation:
    obstacles = [*_kill_switch(situation), *_stale_gates(situation, target)]
    if run is None or run.status in UNFINISHED:  # one that has ended waits for nothing
        obstacles += [
            *_coming_windows(situation, services),
            *_canaries(situation, services),
            *_takeovers(situation, target, services),
            *_kept_closed(situation, target),
            *_no_gate(situation, run),
        ]
    elif run.status is not RunStatus.COMPLETED:
        obstacles.insert(0, _ended(situation, run))
    if run is not None and run.status is RunStatus.PAUSED and not held and not obstacles:
        text = (
            "its next attempt starts at one of the next ticks of the gate, once Dagster has ended "
            "its last run"
        )
        obstacles.append(Obstacle(ObstacleKind.NEXT_TICK, text))
    if run is not None and run.waits_for_start:
        failed = run.reason is not None  # why it could not be launched
        text = (
            "its last start failed; start it again"
            if failed
            else "it was created by hand and has not been started"
        )
        obstacles.insert(0, Obstacle(ObstacleKind.NOT_STARTED, text))
    return Explanation(
        target=target,
        status=status,
        reasons=tuple(reason_of(situation, hold) for hold in held),
        obstacles=tuple(obstacles),
        last_word=None if run is None else run.reason,
    )


def _kill_switch(situation: Situation) -> Iterator[Obstacle]:
    if not situation.enabled:
        text = "TIDEGATE_ENABLED is false here: processes with this setting ignore holds"
        yield Obstacle(ObstacleKind.KILL_SWITCH, text)


def _no_gate(situation: Situation, run: CampaignRun | None) -> Iterator[Obstacle]:
    if run is None or run.status is not RunStatus.PAUSED or run.campaign in situation.campaigns:
        return
    yield Obstacle(
        ObstacleKind.NO_GATE,
        f"no gate knows the campaign {run.campaign}, so nothing resumes it. If its job was renamed "
        "or removed: 'tidegate runs cancel'. Otherwise add the gate with build_definitions",
    )


def _ended(situation: Situation, run: CampaignRun) -> Obstacle:
    how = "it failed" if run.status is RunStatus.FAILED else "it was cancelled"
    if run.campaign not in situation.campaigns:
        return Obstacle(ObstacleKind.ENDED, f"{how}, and no gate knows the campaign {run.campaign}")
    return Obstacle(
        ObstacleKind.ENDED,
        f"{how}; start it again with 'tidegate start {shlex.quote(run.name)}', or re-execute it "
        "in Dagster",
    )


def _stale_gates(situation: Situation, target: Target) -> Iterator[Obstacle]:
    of_campaign = target.kind in (TargetKind.CAMPAIGN, TargetKind.CAMPAIGN_RUN)
    name = target.name.partition("/")[0] if of_campaign else ""
    campaign = situation.campaigns.get(name)
    location = None if campaign is None else campaign.spec.location
    for gate in situation.stale_gates():
        if location in (None, gate.location):
            text = (
                f"{gate}. Until it recovers, runs in progress still pause, but nothing is stopped "
                "or resumed in Dagster: see 'tidegate doctor'"
            )
            yield Obstacle(ObstacleKind.GATE_STALE, text)


def _coming_windows(
    situation: Situation, services: frozenset[str] | set[str]
) -> Iterator[Obstacle]:
    for window in situation.windows:
        if window.service in with_wholes(services) and window.keeps_from_starting(situation.now):
            text = (
                f"no run starts before the maintenance window: {window.announcement(situation.now)}"
            )
            yield Obstacle(ObstacleKind.WINDOW, text)


def _canaries(situation: Situation, services: frozenset[str] | set[str]) -> Iterator[Obstacle]:
    for name in sorted(services):
        breaker = situation.breakers.get(name)
        if breaker is not None and breaker.is_half_open:
            calls = plural(situation.trials.get(name, 0), "trial call")
            probe = "" if breaker.needs_real_call else " or its health probe"
            yield Obstacle(
                ObstacleKind.CANARY,
                f"{name} has been half open since {utc(breaker.changed_at)} and is tested by a "
                f"canary run{probe}; {calls} in flight",
            )


def _kept_closed(situation: Situation, target: Target) -> Iterator[Obstacle]:
    breaker = situation.breakers.get(target.name) if target.kind is TargetKind.SERVICE else None
    if breaker is not None and breaker.kept_closed(situation.now):
        end = breaker.kept_closed_until
        until = utc(end) if end else "an operator lets it trip"
        yield Obstacle(
            ObstacleKind.KEPT_CLOSED,
            f"its breaker is kept closed by {breaker.kept_closed_by} until {until}",
        )


def _takeovers(
    situation: Situation, target: Target, services: frozenset[str] | set[str]
) -> Iterator[Obstacle]:
    name = target.name.partition("/")[0]
    campaign = None if target.kind is TargetKind.SERVICE else situation.campaigns.get(name)
    held, held_services = {hold.target for hold in situation.holds}, situation.held_services
    for takeover in situation.takeovers:
        if takeover.kind is not TakeoverKind.POOL:
            if campaign is None or takeover.campaign != campaign.spec.name:
                continue
            if takeover.left_at is None and not campaign.holds:
                text = f"{takeover} is not restored yet"
                yield Obstacle(ObstacleKind.TRIGGER_STOPPED, text)
            continue
        need = needs(takeover.name, situation.services, situation.adopted)
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
                f"the limit of pool {takeover.name} was changed by hand at "
                f"{utc(takeover.left_at)}: the gate leaves it as it is",
            )
        elif held.isdisjoint(
            targets_of(services=need.blocked_by(held_services), campaign=need.campaign)
        ):
            limit = "no limit" if takeover.former == "unset" else takeover.former
            yield Obstacle(
                ObstacleKind.RAMP,
                f"pool {takeover.name} is ramping up: its limit is {takeover.set_to}, on the way "
                f"to {limit}",
            )


def _unknown(situation: Situation, name: str, kind: TargetKind | None) -> str:
    names = {
        *(situation.services if kind in (None, TargetKind.SERVICE) else ()),
        *(situation.campaigns if kind is not TargetKind.SERVICE else ()),
    }
    of_asset = _instead_of_asset(situation, name)
    if of_asset:
        return of_asset
    thing = "service, campaign or campaign run" if kind is None else words(kind)
    otherwise = (
        f"known: {', '.join(sorted(names)[:20])}"
        if names
        else "none is known yet: a gate registers them at its first tick"
    )
    return f"no {thing} is named {name!r}; {did_you_mean(name.partition('/')[0], names, otherwise)}"


def _instead_of_asset(situation: Situation, name: str) -> str:
    """What to name instead of an asset; nothing if it is none."""
    campaigns = campaigns_of_asset(situation, name)
    if not campaigns:
        return ""
    parts = [situation.campaigns[each].spec.part([name]) for each in campaigns]
    needed = {each for spec in parts for each in spec.services(situation.services)}
    return (
        f"{name!r} is an asset: name what it needs ({', '.join(sorted(needed))}), or a run of it, "
        f"which 'tidegate runs' lists ({', '.join(f'{each}/...' for each in campaigns)})"
    )
