"""Follows: updates campaign runs from the Dagster runs that work on them.

The record loop itself records that a campaign run is processing or paused. Everything else is read
from Dagster: that a run was queued, and how it ended.
"""

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import dagster as dg

from dagster_tidegate.control.operations import ACTOR_TAG
from dagster_tidegate.dagster_api.backfills import is_in_backfill
from dagster_tidegate.dagster_api.lineage import (
    ancestors,
    assets_of,
    campaign_of,
    dagster_partition_of,
    is_resume,
    parent_of,
    partition_of,
    retries_assets_of,
    was_superseded,
)
from dagster_tidegate.dagster_api.runs import RunChange, is_interrupted
from dagster_tidegate.gate import failed_launches
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.relaunched import joined
from dagster_tidegate.holds import SystemActor
from dagster_tidegate.statuses import UNFINISHED, RunStatus
from dagster_tidegate.store import ledger, runs
from dagster_tidegate.store.database import DATABASE_ERRORS, UNREACHABLE, Connection
from dagster_tidegate.store.runs import AttemptRow, CampaignRun
from dagster_tidegate.text import plural

# Dagster stamps a change before it commits it, so the latest ones are read again, harmlessly.
OVERLAP = timedelta(seconds=10)
# It uses the clock of the machine that made the change, which may be behind the database's.
MAX_SKEW = timedelta(seconds=60)
PAGE = 200
# Interval of the deleted-run audit in seconds, and how many campaign runs it checks at a time.
AUDIT_S = 60.0
AUDIT_PAGE = 500
MAX_ERROR = 200  # characters of an error in a summary

log = logging.getLogger(__name__)

_Status = dg.DagsterRunStatus
_ENDS = {
    _Status.SUCCESS: RunStatus.COMPLETED,
    _Status.FAILURE: RunStatus.FAILED,
    _Status.CANCELED: RunStatus.CANCELLED,
}
_WAITS = {_Status.QUEUED, _Status.STARTING}
_RUNS = {_Status.STARTED, _Status.CANCELING}


