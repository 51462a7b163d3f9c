"""Campaign runs: one partition of a campaign each."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from dagster_tidegate.control import operations
from dagster_tidegate.control.models import Held, Page, Released, RunDetailsOut, RunOut, Started
from dagster_tidegate.control.why import why
from dagster_tidegate.holds import Target, TargetKind, run_name
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import run_details
from dagster_tidegate.store import runs as campaign_runs
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.run_details import ListedRun
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.api import lookup, starting
from dagster_tidegate.web.api.authentication import Operator, Viewer
from dagster_tidegate.web.api.changes import Change
from dagster_tidegate.web.api.context import Context
from dagster_tidegate.web.api.models import (
    CampaignName,
    NewHold,
    NewRun,
    Partition,
    StartRun,
)
from dagster_tidegate.web.api.once import Once
from dagster_tidegate.web.api.paging import Paging
from dagster_tidegate.web.api.problems import Code, Problem, responses

router = APIRouter(prefix="/campaigns/{campaign}/runs", tags=["campaign runs"])
_RUN = "/{partition:path}"
_NOT_FOUND = (Code.CAMPAIGN_NOT_FOUND, Code.CAMPAIGN_RUN_NOT_FOUND)


@router.get("", responses=responses(Code.CAMPAIGN_NOT_FOUND))
def list_runs(
    context: Context,
    _identity: Viewer,
    campaign: CampaignName,
    paging: Paging,
    status: Annotated[
        list[RunStatus] | None,
        Query(max_length=10, description="Only those with one of these statuses."),
    ] = None,
) -> Page[RunOut]:
    """List the runs of a campaign and their progress, the most recently created first."""
    with context.store.read() as conn:
        now = context.store.now(conn)
        lookup.campaign(conn, now, campaign)
        newest = campaign_runs.newest(
            conn,
            campaign=campaign,
            statuses=status or (),
            before=paging.before,
            limit=paging.limit + 1,
        )
        listed = run_details.with_progress(conn, now, newest)
    return paging.page(listed, lambda each: each.run.id, RunOut.of)


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
    context: Context, identity: Operator, once: Once, campaign: CampaignName, body: NewRun
) -> Response:
    """Create a campaign run, which stays pending until it is started.

    If the server has the code locations, the job must have the partition.
    """
    partition = body.partition
    with context.store.read() as conn:
        spec = lookup.own_campaign(conn, context.store.now(conn), campaign, identity)
        is_new = campaign_runs.find(conn, campaign, partition) is None
    if is_new and context.open_workspace is not None:
        context.workspace().check(campaign, partition, spec.location)
    with context.store.begin() as conn:
        now = context.store.now(conn)
        return once.within(
            conn, now, body, 201, lambda: _create(conn, now, identity, spec, partition)
        )


@router.get(_RUN, responses=responses(*_NOT_FOUND))
def get_run(
    context: Context,
    _identity: Viewer,
    campaign: CampaignName,
    partition: Partition,
    limit: Annotated[
        int, Query(ge=1, le=1000, description="The maximum number of records of each kind.")
    ] = 20,
) -> RunDetailsOut:
    """Show a campaign run: attempts, progress, and the records that are in doubt or failed."""
    with context.reading() as (conn, situation):
        run = lookup.run(conn, situation.now, campaign, partition)
        details = run_details.details(conn, situation.now, run, limit=limit)
    answer = why(situation, Target(TargetKind.CAMPAIGN_RUN, run.name), run)
    return RunDetailsOut.all_of(details, answer)


@router.post(
    _RUN + "/start",
    status_code=202,
    response_model=Started,
    responses=responses(*_NOT_FOUND, *starting.REFUSALS),
)
def start_run(
    context: Context,
    identity: Operator,
    once: Once,
    campaign: CampaignName,
    partition: Partition,
    body: StartRun | None = None,
) -> Response:
    """Start a campaign run that was created or has ended: put it into Dagster's queue."""
    options = body or StartRun()

    def start(run_id: str | None) -> Started:
        with context.store.read() as conn:
            lookup.run(conn, context.store.now(conn), campaign, partition)
        return starting.start(
            context, identity, campaign, partition, queue=options.queue, run_id=run_id
        )

    return once(options, 202, start)


@router.post(_RUN + "/pause", responses=responses(Code.NOT_PAUSABLE, *_NOT_FOUND))
def pause_run(change: Change, campaign: CampaignName, partition: Partition, body: NewHold) -> Held:
    """Pause a campaign run by holding it: it stops after the record in flight.

    If you hold it already, the hold is updated. A run that has ended can't be paused.
    """
    with change.begin() as (conn, now):
        run = lookup.own_run(conn, now, campaign, partition, change.identity)
        return change.pause(run, body)


@router.post(_RUN + "/resume", responses=responses(*_NOT_FOUND))
def resume_run(change: Change, campaign: CampaignName, partition: Partition) -> Released:
    """Release the holds of people on a campaign run. It resumes unless something else holds it."""
    target = Target(TargetKind.CAMPAIGN_RUN, run_name(campaign, partition))
    with change.begin() as (conn, now):
        lookup.own_run(conn, now, campaign, partition, change.identity)
        answer = change.release(target)
    return change.completed(answer, target)


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
    context: Context, identity: Operator, campaign: CampaignName, partition: Partition
) -> RunOut:
    """Cancel a campaign run and terminate its Dagster run.

    A processing run stops after the record in flight and becomes `cancelled` then. If the request
    fails, repeat it: that is harmless.
    """
    with context.store.read() as conn:
        now = context.store.now(conn)
        run = lookup.own_run(conn, now, campaign, partition, identity)
    # Even a run that waits for its start may have been launched by a person in Dagster's UI.
    without_dagster = run.waits_for_start and context.open_workspace is None
    workspace = None if without_dagster else context.workspace()
    operations.cancel(context.store, workspace, run, actor=identity.name)
    with context.store.read() as conn:
        now = context.store.now(conn)
        run = lookup.run(conn, now, campaign, partition)
        [listed] = run_details.with_progress(conn, now, [run])
    return RunOut.of(listed)


def _create(
    conn: Connection, now: datetime, identity: Identity, campaign: CampaignSpec, partition: str
) -> RunOut:
    created = campaign_runs.create(
        conn,
        now,
        campaign.name,
        partition,
        priority=campaign.priority,
        waits_for_start=True,
        actor=identity.name,
    )
    run = lookup.run(conn, now, campaign.name, partition)
    if not created:
        detail = f"{run.name} exists already and is {run.status}"
        raise Problem(Code.CAMPAIGN_RUN_EXISTS, detail, name=run.name, status_of_run=run.status)
    return RunOut.of(ListedRun(run, ()))
