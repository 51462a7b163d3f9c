"""Campaigns: what they need, how they are doing, and their control."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from dagster_tidegate.control.models import (
    CampaignDetails,
    CampaignOut,
    Held,
    Page,
    Released,
    Started,
    VerdictOut,
)
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.statuses import CampaignStatus
from dagster_tidegate.store import campaign_stats
from dagster_tidegate.store.campaign_stats import CampaignStats
from dagster_tidegate.web.api import lookup, starting
from dagster_tidegate.web.api.authentication import Operator, Viewer, require_force
from dagster_tidegate.web.api.changes import Change
from dagster_tidegate.web.api.context import Context
from dagster_tidegate.web.api.models import (
    CampaignName,
    NewHold,
    PartName,
    Release,
    StartCampaign,
)
from dagster_tidegate.web.api.once import Once
from dagster_tidegate.web.api.paging import Paging
from dagster_tidegate.web.api.problems import Code, responses

router = APIRouter(prefix="/campaigns", tags=["campaigns"])
_NOT_FOUND = responses(Code.CAMPAIGN_NOT_FOUND)


@router.get("")
def list_campaigns(
    context: Context,
    _identity: Viewer,
    paging: Paging,
    status: Annotated[
        list[CampaignStatus] | None,
        Query(max_length=10, description="Only those with one of these statuses."),
    ] = None,
    service: Annotated[PartName | None, Query(description="Only those that need it.")] = None,
) -> Page[CampaignOut]:
    """List the campaigns by name."""
    with context.reading() as (_, situation):
        campaigns = [
            campaign
            for _, campaign in sorted(situation.campaigns.items())
            if (not status or campaign.status in status)
            and (service is None or service in campaign.services)
        ]
    return paging.page_by_name(campaigns, lambda each: each.spec.name, CampaignOut.of)


@router.get("/{campaign}", responses=_NOT_FOUND)
def get_campaign(context: Context, _identity: Viewer, campaign: CampaignName) -> CampaignDetails:
    """Show a campaign: what it needs, its runs, and why it is paused if it is."""
    with context.reading() as (_, situation):
        return CampaignDetails.all_of(situation, lookup.campaign_in(situation, campaign))


@router.get("/{campaign}/stats", responses=_NOT_FOUND)
def get_campaign_stats(
    context: Context, _identity: Viewer, campaign: CampaignName
) -> CampaignStats:
    """Show the statistics of a campaign: its runs, their attempts and their records."""
    with context.store.read() as conn:
        now = context.store.now(conn)
        lookup.campaign(conn, now, campaign)
        return campaign_stats.read(conn, now, campaign)


@router.post("/{campaign}/hold", responses=_NOT_FOUND)
def hold_campaign(change: Change, campaign: CampaignName, body: NewHold) -> Held:
    """Pause a campaign by holding it. If you hold it already, the hold is updated."""
    with change.begin() as (conn, now):
        lookup.own_campaign(conn, now, campaign, change.identity)
        return change.hold(Target(TargetKind.CAMPAIGN, campaign), body)


@router.post("/{campaign}/release", responses=_NOT_FOUND)
def release_campaign(
    change: Change, campaign: CampaignName, body: Release | None = None
) -> Released:
    """Release the holds of people on a campaign. It resumes unless something else holds it."""
    force = require_force(change.identity, body)
    target = Target(TargetKind.CAMPAIGN, campaign)
    with change.begin() as (conn, now):
        lookup.own_campaign(conn, now, campaign, change.identity)
        answer = change.release(target, force=force)
    return change.completed(answer, target)


@router.post(
    "/{campaign}/start",
    status_code=202,
    response_model=Started,
    responses=responses(Code.CAMPAIGN_NOT_FOUND, *starting.REFUSALS),
)
def start_campaign(
    context: Context,
    identity: Operator,
    once: Once,
    campaign: CampaignName,
    body: StartCampaign | None = None,
) -> Response:
    """Start a run of a campaign: put it into Dagster's queue."""
    options = body or StartCampaign()
    return once(
        options,
        202,
        lambda run_id: starting.start(
            context, identity, campaign, options.partition, queue=options.queue, run_id=run_id
        ),
    )


@router.post(
    "/{campaign}/start/validate",
    responses=responses(Code.CAMPAIGN_NOT_FOUND, Code.NOT_LAUNCHABLE, Code.DAGSTER_UNAVAILABLE),
)
def validate_start(
    context: Context, _identity: Operator, campaign: CampaignName, body: StartCampaign | None = None
) -> VerdictOut:
    """Say whether a run of a campaign could start, and if not, why. Changes nothing.

    If the server has the code locations, it also checks the partition.
    """
    return starting.validate(context, campaign, body or StartCampaign())
