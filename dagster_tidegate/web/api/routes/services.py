"""Services and their breakers."""

from collections.abc import Mapping

from fastapi import APIRouter

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.control import operations
from dagster_tidegate.control.models import (
    Held,
    HeldCampaigns,
    HoldOut,
    Page,
    Released,
    ReleasedCampaigns,
    ServiceDetails,
    ServiceOut,
)
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.store import campaigns, service_stats
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.history import Event
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.api import cursor as cursors
from dagster_tidegate.web.api import holding, lookup
from dagster_tidegate.web.api.authentication import Operator, Viewer, require_owner
from dagster_tidegate.web.api.context import Context, Here
from dagster_tidegate.web.api.models import Cursor, DryRun, Limit, NewHold, Release, ServiceName
from dagster_tidegate.web.api.problems import Code, responses
from dagster_tidegate.web.api.routes.events import page_of_events

router = APIRouter(prefix="/services", tags=["services"])
_NOT_FOUND = responses(Code.SERVICE_NOT_FOUND)


@router.get("")
def list_services(
    here: Here, _identity: Viewer, limit: Limit = 100, cursor: Cursor = None
) -> Page[ServiceOut]:
    """List the services: the state of each breaker, and the holds on each."""
    with here.reading() as (_, seen):
        pass
    found, after = cursors.cut(sorted(seen.services), "services", cursor, limit, str)
    return Page(items=[ServiceOut.of(seen, name) for name in found], next_cursor=after)


@router.get("/{service}", responses=_NOT_FOUND)
def get_service(here: Here, _identity: Viewer, service: ServiceName) -> ServiceDetails:
    """Show one service: its breaker, its holds, what the fleet saw of it, and its policies."""
    with here.reading() as (conn, seen):
        lookup.service_in(seen, service)
        counted = service_stats.read(conn, seen.now).get(service)
    return ServiceDetails.all_of(seen, service, counted, _policies(here, service))


@router.post("/{service}/hold", responses=_NOT_FOUND)
def hold_service(
    here: Here, identity: Operator, service: ServiceName, body: NewHold, dry_run: DryRun = False
) -> Held:
    """Hold a service: every campaign that needs it pauses. Held by you already, it changes."""
    return holding.hold(
        here, identity, body, lambda conn: lookup.service(here, conn, service), dry_run=dry_run
    )


@router.post(
    "/{service}/release", responses=responses(Code.SERVICE_NOT_FOUND, Code.HELD_BY_BREAKER)
)
def release_service(
    here: Here,
    identity: Operator,
    service: ServiceName,
    body: Release | None = None,
    dry_run: DryRun = False,
) -> Released:
    """Release what people hold of a service. A breaker's own hold needs `force`."""
    return holding.release(
        here,
        identity,
        body or Release(),
        lambda conn: lookup.service(here, conn, service),
        dry_run=dry_run,
    )


@router.get("/{service}/history", responses=_NOT_FOUND)
def list_service_history(
    here: Here,
    _identity: Viewer,
    service: ServiceName,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[Event]:
    """List what happened to a service, the newest first."""
    with here.store.read() as conn:
        lookup.service(here, conn, service)
        return page_of_events(conn, name=service, limit=limit, cursor=cursor)


@router.post("/{service}/campaigns/hold", responses=_NOT_FOUND)
def hold_campaigns_of_service(
    here: Here, identity: Operator, service: ServiceName, body: NewHold, dry_run: DryRun = False
) -> HeldCampaigns:
    """Hold each campaign that needs a service, or none where you may not steer one of them."""
    with operations.writing(here.store, dry_run=dry_run) as conn:
        now = here.store.now(conn)
        made = [
            operations.hold(
                conn,
                now,
                Target(TargetKind.CAMPAIGN, spec.name),
                reason=body.reason,
                actor=identity.name,
                expires_at=holding.end_of(body, now),
            )
            for spec in _dependent(here, conn, identity, service)
        ]
    return HeldCampaigns(dry_run=dry_run, holds=[HoldOut.model_validate(hold) for hold in made])


@router.post("/{service}/campaigns/release", responses=_NOT_FOUND)
def release_campaigns_of_service(
    here: Here, identity: Operator, service: ServiceName, dry_run: DryRun = False
) -> ReleasedCampaigns:
    """Release what people hold of each campaign that needs a service; not the service itself."""
    with operations.writing(here.store, dry_run=dry_run) as conn:
        now = here.store.now(conn)
        released = [
            hold
            for spec in _dependent(here, conn, identity, service)
            for hold in operations.release(
                conn, now, Target(TargetKind.CAMPAIGN, spec.name), actor=identity.name
            )
        ]
    shown = [HoldOut.model_validate(hold) for hold in released]
    return ReleasedCampaigns(dry_run=dry_run, released=shown)


def _dependent(
    here: Context, conn: Connection, identity: Identity, service: str
) -> list[CampaignSpec]:
    """The campaigns that need a service; all of them may be steered."""
    lookup.service(here, conn, service)
    found = [spec for spec in campaigns.read(conn) if spec.services({service})]
    for spec in found:
        require_owner(identity, spec)
    return found


def _policies(here: Context, service: str) -> Mapping[str, ServicePolicy] | None:
    if here.open_workspace is None:
        return None
    policies, _ = here.open_workspace().policies()
    return policies.get(service, {})
