"""Services and their breakers."""

from collections.abc import Mapping, Sequence
from typing import Annotated, cast

from fastapi import APIRouter, Query
from fastapi.routing import APIRoute
from starlette.convertors import PathConvertor, register_url_convertor

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.control import operations
from dagster_tidegate.control.models import (
    Held,
    HeldCampaigns,
    Page,
    Released,
    ReleasedCampaigns,
    ServiceChanged,
    ServiceDetails,
    ServiceOut,
    WindowOut,
    WindowsChanged,
)
from dagster_tidegate.gate.windows import planned
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.store import budgets, service_stats
from dagster_tidegate.store.budgets import Spending
from dagster_tidegate.store.history import Event
from dagster_tidegate.store.windows import BY_HAND
from dagster_tidegate.web.api import lookup
from dagster_tidegate.web.api.authentication import Viewer, require_force
from dagster_tidegate.web.api.changes import Change
from dagster_tidegate.web.api.context import AppContext, Context
from dagster_tidegate.web.api.models import (
    Cron,
    KeepClosed,
    NewHold,
    NewWindow,
    Release,
    Repaired,
    ServiceName,
)
from dagster_tidegate.web.api.paging import Paging
from dagster_tidegate.web.api.problems import Code, Problem, responses
from dagster_tidegate.web.api.routes.events import page_of_events

router = APIRouter(prefix="/services", tags=["services"])
_NOT_FOUND = responses(Code.SERVICE_NOT_FOUND)
_SERVICE = "/{service:path}"  # the name of a part has a slash


@router.get("")
def list_services(context: Context, _identity: Viewer, paging: Paging) -> Page[ServiceOut]:
    """List the services: the state of each breaker, and the holds on each."""
    with context.reading() as (_, situation):
        return paging.page_by_name(
            sorted(situation.services), str, lambda name: ServiceOut.of(situation, name)
        )


@router.get(_SERVICE + "/history", responses=_NOT_FOUND)
def list_service_history(
    context: Context, _identity: Viewer, service: ServiceName, paging: Paging
) -> Page[Event]:
    """List the events of a service, newest first."""
    with context.store.read() as conn:
        lookup.service(conn, context.store.now(conn), service)
        return page_of_events(conn, paging, name=service)


@router.get(_SERVICE + "/spending", responses=_NOT_FOUND)
def list_spending(
    context: Context,
    _identity: Viewer,
    service: ServiceName,
    limit: Annotated[int, Query(ge=1, le=1000, description="The maximum number of items.")] = 100,
) -> Sequence[Spending]:
    """List what campaigns have spent on a service, the latest period first."""
    with context.store.read() as conn:
        lookup.service(conn, context.store.now(conn), service)
        return budgets.history(conn, service, limit)


@router.post(_SERVICE + "/campaigns/hold", responses=_NOT_FOUND)
def hold_campaigns_of_service(change: Change, service: ServiceName, body: NewHold) -> HeldCampaigns:
    """Hold each campaign that needs a service; none, if you may not control one of them."""
    with change.begin() as (conn, now):
        holds = [
            change.place(Target(TargetKind.CAMPAIGN, spec.name), body)
            for spec in lookup.own_campaigns_of(conn, now, service, change.identity)
        ]
    return HeldCampaigns(dry_run=change.dry_run, holds=holds)


@router.post(_SERVICE + "/campaigns/release", responses=_NOT_FOUND)
def release_campaigns_of_service(change: Change, service: ServiceName) -> ReleasedCampaigns:
    """Release the holds of people on each campaign that needs a service, not on the service."""
    with change.begin() as (conn, now):
        released = [
            hold
            for spec in lookup.own_campaigns_of(conn, now, service, change.identity)
            for hold in change.let_go(Target(TargetKind.CAMPAIGN, spec.name))
        ]
    return ReleasedCampaigns(dry_run=change.dry_run, released=released)


@router.post(_SERVICE + "/hold", responses=_NOT_FOUND)
def hold_service(change: Change, service: ServiceName, body: NewHold) -> Held:
    """Pause every campaign that needs a service. If you hold it already, the hold is updated."""
    with change.begin() as (conn, now):
        return change.hold(lookup.service(conn, now, service), body)


@router.post(
    _SERVICE + "/release", responses=responses(Code.SERVICE_NOT_FOUND, Code.HELD_BY_BREAKER)
)
def release_service(change: Change, service: ServiceName, body: Release | None = None) -> Released:
    """Release the holds of people on a service. A breaker's own hold needs `force`."""
    force = require_force(change.identity, body)
    with change.begin() as (conn, now):
        target = lookup.service(conn, now, service)
        answer = change.release(target, force=force)
    return change.completed(answer, target)


