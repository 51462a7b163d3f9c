"""Holds: the reasons why something may not run."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from dagster_tidegate.control import operations
from dagster_tidegate.control.models import Held, HoldOut, Page
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.store import campaigns, holds
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.idempotency import Given
from dagster_tidegate.web.access.identity import Identity, Role
from dagster_tidegate.web.api import cursor as cursors
from dagster_tidegate.web.api import holding, lookup
from dagster_tidegate.web.api.authentication import Operator, Viewer, require_owner, require_role
from dagster_tidegate.web.api.context import Here
from dagster_tidegate.web.api.models import (
    Cursor,
    DryRun,
    IdempotencyKey,
    Limit,
    NewHoldOnTarget,
    Release,
)
from dagster_tidegate.web.api.once import once
from dagster_tidegate.web.api.problems import Code, responses

router = APIRouter(prefix="/holds", tags=["holds"])

HoldId = Annotated[int, Path(ge=1, lt=2**63, description="Number of a hold.")]


@router.get("")
def list_holds(
    here: Here,
    _identity: Viewer,
    target_kind: Annotated[TargetKind | None, Query(description="Only those on such.")] = None,
    source: Annotated[HoldSource | None, Query(description="Only those of this source.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[HoldOut]:
    """List the live holds, the newest first."""
    before = cursors.decode(cursor, "holds", int)
    with here.store.read() as conn:
        live = holds.live(conn, here.store.now(conn))
    found = sorted(
        (
            hold
            for hold in live
            if target_kind in (None, hold.target.kind)
            and source in (None, hold.source)
            and (before is None or hold.id < before)
        ),
        key=lambda hold: -hold.id,
    )
    page, after = cursors.page(found, "holds", limit, lambda hold: hold.id)
    return Page(items=[HoldOut.model_validate(hold) for hold in page], next_cursor=after)


@router.get("/{hold}", responses=responses(Code.HOLD_NOT_FOUND))
def get_hold(here: Here, _identity: Viewer, hold: HoldId) -> HoldOut:
    """Show one hold, live or released."""
    with here.store.read() as conn:
        return HoldOut.model_validate(lookup.hold(conn, hold))


@router.post(
    "",
    response_model=Held,
    responses=responses(Code.IDEMPOTENCY_KEY_IN_USE, Code.IDEMPOTENCY_KEY_REUSED),
)
def place_hold(
    here: Here,
    request: Request,
    identity: Operator,
    body: NewHoldOnTarget,
    dry_run: DryRun = False,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Hold anything, known or not: a partition may be held before it has a run.

    Held by you already, the hold gets the new reason and end.
    """

    def check(conn: Connection) -> Target:
        _require_steering(conn, identity, body.target)
        return body.target

    def make(_id: str | None) -> Given:
        return Given(200, holding.hold(here, identity, body, check, dry_run=dry_run))

    return once(here.store, request, identity, idempotency_key, body, make)


@router.post("/{hold}/release", responses=responses(Code.HOLD_NOT_FOUND, Code.HELD_BY_BREAKER))
def release_hold(
    here: Here, identity: Operator, hold: HoldId, body: Release | None = None
) -> HoldOut:
    """Release one hold. Released already, it is shown as it is."""
    force = body is not None and body.force
    if force:
        require_role(identity, Role.ADMIN)
    with lookup.refusals(), here.store.begin() as conn:
        found = lookup.hold(conn, hold)
        _require_steering(conn, identity, found.target)
        now = here.store.now(conn)
        operations.release_one(conn, now, found, actor=identity.name, force=force)
        return HoldOut.model_validate(lookup.hold(conn, hold))


def _require_steering(conn: Connection, identity: Identity, target: Target) -> None:
    """Refuse who may not steer the campaign that a target is, or is of."""
    if target.kind in (TargetKind.CAMPAIGN, TargetKind.CAMPAIGN_RUN):
        shape = campaigns.find(conn, target.name.partition("/")[0])
        if shape is not None:
            require_owner(identity, shape)