@dataclass
class Followed:
    """What came of the changes to Dagster's runs.

    Attributes:
        cursor: Up to when changes have been read, UTC.
        moved: How many campaign runs were updated.
        errors: Why some runs could not be followed, by their ids. One bad run stops no other.
    """

    cursor: datetime
    moved: int = 0
    errors: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return it for people; empty: nothing happened."""
        parts = [f"{plural(self.moved, 'campaign run')} updated from Dagster"] if self.moved else []
        if self.errors:
            run_id, why = next(iter(self.errors.items()))
            count = plural(len(self.errors), "Dagster run")
            parts.append(f"{count} could not be processed, such as {run_id}: {why}")
        return "; ".join(parts)


def follow(gate: Gate, cursor: datetime, now: datetime, deadline: float) -> Followed:
    """Update campaign runs from the changes to Dagster's runs since a time.

    Args:
        cursor: Up to when changes have been read, UTC.
        now: The database's time at the beginning of the tick, UTC.
        deadline: When to stop (`time.monotonic`).
    """
    since, followed = cursor - OVERLAP, Followed(cursor)
    while time.monotonic() < deadline:
        changes = gate.dagster.changes(since, PAGE)
        ours = [
            _joined(gate, change, followed)
            for change in changes
            if campaign_of(change.run) in gate.campaigns and not was_superseded(change.run)
        ]
        for change in ours:
            _hand_backfill_over(gate, change.run)
        for change in _stale(gate, ours) if ours else ():
            try:
                followed.moved += _follow_in(gate, change)
            except UNREACHABLE:
                raise
            except Exception as error:  # one bad run must not stop the others
                log.exception("Changed Dagster run %s could not be processed", change.run.run_id)
                followed.errors[change.run.run_id] = _in_short(error)
        if changes:
            followed.cursor = max(followed.cursor, changes[-1].at)
        if len(changes) < PAGE:
            followed.cursor = max(followed.cursor, now - MAX_SKEW)
            break
        since = changes[-1].at
    return followed


def _joined(gate: Gate, change: RunChange, followed: Followed) -> RunChange:
    try:
        return replace(change, run=joined(gate, change.run))
    except UNREACHABLE:
        raise
    except Exception as error:  # one bad run must not stop the others
        log.exception("Could not find the paused run of Dagster run %s", change.run.run_id)
        followed.errors[change.run.run_id] = _in_short(error)
        return change


def _hand_backfill_over(gate: Gate, run: dg.DagsterRun) -> None:
    """Let a next attempt that waits in the queue replace the paused run in their backfill."""
    paused = parent_of(run)
    waits = run.status is _Status.QUEUED and is_resume(run) and is_in_backfill(run)
    if not waits or paused is None:
        return
    try:
        gate.dagster.hand_backfill_over(paused)
    except UNREACHABLE:
        raise
    except Exception:  # the next attempt itself does it when it begins
        log.exception("Dagster run %s does not replace %s in their backfill", run.run_id, paused)


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:MAX_ERROR]


class Audit:
    """Cancels campaign runs whose Dagster run was deleted, which is not a change of any run.

    Each audit checks the next page of pending and processing campaign runs. One for which Dagster
    has no unfinished run in two audits in a row ends as its latest run did, or is cancelled if
    Dagster has none.
    """

    def __init__(self) -> None:
        self._due = 0.0
        self._after = 0
        self._missing: dict[int, CampaignRun] = {}

    def __call__(self, gate: Gate) -> int:
        """Audit if it is due; return how many campaign runs were ended."""
        if time.monotonic() < self._due:
            return 0
        self._due = time.monotonic() + AUDIT_S
        with gate.store.read() as conn:
            active = runs.with_status(conn, RunStatus.PENDING, RunStatus.PROCESSING)
        ours = sorted(
            (r for r in active if r.campaign in gate.campaigns and not r.waits_for_start),
            key=lambda run: run.id,
        )
        page = [run for run in ours if run.id > self._after][:AUDIT_PAGE]
        self._after = page[-1].id if len(page) == AUDIT_PAGE else 0
        suspects = [run for run in ours if self._missing.get(run.id) == run]
        missing = _without_dagster_run(gate, [*page, *suspects])
        deleted = [run for run in suspects if run.id in missing]
        self._missing = {id_: run for id_, run in missing.items() if run not in deleted}
        if not deleted:
            return 0
        latest = {run.id: gate.dagster.latest_of(run) for run in deleted}
        with gate.store.begin() as conn:
            now = gate.store.now(conn)
            return sum(_end(conn, now, run, latest[run.id]) for run in deleted)


def _end(
    conn: Connection, now: datetime, campaign_run: CampaignRun, run: dg.DagsterRun | None
) -> bool:
    """End a campaign run that no unfinished Dagster run works on, as its latest one ended."""
    if run is not None and run.status in _ENDS:
        return _move(conn, now, campaign_run, _ENDS[run.status], run)
    return runs.move(
        conn,
        now,
        campaign_run,
        RunStatus.CANCELLED,
        reason="its Dagster run was deleted",
        actor=SystemActor.DAGSTER,
    )


def _without_dagster_run(
    gate: Gate, campaign_runs: Collection[CampaignRun]
) -> dict[int, CampaignRun]:
    """Those campaign runs that no unfinished Dagster run works on, by id."""
    working = {
        (campaign_of(run), partition_of(run))
        for run in gate.dagster.unfinished_of({run.dagster_partition for run in campaign_runs})
        if not never_queued(run)
    }
    return {run.id: run for run in campaign_runs if (run.campaign, run.partition) not in working}


def never_queued(run: dg.DagsterRun) -> bool:
    """Return whether a start by hand created a run and may have crashed before it was queued."""
    return run.status is _Status.NOT_STARTED and ACTOR_TAG in run.tags


def next_status(
    run: _Status,
    status: RunStatus,
    *,
    owns: bool,
    attempt: AttemptRow | None,
    newer: bool,
    interrupted: bool = False,
    resumes: bool = False,
) -> RunStatus | None:
    """Return the status that a campaign run gets from a Dagster run, or None to keep its own. Pure.

    Args:
        run: Status of the Dagster run.
        status: Status of the campaign run.
        owns: Whether the Dagster run's attempt is the campaign run's newest.
        attempt: The attempt of the Dagster run; None if it has none.
        newer: Whether the Dagster run began after the campaign run got its status.
        interrupted: Whether it failed because its process received a signal that nobody in Dagster
            asked for, or before it started, and there is an attempt to resume from.
        resumes: Whether the gate requested the Dagster run to resume the campaign run.
    """
    if attempt is not None:
        if not owns:
            return None
        if attempt.ended_at is None:
            # Interrupted outside a record loop, which would have paused it: its ledger is intact.
            return RunStatus.PAUSED if interrupted else _ENDS.get(run)
        # The record loop recorded the end. But Dagster may give up on a run whose process lives.
        given_up = status in (RunStatus.FAILED, RunStatus.CANCELLED) and attempt.outcome is status
        return RunStatus.COMPLETED if given_up and run is _Status.SUCCESS else None
    if resumes and status is RunStatus.CANCELLED:
        return None  # a person was faster than the request
    if run in _ENDS:
        to = RunStatus.PAUSED if interrupted else _ENDS[run]
        if status is RunStatus.PAUSED and to in (RunStatus.PAUSED, RunStatus.COMPLETED):
            return None  # whatever it did, it did not process the records
        again = newer and status is not to  # a quick re-execution
        return to if status in UNFINISHED or again else None
    if run in _WAITS:
        return None if status in (RunStatus.PENDING, RunStatus.PROCESSING) else RunStatus.PENDING
    if run in _RUNS and (status is RunStatus.PENDING or (newer and status not in UNFINISHED)):
        return RunStatus.PROCESSING
    return None


def _stale(gate: Gate, changes: Sequence[RunChange]) -> Sequence[RunChange]:
    """The changes whose campaign runs don't exist yet, or may have to be updated."""
    names = [(campaign_of(change.run), partition_of(change.run)) for change in changes]
    try:
        with gate.store.read() as conn:
            attempts = runs.attempts_of(conn, [change.run.run_id for change in changes])
            campaign_runs = runs.named(conn, names)
    except UNREACHABLE:
        raise
    except DATABASE_ERRORS:
        return changes  # something is wrong with one of them: `follow` finds out with which
    return [
        change
        for change in changes
        if _may_be_stale(
            change,
            campaign_runs.get((campaign_of(change.run), partition_of(change.run))),
            attempts.get(change.run.run_id),
        )
    ]