@router.post(_SERVICE + "/repaired", responses=responses(Code.SERVICE_NOT_FOUND, Code.NOT_DENIED))
def service_is_repaired(
    change: Change, service: ServiceName, body: Repaired | None = None
) -> ServiceChanged:
    """Declare that the cause of a denial is repaired: the breaker permits a trial call.

    Refused if you may not control one of the campaigns that need the service.
    """
    with change.begin() as (conn, now):
        lookup.own_campaigns_of(conn, now, service, change.identity)
        with lookup.unknown_is(Code.SERVICE_NOT_FOUND, service):
            reason = (body or Repaired()).reason
            operations.repaired(conn, now, service, reason=reason, actor=change.identity.name)
        return change.service(service)


@router.put(_SERVICE + "/keep-closed", responses=_NOT_FOUND)
def keep_breaker_closed(change: Change, service: ServiceName, body: KeepClosed) -> ServiceChanged:
    """Close the breaker of a service and keep it from tripping, even if calls fail.

    Repeating it replaces the reason and the expiry. Without an expiry it lasts until the `DELETE`.
    Refused if you may not control one of the campaigns that need the service.
    """
    with change.begin() as (conn, now):
        lookup.own_campaigns_of(conn, now, service, change.identity)
        with lookup.unknown_is(Code.SERVICE_NOT_FOUND, service):
            operations.keep_closed(
                conn,
                now,
                service,
                reason=body.reason,
                actor=change.identity.name,
                until=body.ends_at(now),
            )
        return change.service(service)


@router.delete(_SERVICE + "/keep-closed", responses=_NOT_FOUND)
def let_breaker_trip(change: Change, service: ServiceName) -> ServiceChanged:
    """Let a breaker trip again that is kept closed; harmless if it is not.

    Refused if you may not control one of the campaigns that need the service.
    """
    with change.begin() as (conn, now):
        lookup.own_campaigns_of(conn, now, service, change.identity)
        with lookup.unknown_is(Code.SERVICE_NOT_FOUND, service):
            operations.let_trip(conn, now, service, actor=change.identity.name)
        return change.service(service)


@router.post(_SERVICE + "/windows", responses=_NOT_FOUND)
def add_window_to_service(change: Change, service: ServiceName, body: NewWindow) -> WindowsChanged:
    """Hold a service at recurring times, until they are removed.

    Adding the same times again replaces the reason.
    """
    with change.begin() as (conn, now):
        lookup.service(conn, now, service)
        values = (service, body.cron, body.timezone, body.duration_s, body.reason)
        try:
            window = planned(now, BY_HAND, *values)
        except ValueError as error:
            raise Problem(Code.INVALID, str(error)) from error
        operations.add_window(conn, now, window, actor=change.identity.name)
    return WindowsChanged(dry_run=change.dry_run, windows=[WindowOut.model_validate(window)])


@router.delete(_SERVICE + "/windows", responses=_NOT_FOUND)
def remove_windows_of_service(
    change: Change, service: ServiceName, cron: Cron = None
) -> WindowsChanged:
    """Remove the windows of a service that were added by hand; harmless if there are none.

    If the service is in one, it stays held until the end, unless the hold is released.
    """
    with change.begin() as (conn, now):
        lookup.service(conn, now, service)
        removed = operations.remove_windows(conn, now, service, cron, actor=change.identity.name)
    return WindowsChanged(
        dry_run=change.dry_run, windows=[WindowOut.model_validate(each) for each in removed]
    )


class _NameAlone(PathConvertor):
    """The name of a service, and none of the paths below it, which are all defined above."""

    below = "|".join(
        path.removeprefix(router.prefix + _SERVICE)
        for path in sorted({cast(APIRoute, route).path for route in router.routes})
        if path != router.prefix
    )
    regex = rf"(?!.*(?:{below})$).*"


register_url_convertor("service_alone", _NameAlone())


@router.get("/{service:service_alone}", responses=_NOT_FOUND)
def get_service(context: Context, _identity: Viewer, service: ServiceName) -> ServiceDetails:
    """Show a service: its breaker, holds, recent calls and policies."""
    with context.reading() as (conn, situation):
        lookup.service_in(situation, service)
        numbers = service_stats.read(conn, situation.now).get(service)
    return ServiceDetails.all_of(situation, service, numbers, policies(context, service))


def policies(context: AppContext, service: str) -> Mapping[str, ServicePolicy] | None:
    """Return the policy of a service in each code location; None if the server loads no code."""
    if context.open_workspace is None:
        return None
    by_service, _ = context.workspace().policies()
    return by_service.get(service, {})
