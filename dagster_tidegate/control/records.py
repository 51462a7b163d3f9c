"""What operators do with records: have them done again, or skip them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast
from uuid import uuid4

from dagster_tidegate.control import operations
from dagster_tidegate.control.operations import ACTOR_TAG, UnderWayError, writing
from dagster_tidegate.control.starting import Refusal, StartVerdict
from dagster_tidegate.holds import run_name
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import events, records, runs
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.history import Event
from dagster_tidegate.store.records import RecordState, Selection
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.text import plural

if TYPE_CHECKING:
    from dagster_tidegate.dagster_api.launch import WorkspaceLauncher


class NoRecordsError(Exception):
    """No record of the campaign run fits the selection."""


class HeldError(Exception):
    """The campaign run is held, so none of its records can be done again now."""


@dataclass(frozen=True)
class Again:
    """What was marked to be done again.

    Attributes:
        marked: How many records, by op.
        dagster_run: The id of the run that does them; None for a dry run.
    """

    marked: Mapping[str, int]
    dagster_run: str | None


def to_retry(selection: Selection) -> Selection:
    """Return which records a retry without states means: failed ones, or those that are named."""
    if selection.states or selection.keys:
        return selection
    return replace(selection, states=(RecordState.FAILED,))


def retry(
    store: Store,
    launcher: "WorkspaceLauncher | None",
    campaign: CampaignSpec,
    run: CampaignRun,
    selection: Selection,
    decision: StartVerdict,
    *,
    reason: str,
    actor: str,
    dry_run: bool = False,
    run_id: str | None = None,
) -> Again:
    """Mark records to be done again, and put a Dagster run into the queue that does only these.

    They keep their idempotency keys, and their tries are counted from 0. If the run can't be
    launched, nothing is marked. Whoever repeats a call whose process died after it had marked
    them, with the same `run_id`, launches the run.

    Args:
        launcher: Dagster's code locations; may be None for a dry run.
        run: The campaign run, as it was read with `decision`.
        run_id: The id of the Dagster run, if the caller may repeat the call; None: a new one.

    Raises:
        NoRecordsError: If there are none.
        HeldError: If the campaign run is held.
        UnderWayError: If it is in progress, or about to resume.
        Exception: Whatever `launcher` raises if the run can't be launched.
    """
    selection = to_retry(selection)
    chosen = run_id or str(uuid4())
    with store.read() as conn:
        begun = operations.begun(conn, run.name, run_id)
    marked_before, is_claimed = _marked_by(begun), operations.is_claimed(run, begun)
    if decision.refusal is Refusal.HELD:
        raise HeldError(decision.text)
    is_under_way = run.status in (RunStatus.PENDING, RunStatus.PROCESSING)
    if not is_claimed and (decision.refusal is not None or is_under_way):
        raise UnderWayError(decision.text)
    with writing(store, dry_run=dry_run) as conn:
        now = store.now(conn)
        if marked_before is None:
            former = records.to_restore(conn, now, run, selection)
            marked = _some(records.mark(conn, now, run, selection), run)
        else:
            former, marked = None, marked_before
        if not is_claimed:
            if not dry_run and not runs.claim_start(conn, now, run, actor=actor):
                raise UnderWayError(f"{run.name} was started by somebody else just now")
            operations.request_start(conn, now, run.name, chosen, actor=actor, marked=marked)
        newest = runs.latest_attempt(conn, run.id)
        if marked_before is None:
            _write_event(conn, store, run, "retry", marked, reason, actor)
    if dry_run or launcher is None:
        return Again(marked, None)
    try:
        dagster_run = launcher.launch_marked(
            campaign.name,
            run.dagster_partition,
            assets=run.assets,
            follows="" if newest is None else newest.dagster_run,
            tags={ACTOR_TAG: actor},
            location=campaign.location,
            run_id=chosen,
            may_repeat=run_id is not None,
        )
    except BaseException as error:
        with store.begin() as conn:
            if former is not None:
                records.unmark(conn, now, run, former)
            before = operations.before_claim(run) if is_claimed else run
            operations.start_failed(conn, store.now(conn), run.name, before, error, actor=actor)
        raise
    return Again(marked, dagster_run)


def marked_for(conn: Connection, run: CampaignRun, run_id: str) -> Mapping[str, int]:
    """Return how many records were marked for a Dagster run, by op.

    That is known as long as nobody has started the campaign run since.
    """
    return _marked_by(operations.begun(conn, run.name, run_id)) or {}


def _marked_by(begun: Event | None) -> Mapping[str, int] | None:
    """Return how many records a start has marked, by op; None if it does not say."""
    marked = None if begun is None or begun.after is None else begun.after.get("marked")
    return cast(Mapping[str, int] | None, marked)


def skip(
    conn: Connection,
    store: Store,
    run: CampaignRun,
    selection: Selection,
    *,
    reason: str,
    actor: str,
) -> Mapping[str, int]:
    """Decide that records need no result, so that the campaign run can complete without them.

    Returns:
        How many, by op.

    Raises:
        NoRecordsError: If there are none.
        UnderWayError: If the campaign run is in progress.
    """
    if run.status is RunStatus.PROCESSING:
        raise UnderWayError(f"{run.name} is processing: pause it first, or wait until it has ended")
    skipped = records.skip(conn, store.now(conn), run, to_retry(selection), reason)
    _write_event(conn, store, run, "skip", _some(skipped, run), reason, actor)
    return skipped


def _some(changed: Mapping[str, int], run: CampaignRun) -> Mapping[str, int]:
    if not changed:
        raise NoRecordsError(f"{run.name} has no such records: see 'tidegate records {run.name}'")
    return changed


def _write_event(
    conn: Connection,
    store: Store,
    run: CampaignRun,
    action: str,
    changed: Mapping[str, int],
    reason: str,
    actor: str,
) -> None:
    events.write(
        conn,
        store.now(conn),
        kind=EventKind.RECORDS,
        name=run_name(run.campaign, run.partition),
        to_status=f"{action} {plural(sum(changed.values()), 'record')}",
        reason=reason,
        actor=actor,
        after=dict(changed),
    )
