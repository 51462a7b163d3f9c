"""What a change of the holds does to the campaigns. Pure: two situations go in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dagster_tidegate.control.situation import CampaignSituation, Situation
from dagster_tidegate.control.why import why
from dagster_tidegate.holds import Hold, Target, TargetKind
from dagster_tidegate.pools import needs
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store.runs import CampaignRun


@dataclass(frozen=True)
class Effect:
    """What becomes of a campaign, or of one campaign run.

    Attributes:
        campaign: Name of the campaign.
        run: Name of the campaign run; None where it is about the whole campaign.
        held_before: Whether a hold covered it.
        held_after: Whether one will.
        still_held_by: The live holds that will cover it besides those that the change is about.
        runs: How many campaign runs have each status. Those `processing` pause after the record
            in hand, those `pending` wait in the queue, those `paused` resume.
        triggers: Schedules and sensors that stop, or come back as they were.
        queue_waits: Whether queued runs wait: an op of the campaign has a pool that is held.
    """

    campaign: str
    run: str | None
    held_before: bool
    held_after: bool
    still_held_by: tuple[Hold, ...]
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
    """Return what a change does to all that it is about.

    Args:
        before: The situation before.
        after: The situation after.
        target: What is held or released.
        run: The campaign run, where that is the target and it is there already.
    """
    if target.kind is TargetKind.CAMPAIGN_RUN:
        covering = why(after, target, run).reasons
        return [
            Effect(
                campaign=target.name.partition("/")[0],
                run=target.name,
                held_before=why(before, target, run).paused,
                held_after=bool(covering),
                still_held_by=tuple(r.hold for r in covering if r.hold.target != target),
                runs={} if run is None else {run.status: 1},
                triggers=(),
                queue_waits=False,  # a pool can't tell one run from another
            )
        ]
    return [
        Effect(
            campaign=name,
            run=None,
            held_before=name in before.campaigns and bool(before.campaigns[name].holds),
            held_after=bool(campaign.holds),
            still_held_by=tuple(hold for hold in campaign.holds if hold.target != target),
            runs=campaign.runs,
            triggers=tuple(trigger.name for trigger in campaign.spec.triggers),
            queue_waits=_queue_waits(after, campaign, target),
        )
        for name, campaign in after.campaigns.items()
        if _is_about(target, campaign)
    ]


def _is_about(target: Target, campaign: CampaignSituation) -> bool:
    if target.kind is TargetKind.EVERYTHING:
        return True
    if target.kind is TargetKind.SERVICE:
        return target.name in campaign.services
    return target.kind is TargetKind.CAMPAIGN and target.name == campaign.spec.name


def _queue_waits(seen: Situation, campaign: CampaignSituation, target: Target) -> bool:
    wants = [needs(pool, seen.services) for pool in campaign.spec.pools]
    if target.kind is TargetKind.CAMPAIGN:
        return any(need.campaign == target.name for need in wants)
    return any(need.services or need.campaign for need in wants)
