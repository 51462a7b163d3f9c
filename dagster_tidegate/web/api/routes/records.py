"""Records of a campaign run: what failed and why, and doing it again."""

import json
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from dagster_tidegate.control import records as control
from dagster_tidegate.control.models import (
    ErrorGroupOut,
    Page,
    RecordOut,
    RecordsMarked,
    RecordsSkipped,
    RecordSummary,
)
from dagster_tidegate.control.operations import writing
from dagster_tidegate.control.starting import verdict
from dagster_tidegate.control.why import why
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.store import records
from dagster_tidegate.store.records import FoundRecord, RecordState, Selection
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.api import lookup
from dagster_tidegate.web.api.authentication import Operator, Viewer, require_owner
from dagster_tidegate.web.api.context import AppContext, Context
from dagster_tidegate.web.api.models import (
    CampaignName,
    DryRun,
    Moment,
    Partition,
    RetryRecords,
    SkipRecords,
)
from dagster_tidegate.web.api.once import Once
from dagster_tidegate.web.api.paging import Paging
from dagster_tidegate.web.api.problems import Code, Problem, responses
from dagster_tidegate.web.api.starting import REFUSALS

router = APIRouter(prefix="/campaigns/{campaign}/runs/{partition:path}/records", tags=["records"])
_NOT_FOUND = (Code.CAMPAIGN_NOT_FOUND, Code.CAMPAIGN_RUN_NOT_FOUND)
States = Annotated[
    list[RecordState] | None,
    Query(alias="status", max_length=10, description="Only those with one of these statuses."),
]
ErrorText = Annotated[
    str | None,
    Query(min_length=1, max_length=1000, description="Only those with this in their error."),
]
Since = Annotated[Moment | None, Query(description="Only those that were written since then.")]


@router.get("", responses=responses(*_NOT_FOUND))
def list_records(
    context: Context,
    _identity: Viewer,
    campaign: CampaignName,
    partition: Partition,
    paging: Paging,
    status: States = None,
    error: ErrorText = None,
    since: Since = None,
) -> Page[RecordOut]:
    """List the records of a campaign run by op and key, with their errors and tries."""
    selection = Selection(status or (), error, (), since)
    after = paging.after_name
    with context.store.read() as conn:
        now = context.store.now(conn)
        run = lookup.run(conn, now, campaign, partition)
        place = None if after is None else _place(after)
        rows = records.read(conn, now, run, selection, after=place, limit=paging.limit + 1)
    return paging.page(rows, _name, RecordOut.model_validate)


@router.get("/summary", responses=responses(*_NOT_FOUND))
def summarize_records(
    context: Context,
    _identity: Viewer,
    campaign: CampaignName,
    partition: Partition,
    status: States = None,
    error: ErrorText = None,
    since: Since = None,
) -> RecordSummary:
    """Count the records of a campaign run, by status and by what the service said."""
    selection = Selection(status or (), error, (), since)
    with context.store.read() as conn:
        now = context.store.now(conn)
        run = lookup.run(conn, now, campaign, partition)
        groups = records.summary(conn, now, run, selection)
    return RecordSummary(run=run.name, groups=[ErrorGroupOut.model_validate(g) for g in groups])


@router.post(
    "/retry",
    status_code=202,
    response_model=RecordsMarked,
    responses=responses(*_NOT_FOUND, Code.NO_RECORDS, *REFUSALS),
)
def retry_records(
    context: Context,
    identity: Operator,
    once: Once,
    campaign: CampaignName,
    partition: Partition,
    body: RetryRecords,
    dry_run: DryRun = False,
) -> Response:
    """Mark records for a retry, and queue one Dagster run that processes only these.

    Without `keys` and `status`, only failed records are selected. They keep their idempotency keys.
    """

    def make(run_id: str | None) -> RecordsMarked:
        return retry(context, identity, campaign, partition, body, dry_run, run_id)

    return once(body, 202, make)


@router.post("/skip", responses=responses(*_NOT_FOUND, Code.NO_RECORDS, Code.UNDER_WAY))
def skip_records(
    context: Context,
    identity: Operator,
    campaign: CampaignName,
    partition: Partition,
    body: SkipRecords,
    dry_run: DryRun = False,
) -> RecordsSkipped:
    """Mark records as needing no result, so that the campaign run can complete without them.

    Without `keys` and `status`, only failed records are selected. Records that are done stay done.
    """
    with writing(context.store, dry_run=dry_run) as conn:
        now = context.store.now(conn)
        run = lookup.own_run(conn, now, campaign, partition, identity)
        skipped = control.skip(
            conn, context.store, run, body.selection, reason=body.reason, actor=identity.name
        )
    return RecordsSkipped(run=run.name, dry_run=dry_run, skipped=skipped)


def retry(
    context: AppContext,
    identity: Identity,
    campaign: str,
    partition: str,
    body: RetryRecords,
    dry_run: bool,
    run_id: str | None,
) -> RecordsMarked:
    """Mark records for a retry, and queue a Dagster run that processes only these.

    Args:
        run_id: The id for its Dagster run, which makes a repeated launch harmless. None: any.

    Raises:
        Problem: If they can't be done again.
    """
    with context.reading() as (conn, situation):
        spec = lookup.campaign_in(situation, campaign).spec
        require_owner(identity, spec)
        run = lookup.run(conn, situation.now, campaign, partition)
        decision = verdict(why(situation, Target(TargetKind.CAMPAIGN_RUN, run.name), run))
    if run_id is not None and context.has_run(run_id):
        with context.store.read() as conn:
            marked = control.marked_for(conn, run, run_id)
        return RecordsMarked(run=run.name, dry_run=dry_run, marked=marked, dagster_run=run_id)
    again = control.retry(
        context.store,
        None if dry_run else context.workspace(),
        spec,
        run,
        body.selection,
        decision,
        reason=body.reason,
        actor=identity.name,
        dry_run=dry_run,
        run_id=run_id,
    )
    return RecordsMarked(
        run=run.name, dry_run=dry_run, marked=again.marked, dagster_run=again.dagster_run
    )


def _name(record: FoundRecord) -> str:
    return json.dumps([record.op, record.key])


def _place(name: str) -> tuple[str, str]:
    try:
        op, key = json.loads(name)
    except (ValueError, TypeError) as error:
        raise Problem(Code.INVALID, "cursor: use the next_cursor of this list") from error
    return str(op), str(key)
