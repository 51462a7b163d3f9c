"""Holds: the reasons why something may not run."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from dagster_tidegate.control import operations
from dagster_tidegate.control.models import Held, HoldOut, Page
from dagster_tidegate.holds import HoldSource, TargetKind
from dagster_tidegate.store import holds
from dagster_tidegate.web.api import lookup
from dagster_tidegate.web.api.authentication import Operator, Viewer, require_force
from dagster_tidegate.web.api.changes import Change
from dagster_tidegate.web.api.context import Context
from dagster_tidegate.web.api.models import NewHoldOnTarget, Release
from dagster_tidegate.web.api.once import Once
from dagster_tidegate.web.api.paging import Paging
from dagster_tidegate.web.api.problems import Code, responses

router = APIRouter(prefix="/holds", tags=["holds"])

HoldId = Annotated[int, Path(ge=1, lt=2**63, description="Id of a hold.")]


@router.get("")
def list_holds(
    context: Context,
    _identity: Viewer,
    paging: Paging,
    target_kind: Annotated[
        TargetKind | None, Query(description="Only those on targets of this kind.")
    ] = None,
    source: Annotated[HoldSource | None, Query(description="Only those of this source.")] = None,
) -> Page[HoldOut]:
    """List the live holds, newest first."""
    before = paging.before
    with context.store.read() as conn:
        live = holds.live(conn, context.store.now(conn))
    listed = sorted(
        (
            hold
            for hold in live
            if target_kind in (None, hold.target.kind)
            and source in (None, hold.source)
            and (before is None or hold.id < before)
        ),
        key=lambda hold: -hold.id,
    )
    return paging.page(listed, lambda hold: hold.id, HoldOut.model_validate)


@router.get("/{hold}", responses=responses(Code.HOLD_NOT_FOUND))
def get_hold(context: Context, _identity: Viewer, hold: HoldId) -> HoldOut:
    """Show a hold, live or released."""
    with context.store.read() as conn:
        return HoldOut.model_validate(lookup.hold(conn, hold))


@router.post(
    "",
    response_model=Held,
    responses=responses(Code.IDEMPOTENCY_KEY_IN_USE, Code.IDEMPOTENCY_KEY_REUSED),
)
def place_hold(change: Change, once: Once, body: NewHoldOnTarget) -> Response:
    """Hold any target, even one that does not exist yet, such as a partition without a run.

    If you hold it already, the hold gets the new reason and expiry.
    """

    def place() -> Held:
        lookup.require_control(change.conn, change.identity, body.target)
        return change.hold(body.target, body)

    with change.begin() as (conn, now):
        return once.within(conn, now, body, 200, place)


@router.post("/{hold}/release", responses=responses(Code.HOLD_NOT_FOUND, Code.HELD_BY_BREAKER))
def release_hold(
    context: Context, identity: Operator, hold: HoldId, body: Release | None = None
) -> HoldOut:
    """Release a hold. One that was released already stays as it is."""
    force = require_force(identity, body)
    with context.store.begin() as conn:
        stored = lookup.hold(conn, hold)
        lookup.require_control(conn, identity, stored.target)
        now = context.store.now(conn)
        operations.release_one(conn, now, stored, actor=identity.name, force=force)
        return HoldOut.model_validate(lookup.hold(conn, hold))