def _may_be_stale(
    change: RunChange, campaign_run: CampaignRun | None, attempt: AttemptRow | None
) -> bool:
    run = change.run
    if campaign_run is None or _starts(campaign_run, run) or retries_assets_of(run):
        return True
    to = next_status(
        run.status,
        campaign_run.status,
        owns=attempt is not None and attempt.number == campaign_run.attempt,
        attempt=attempt,
        # `_follow` checks more precisely whether it repeats an earlier run.
        newer=campaign_run.changed_at < change.created_at or bool(ancestors(run)),
        resumes=is_resume(run),
    )
    return to is not None


def _starts(campaign_run: CampaignRun, run: dg.DagsterRun) -> bool:
    """Whether a queued run is the one that a campaign run started by hand waits for."""
    return campaign_run.waits_for_start and run.status in _WAITS


def _follow_in(gate: Gate, change: RunChange) -> bool:
    interrupted = gate.dagster.was_interrupted(change.run) or _may_launch_again(gate, change.run)
    priority = gate.campaigns[campaign_of(change.run)].priority
    with gate.store.begin() as conn:
        return _follow(conn, gate.store.now(conn), change, priority, interrupted=interrupted)


def _may_launch_again(gate: Gate, run: dg.DagsterRun) -> bool:
    """Whether a run that the gate requested failed before it started, and gets a successor."""
    if run.status is not _Status.FAILURE or not is_resume(run) or gate.dagster.is_retried(run):
        return False
    failures = gate.dagster.failed_launches(run, failed_launches.MAX_IN_A_ROW)
    return bool(failures) and not failed_launches.is_given_up(failures)


