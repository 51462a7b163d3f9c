"""Campaign runs: one partition of a campaign each."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from dagster_tidegate.control import operations
from dagster_tidegate.control.models import Held, Page, Released, RunDetailsOut, RunOut, Started
from dagster_tidegate.control.why import why
from dagster_tidegate.holds import Hold, Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import run_details
from dagster_tidegate.store import runs as stored
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.idempotency import Given
from dagster_tidegate.store.run_details import ListedRun
from dagster_tidegate.store.runs import CampaignRun
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
    NewHold,
    NewRun,
    Partition,
    Release,
    StartRun,
)
from dagster_tidegate.web.api.once import once
from dagster_tidegate.web.api.problems import Code, Problem, responses

router = APIRouter(prefix="/campaigns/{campaign}/runs", tags=["campaign runs"])
_RUN = "/{partition:path}"
_NOT_FOUND = (Code.CAMPAIGN_NOT_FOUND, Code.CAMPAIGN_RUN_NOT_FOUND)


@router.get("", responses=responses(Code.CAMPAIGN_NOT_FOUND))
def list_runs(
    here: Here,
    _identity: Viewer,
    campaign: CampaignName,
    status: Annotated[
        list[RunStatus] | None, Query(max_length=10, description="Only those that have one.")
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[RunOut]:
    """List the runs of a campaign and how far each is, the one created last first."""
    before = cursors.decode(cursor, "runs", int)
    with here.store.read() as conn:
        lookup.campaign(here, conn, campaign)
        found = run_details.listed(
            conn,
            here.store.now(conn),
            campaign=campaign,
            statuses=status or (),
            before=before,
            limit=limit + 1,
        )
    page, after = cursors.page(found, "runs", limit, lambda each: each.run.id)
    return Page(items=[RunOut.of(each) for each in page], next_cursor=after)


@router.post(
    "",
    status_code=201,
    response_model=RunOut,
    responses=responses(
        Code.CAMPAIGN_NOT_FOUND,
        Code.CAMPAIGN_RUN_EXISTS,
        Code.IDEMPOTENCY_KEY_IN_USE,
        Code.NOT_LAUNCHABLE,
        Code.IDEMPOTENCY_KEY_REUSED,
        Code.DAGSTER_UNAVAILABLE,
    ),
)
def create_run(
    here: Here,
    request: Request,
    identity: Operator,
    campaign: CampaignName,
    body: NewRun,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a campaign run: it is pending until it is started, held or not.

    Where the server knows the code, the partition has to be one of the job's.
    """

    def make(_id: str | None) -> Given:
        return Given(201, _created(here, identity, campaign, body.partition))

    return once(here.store, request, identity, idempotency_key, body, make)


@router.get(_RUN, responses=responses(*_NOT_FOUND))
def get_run(
    here: Here,
    _identity: Viewer,
    campaign: CampaignName,
    partition: Partition,
    limit: Annotated[
        int, Query(ge=1, le=1000, description="How many records of each kind at most.")
    ] = 20,
) -> RunDetailsOut:
    """Show a campaign run: attempts, progress, and the records that are in doubt or failed."""
    with here.reading() as (conn, seen):
        _, run = lookup.run(here, conn, campaign, partition)
        details = run_details.details(conn, seen.now, run, limit=limit)
    answer = why(seen, Target(TargetKind.CAMPAIGN_RUN, run.name), run)
    return RunDetailsOut.all_of(details, answer)


