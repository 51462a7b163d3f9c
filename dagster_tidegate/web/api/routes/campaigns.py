"""Campaigns: what they need, and how they are."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
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
from dagster_tidegate.store.campaign_stats import CampaignNumbers
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.idempotency import Given
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.api import cursor as cursors
from dagster_tidegate.web.api import holding, lookup, starting
from dagster_tidegate.web.api.authentication import Operator, Viewer, require_owner
from dagster_tidegate.web.api.context import Context, Here
from dagster_tidegate.web.api.models import (
    CampaignName,
    Cursor,
    DryRun,
    IdempotencyKey,
    Limit,
    Name,
    NewHold,
    Release,
    StartCampaign,
)
from dagster_tidegate.web.api.once import once
from dagster_tidegate.web.api.problems import Code, responses

router = APIRouter(prefix="/campaigns", tags=["campaigns"])
_NOT_FOUND = responses(Code.CAMPAIGN_NOT_FOUND)


@router.get("")
def list_campaigns(
    here: Here,
    _identity: Viewer,
    status: Annotated[
        list[CampaignStatus] | None, Query(max_length=10, description="Only those that have one.")
    ] = None,
    service: Annotated[Name | None, Query(description="Only those that need it.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[CampaignOut]:
    """List the campaigns, by name."""
    with here.reading() as (_, seen):
        wanted = [
            campaign
            for _, campaign in sorted(seen.campaigns.items())
            if (not status or campaign.status in status)
            and (service is None or service in campaign.services)
        ]
    found, after = cursors.cut(
        wanted, "campaigns", cursor, limit, lambda campaign: campaign.spec.name
    )
    return Page(items=[CampaignOut.of(campaign) for campaign in found], next_cursor=after)


@router.get("/{campaign}", responses=_NOT_FOUND)
def get_campaign(here: Here, _identity: Viewer, campaign: CampaignName) -> CampaignDetails:
    """Show one campaign: what it needs, how its runs are, and why it is paused if it is."""
    with here.reading() as (_, seen):
        pass
    found = lookup.campaign_in(seen, campaign)
    return CampaignDetails.all_of(seen, found)


@router.get("/{campaign}/stats", responses=_NOT_FOUND)
def get_campaign_stats(here: Here, _identity: Viewer, campaign: CampaignName) -> CampaignNumbers:
    """Show a campaign in numbers: its runs, their attempts and their records."""
    with here.store.read() as conn:
        lookup.campaign(here, conn, campaign)
        return campaign_stats.read(conn, here.store.now(conn), campaign)


@router.post("/{campaign}/hold", responses=_NOT_FOUND)
def hold_campaign(
    here: Here, identity: Operator, campaign: CampaignName, body: NewHold, dry_run: DryRun = False
) -> Held:
    """Pause a campaign by holding it. Held by you already, the hold changes."""
    return holding.hold(here, identity, body, _steered(here, identity, campaign), dry_run=dry_run)


@router.post("/{campaign}/release", responses=_NOT_FOUND)
def release_campaign(
    here: Here,
    identity: Operator,
    campaign: CampaignName,
    body: Release | None = None,
    dry_run: DryRun = False,
) -> Released:
    """Release what people hold of a campaign: it goes on, unless something else holds it."""
    return holding.release(
        here, identity, body or Release(), _steered(here, identity, campaign), dry_run=dry_run
    )


@router.post(
    "/{campaign}/start",
    status_code=202,
    response_model=Started,
    responses=responses(Code.CAMPAIGN_NOT_FOUND, *starting.REFUSALS),
)
def start_campaign(
    here: Here,
    request: Request,
    identity: Operator,
    campaign: CampaignName,
    body: StartCampaign | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Start a run of a campaign: put it into Dagster's queue."""
    asked = body or StartCampaign()

    def make(id_: str | None) -> Given:
        return Given(
            202,
            starting.start(
                here, identity, campaign, asked.partition, queue=asked.queue, run_id=id_
            ),
        )

    return once(here.store, request, identity, idempotency_key, asked, make)


@router.post(
    "/{campaign}/start/validate",
    responses=responses(
        Code.CAMPAIGN_NOT_FOUND,
        Code.NOT_LAUNCHABLE,
        Code.DAGSTER_UNAVAILABLE,
    ),
)
def validate_start(
    here: Here, _identity: Operator, campaign: CampaignName, body: StartCampaign | None = None
) -> VerdictOut:
    """Say whether a run of a campaign could start, and why not if not. Nothing is changed.

    Where the server knows the code, the partition is looked up too.
    """
    return starting.validate(here, campaign, body or StartCampaign())


def _steered(here: Context, identity: Identity, campaign: str) -> holding.Check:
    """Return what finds a campaign, and refuses who may not steer it."""

    def check(conn: Connection) -> Target:
        require_owner(identity, lookup.campaign(here, conn, campaign))
        return Target(TargetKind.CAMPAIGN, campaign)

    return check
