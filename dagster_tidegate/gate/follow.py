"""Campaign runs follow the Dagster runs that work on them.

The record loop writes for itself that a campaign run is processing or paused. The rest is read
from Dagster: that a run was queued, and how it ended.
"""

import time
from collections.abc import Mapping
from datetime import datetime, timedelta

import dagster as dg
import sqlalchemy as sa

from dagster_tidegate.campaign import Campaign
from dagster_tidegate.gate.observe import Gate
from dagster_tidegate.instance import RunChange, partition_of
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store.runs import CampaignRun

ACTOR = "dagster"
# Dagster stamps a change before it commits it; so much is read again each time, which is harmless.
OVERLAP = timedelta(seconds=10)
PAGE = 200

_Status = dg.DagsterRunStatus
_ENDS = {
    _Status.SUCCESS: RunStatus.COMPLETED,
    _Status.FAILURE: RunStatus.FAILED,
    _Status.CANCELED: RunStatus.CANCELLED,
}
_WAITS = {_Status.QUEUED, _Status.STARTING}
_RUNS = {_Status.STARTED, _Status.CANCELING}
# Moves that Dagster makes in one step and a campaign run in several.
_WAYS = {
    RunStatus.PENDING: [RunStatus.PENDING],
    RunStatus.PROCESSING: [RunStatus.PROCESSING],
    RunStatus.COMPLETED: [RunStatus.PROCESSING, RunStatus.COMPLETED],
    RunStatus.FAILED: [RunStatus.PROCESSING, RunStatus.FAILED],  # also one that never began
    RunStatus.CANCELLED: [RunStatus.CANCELLED],
}


def follow(
    gate: Gate, campaigns: Mapping[str, Campaign], cursor: datetime, deadline: float
) -> tuple[datetime, int]:
    """Bring campaign runs up to what Dagster's runs have become since a time.

    Args:
        gate: What the gate works with.
        campaigns: The campaigns of the gate, by name.
        cursor: Up to when Dagster's runs are known, UTC.
        deadline: When to stop (`time.monotonic`).

    Returns:
        Up to when they are known now, and how many campaign runs were moved.
    """
    since, moved = cursor - OVERLAP, 0
    while time.monotonic() < deadline:
        changes = gate.dagster.changes(since, PAGE)
        ours = [change for change in changes if change.run.job_name in campaigns]
        if ours:
            with gate.store.begin() as conn:
                now = gate.store.now(conn)
                moved += sum(
                    _follow(conn, now, change, campaigns[change.run.job_name].priority)
                    for change in ours
                )
        if changes:
            cursor = max(cursor, changes[-1].at)
        if len(changes) < PAGE:
            break
        since = changes[-1].at
    return cursor, moved


def _follow(conn: sa.Connection, now: datetime, change: RunChange, priority: int) -> bool:
    run = change.run
    attempt = runs.attempt_of(conn, run.run_id)
    campaign_run = runs.ensure(conn, now, run.job_name, partition_of(run), priority=priority)
    if run.status in _ENDS:
        to = _ENDS[run.status]
        if attempt is not None:
            if attempt.ended_at is not None or attempt.number != campaign_run.attempt:
                return False  # it was written down when it ended, or another has taken over
        else:
            newest = runs.latest_attempt(conn, campaign_run.id)
            if newest is not None and newest.ended_at is None:
                return False  # another works on the campaign run
            if campaign_run.status not in (
                RunStatus.PENDING,
                RunStatus.PROCESSING,
                RunStatus.PAUSED,
            ):
                return False
    elif attempt is not None:
        return False  # the record loop writes for itself
    elif run.status in _WAITS:
        if campaign_run.status in (RunStatus.PENDING, RunStatus.PROCESSING):
            return False
        to = RunStatus.PENDING
    elif run.status in _RUNS:
        if campaign_run.status is not RunStatus.PENDING:
            return False
        to = RunStatus.PROCESSING
    else:
        return False
    return _move(conn, now, campaign_run, to, f"Dagster run {run.run_id} is {run.status.value}")


def _move(conn: sa.Connection, now: datetime, run: CampaignRun, to: RunStatus, reason: str) -> bool:
    if run.status is RunStatus.PAUSED and to is RunStatus.COMPLETED:
        return False  # whatever it did, it did not work through the records
    moved = False
    for status in _WAYS[to]:
        current = runs.get(conn, run.id)
        if current is None or current.status is status:
            continue
        moved = runs.move(conn, now, current, status, reason=reason, actor=ACTOR)
        if not moved:
            return False
    return moved
