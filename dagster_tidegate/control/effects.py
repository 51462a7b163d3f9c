"""Effects of a change of holds on campaigns. Pure: it compares two situations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.control.situation import CampaignSituation, Situation
from dagster_tidegate.control.why import why
from dagster_tidegate.holds import (
    Hold,
    HoldSource,
    Target,
    TargetKind,
    covering,
    describe,
    reasons,
)
from dagster_tidegate.pools import needs
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.text import plural


@dataclass(frozen=True)
class Effect:
    """Effect of a change on a campaign, or on one campaign run.

    Attributes:
        run: Name of the campaign run; None for the whole campaign.
        still_held_by: The live holds that cover it already, and still will.
        gains_hold: Whether the change places a hold that covers it.
        runs: Number of campaign runs by status. On a pause, those `processing` stop after the
            current record and those `pending` wait in the queue; on a resume, those `paused`
            resume.
        triggers: Schedules and sensors that are stopped or restored.
        queue_waits: Whether queued runs wait, because an op of the campaign has a held pool.
    """

    campaign: str
    run: str | None
    held_before: bool
    held_after: bool
    still_held_by: tuple[Hold, ...]
    gains_hold: bool
    runs: Mapping[RunStatus, int]
    triggers: tuple[str, ...]
    queue_waits: bool

    @property
    def changes(self) -> bool:
        """Whether it pauses or resumes."""
        return self.held_before != self.held_after


def effects(
    before: Situation, after: Situation, target: Target, run: CampaignRun | None = None
) -> Sequence[Effect]:
    """Return the effects of a change of the holds on `target`.

    Args:
        run: The campaign run, if that is the target and exists.
    """
    known = {hold.id for hold in before.holds}
    if target.kind is TargetKind.CAMPAIGN_RUN:
        live = [reason.hold for reason in why(after, target, run).reasons]
        return [
            Effect(
                campaign=target.name.partition("/")[0],
                run=target.name,
                held_before=why(before, target, run).paused,
                held_after=bool(live),
                still_held_by=tuple(hold for hold in live if hold.id in known),
                gains_hold=any(hold.id not in known for hold in live),
                runs={} if run is None else {run.status: 1},
                triggers=(),
                queue_waits=False,  # a pool can't tell runs apart
            )
        ]
    return [
        Effect(
            campaign=name,
            run=None,
            held_before=name in before.campaigns and bool(before.campaigns[name].holds),
            held_after=bool(campaign.holds),
            still_held_by=tuple(hold for hold in campaign.holds if hold.id in known),
            gains_hold=any(hold.id not in known for hold in campaign.holds),
            runs=campaign.runs,
            triggers=tuple(trigger.name for trigger in campaign.spec.triggers),
            queue_waits=_queue_waits(after, campaign, target),
        )
        for name, campaign in after.campaigns.items()
        if _concerns(target, campaign)
    ]


def in_words(effect: Effect, target: Target, breakers: Mapping[str, BreakerStatus]) -> str:
    """Return an effect of a change of the holds on `target` in words."""
    name = f"campaign {effect.campaign}" if effect.run is None else f"run {effect.run}"
    if not effect.changes:
        if effect.gains_hold:
            already = reasons(effect.still_held_by, breakers)
            return f"{name} is paused already: {already}; it will also wait for this hold"
        if effect.held_after and effect.still_held_by:
            return f"{name} stays paused: {describe(effect.still_held_by, breakers)}"
        return f"{name} stays {'paused' if effect.held_after else 'as it is'}"
    runs = {status: effect.runs.get(status, 0) for status in RunStatus}
    triggers = ", ".join(effect.triggers)
    if not effect.held_after:
        parts = [f"{name} resumes"]
        if count := runs[RunStatus.PAUSED]:
            parts.append(f"{plural(count, 'paused run')} will resume in order")
        if triggers:
            parts.append(f"restored: {triggers}")
        return "; ".join(parts)
    parts = [f"{name} pauses"]
    if count := runs[RunStatus.PROCESSING]:
        they = "it still needs" if count == 1 else "they still need"
        still = f" if {they} {target.name}" if target.kind is TargetKind.SERVICE else ""
        what = plural(count, "processing run")
        parts.append(f"{what} will stop after the current record{still}")
    if effect.queue_waits and (count := runs[RunStatus.PENDING]):
        parts.append(f"{plural(count, 'pending run')} will wait in the queue")
    elif not effect.queue_waits:
        reason = "a pool can't hold back one run" if effect.run else "no op has a pool for it"
        parts.append(f"queued runs start and pause at their first record ({reason})")
    if triggers:
        parts.append(f"stopped: {triggers}")
    return "; ".join(parts)


def if_held(
    situation: Situation, target: Target, run: CampaignRun | None = None
) -> Sequence[Effect]:
    """Return the effects that an operator's hold on `target` would have."""
    hold = Hold(0, target, HoldSource.OPERATOR, "", "", situation.now)
    return effects(situation, _with_holds(situation, [*situation.holds, hold]), target, run)


def if_released(
    situation: Situation, target: Target, run: CampaignRun | None = None, *, force: bool = False
) -> Sequence[Effect]:
    """Return the effects of a release of the operators' holds on `target`.

    Args:
        force: Also of the breaker's own.
    """
    kept = [
        hold
        for hold in situation.holds
        if hold.target != target or (hold.source is not HoldSource.OPERATOR and not force)
    ]
    return effects(situation, _with_holds(situation, kept), target, run)


def _with_holds(situation: Situation, holds: Sequence[Hold]) -> Situation:
    changed = replace(situation, holds=holds)
    campaigns = {
        name: replace(
            campaign,
            holds=covering(
                holds,
                situation.now,
                services=campaign.spec.blocked_by(changed.held_services),
                campaign=name,
            ),
        )
        for name, campaign in situation.campaigns.items()
    }
    return replace(changed, campaigns=campaigns)


def _concerns(target: Target, campaign: CampaignSituation) -> bool:
    if target.kind is TargetKind.EVERYTHING:
        return True
    if target.kind is TargetKind.SERVICE:
        return target.name in campaign.services
    return target.kind is TargetKind.CAMPAIGN and target.name == campaign.spec.name


def _queue_waits(situation: Situation, campaign: CampaignSituation, target: Target) -> bool:
    spec = campaign.spec
    pools = [needs(pool, situation.services, spec.adopted) for pool in spec.pools]
    if target.kind is TargetKind.CAMPAIGN:
        return any(pool.campaign == target.name for pool in pools)
    return any(pool.services or pool.campaign for pool in pools)