@router.post(
    _RUN + "/start",
    status_code=202,
    response_model=Started,
    responses=responses(*_NOT_FOUND, *starting.REFUSALS),
)
def start_run(
    here: Here,
    request: Request,
    identity: Operator,
    campaign: CampaignName,
    partition: Partition,
    body: StartRun | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Start a campaign run that was created, or has ended: put it into Dagster's queue."""
    asked = body or StartRun()

    def make(id_: str | None) -> Given:
        with here.store.read() as conn:
            lookup.run(here, conn, campaign, partition)
        return Given(
            202, starting.start(here, identity, campaign, partition, queue=asked.queue, run_id=id_)
        )

    return once(here.store, request, identity, idempotency_key, asked, make)


@router.post(_RUN + "/pause", responses=responses(Code.NOT_PAUSABLE, *_NOT_FOUND))
def pause_run(
    here: Here,
    identity: Operator,
    campaign: CampaignName,
    partition: Partition,
    body: NewHold,
    dry_run: DryRun = False,
) -> Held:
    """Pause a campaign run by holding it: it stops after the record in hand.

    Paused by you already, the hold changes. One that has ended can't be paused.
    """

    def place(conn: Connection, now: datetime) -> Hold:
        return operations.pause(
            conn,
            now,
            _steered_run(here, conn, identity, campaign, partition),
            reason=body.reason,
            actor=identity.name,
            expires_at=holding.end_of(body, now),
        )

    check = _steered(here, identity, campaign, partition)
    return holding.placed(here, check, place, dry_run=dry_run)


@router.post(_RUN + "/resume", responses=responses(*_NOT_FOUND))
def resume_run(
    here: Here,
    identity: Operator,
    campaign: CampaignName,
    partition: Partition,
    dry_run: DryRun = False,
) -> Released:
    """Release what people hold of a campaign run: it goes on, unless something else holds it."""
    check = _steered(here, identity, campaign, partition)
    return holding.release(here, identity, Release(), check, dry_run=dry_run)


@router.post(
    _RUN + "/cancel",
    status_code=202,
    responses=responses(
        *_NOT_FOUND,
        Code.TRANSITION_NOT_ALLOWED,
        Code.CHANGED_MEANWHILE,
        Code.DAGSTER_UNAVAILABLE,
    ),
)
def cancel_run(
    here: Here, identity: Operator, campaign: CampaignName, partition: Partition
) -> RunOut:
    """Cancel a campaign run, and end its Dagster run.

    One that is processing ends after the record in hand, and is `cancelled` then. Repeat it where
    it fails: what is cancelled stays so.
    """
    with here.store.read() as conn:
        shape, run = lookup.run(here, conn, campaign, partition)
    require_owner(identity, shape)
    # Dagster is asked although it waits for its start: a person may have launched it there.
    needless = run.waits_for_start and here.open_workspace is None
    code = None if needless else here.workspace()
    with lookup.refusals(), lookup.launching():
        operations.cancel(here.store, code, run, actor=identity.name)
    with here.store.read() as conn:
        _, run = lookup.run(here, conn, campaign, partition)
        [listed] = run_details.with_progress(conn, here.store.now(conn), [run])
    return RunOut.of(listed)


def _created(here: Context, identity: Identity, campaign: str, partition: str) -> RunOut:
    with here.store.read() as conn:
        shape = lookup.campaign(here, conn, campaign)
    require_owner(identity, shape)
    if here.open_workspace is not None:
        with lookup.launching():
            here.open_workspace().check(campaign, partition, shape.location)
    with here.store.begin() as conn:
        created = stored.create(
            conn,
            here.store.now(conn),
            campaign,
            partition,
            priority=shape.priority,
            waits_for_start=True,
            actor=identity.name,
        )
        _, run = lookup.run(here, conn, campaign, partition)
    if not created:
        detail = f"{run.name} is there already, and is {run.status}"
        raise Problem(Code.CAMPAIGN_RUN_EXISTS, detail, name=run.name, status_of_run=run.status)
    return RunOut.of(ListedRun(run, ()))


def _steered(here: Context, identity: Identity, campaign: str, partition: str) -> holding.Check:
    """Return what finds a campaign run, and refuses who may not steer its campaign."""

    def check(conn: Connection) -> Target:
        run = _steered_run(here, conn, identity, campaign, partition)
        return Target(TargetKind.CAMPAIGN_RUN, run.name)

    return check


def _steered_run(
    here: Context, conn: Connection, identity: Identity, campaign: str, partition: str
) -> CampaignRun:
    shape, run = lookup.run(here, conn, campaign, partition)
    require_owner(identity, shape)
    return run