def _follow(
    conn: Connection, now: datetime, change: RunChange, priority: int, *, interrupted: bool
) -> bool:
    run = change.run
    attempt = runs.attempt_of(conn, run.run_id)
    if attempt is None and retries_assets_of(run):
        return False  # it selects fewer assets than the campaign run that it continues
    campaign_run = None if attempt is None else runs.get(conn, attempt.campaign_run)
    if campaign_run is None:
        campaign_run = runs.ensure(
            conn,
            # As old as the change: a run may have ended before it was ever looked at.
            min(now, change.at),
            campaign_of(run),
            dagster_partition_of(run),
            assets_of(run),
            priority=priority,
        )
    if _starts(campaign_run, run):
        return runs.claim_start(conn, now, campaign_run, actor=SystemActor.DAGSTER)
    newest = runs.latest_attempt(conn, campaign_run.id)
    if attempt is None and newest is not None and newest.ended_at is None:
        return False  # another Dagster run works on it
    to = next_status(
        run.status,
        campaign_run.status,
        owns=attempt is not None and attempt.number == campaign_run.attempt,
        attempt=attempt,
        # Dagster tags a failed run after it has created its retry, so the failed run looks newer.
        newer=campaign_run.changed_at < change.created_at
        or (newest is not None and newest.dagster_run in ancestors(run)),
        interrupted=interrupted and newest is not None,
        resumes=is_resume(run),
    )
    if to is None or (attempt is None and change.at < campaign_run.changed_at):
        if interrupted and campaign_run.status is RunStatus.PAUSED and attempt is None:
            runs.set_reason(conn, campaign_run, _why_paused(run))
        return False
    # Not the time of this tick, or what Dagster did since the change would look older.
    now = min(now, max(change.at, campaign_run.changed_at))
    return _move(conn, now, campaign_run, to, run)


def _move(
    conn: Connection, now: datetime, campaign_run: CampaignRun, to: RunStatus, run: dg.DagsterRun
) -> bool:
    """Move a campaign run to the status that a Dagster run gives it."""
    moved = False
    for status in _path(campaign_run.status, to):
        current = runs.get(conn, campaign_run.id)
        if current is None or current.status is status:
            continue
        reason = f"Dagster run {run.run_id} is {run.status.value}"
        if status is RunStatus.PAUSED:
            reason = _why_paused(run)
        elif status is to and to in (RunStatus.COMPLETED, RunStatus.FAILED):
            failed = ledger.failed_records(conn, campaign_run.id)
            reason += f", {plural(failed, 'record')} failed" if failed else ""
        moved = runs.move(conn, now, current, status, reason=reason, actor=SystemActor.DAGSTER)
        if not moved:
            return False
    return moved


def _why_paused(run: dg.DagsterRun) -> str:
    how = "was terminated" if is_interrupted(run) else "could not be started"
    return (
        f"Dagster run {run.run_id} is {run.status.value}: its process {how}; "
        "it resumes automatically"
    )


def _path(status: RunStatus, to: RunStatus) -> list[RunStatus]:
    """The allowed moves that lead to a status, which Dagster's run may have reached in one."""
    path = [to]
    if to in (RunStatus.COMPLETED, RunStatus.FAILED):
        path.insert(0, RunStatus.PROCESSING)
    if to in _ENDS.values() and status not in UNFINISHED:
        path.insert(0, RunStatus.PENDING)
    return path
