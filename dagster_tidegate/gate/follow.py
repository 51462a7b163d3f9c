"""Campaign runs follow the Dagster runs that work on them.

The record loop writes for itself that a campaign run is processing or paused. The rest is read
from Dagster: that a run was queued, and how it ended.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

import dagster as dg

from dagster_tidegate.control.operations import ACTOR_TAG
from dagster_tidegate.dagster_api.instance import (
    SUPERSEDED_TAG,
    RunChange,
    ancestors,
    is_resume,
    partition_of,
)
from dagster_tidegate.gate.observe import Gate
from dagster_tidegate.holds import SystemActor
from dagster_tidegate.plugin.campaign import Campaign
from dagster_tidegate.statuses import UNFINISHED, RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.runs import AttemptRow, CampaignRun

# Dagster stamps a change before it commits it; so much is read again each time, which is harmless.
OVERLAP = timedelta(seconds=10)
# And with the clock of the machine that changed it, which may be behind the database's.
MAX_SKEW = timedelta(seconds=60)
PAGE = 200
# How often it is looked for Dagster runs that were deleted, in seconds, and for how many.
AUDIT_S = 60.0
AUDIT_PAGE = 500

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
    RunStatus.PAUSED: [RunStatus.PAUSED],
}
# What an ended campaign run becomes first.
_AGAIN = RunStatus.PENDING


def follow(
    gate: Gate,
    campaigns: Mapping[str, Campaign],
    cursor: datetime,
    now: datetime,
    deadline: float,
) -> tuple[datetime, int]:
    """Bring campaign runs up to what Dagster's runs have become since a time.

    Args:
        gate: What the gate works with.
        campaigns: The campaigns of the gate, by name.
        cursor: Up to when Dagster's runs are known, UTC.
        now: The database's time at the beginning of the tick, UTC.
        deadline: When to stop (`time.monotonic`).

    Returns:
        Up to when they are known now, and how many campaign runs were moved.
    """
    since, moved = cursor - OVERLAP, 0
    while time.monotonic() < deadline:
        changes = gate.dagster.changes(since, PAGE)
        ours = [
            change
            for change in changes
            if change.run.job_name in campaigns and SUPERSEDED_TAG not in change.run.tags
        ]
        if ours:
            with gate.store.read() as conn:
                stale = _stale(conn, ours)
            for change in stale:
                campaign = campaigns[change.run.job_name]
                interrupted = gate.dagster.was_interrupted(change.run)
                with gate.store.begin() as conn:
                    at = gate.store.now(conn)
                    moved += _follow(conn, at, change, campaign, interrupted=interrupted)
        if changes:
            cursor = max(cursor, changes[-1].at)
        if len(changes) < PAGE:
            cursor = max(cursor, now - MAX_SKEW)
            break
        since = changes[-1].at
    return cursor, moved


class Audit:
    """Finds campaign runs whose Dagster run was deleted, of which Dagster tells nothing.

    Each look takes the next page of those that are to work or do. One for which Dagster has no
    run, now and at the look before, is cancelled.
    """

    def __init__(self) -> None:
        self._due = 0.0
        self._after = 0
        self._missing: dict[int, CampaignRun] = {}

    def __call__(self, gate: Gate, campaigns: Collection[str]) -> int:
        """Look, if it is time to.

        Args:
            gate: What the gate works with.
            campaigns: Names of the campaigns of the gate.

        Returns:
            How many campaign runs were cancelled.
        """
        if time.monotonic() < self._due:
            return 0
        self._due = time.monotonic() + AUDIT_S
        with gate.store.read() as conn:
            active = runs.with_status(conn, RunStatus.PENDING, RunStatus.PROCESSING)
        ours = sorted(
            (r for r in active if r.campaign in campaigns and not r.waits_for_start),
            key=lambda run: run.id,
        )
        page = [run for run in ours if run.id > self._after][:AUDIT_PAGE]
        self._after = page[-1].id if len(page) == AUDIT_PAGE else 0
        unchanged = [run for run in ours if self._missing.get(run.id) == run]
        missing = _without_dagster_run(gate, {run.id: run for run in [*page, *unchanged]})
        gone = [run for run in unchanged if run.id in missing]
        self._missing = {id_: run for id_, run in missing.items() if run not in gone}
        if not gone:
            return 0
        with gate.store.begin() as conn:
            now = gate.store.now(conn)
            reason = "Dagster has no run of it any more"
            return sum(
                runs.move(
                    conn, now, run, RunStatus.CANCELLED, reason=reason, actor=SystemActor.DAGSTER
                )
                for run in gone
            )


def _without_dagster_run(gate: Gate, found: Mapping[int, CampaignRun]) -> dict[int, CampaignRun]:
    """Those campaign runs that no unfinished Dagster run works on."""
    at_work = {
        (run.job_name, partition_of(run))
        for run in gate.dagster.unfinished_of({run.partition for run in found.values()})
        if not never_queued(run)
    }
    return {id_: run for id_, run in found.items() if (run.campaign, run.partition) not in at_work}


def never_queued(run: dg.DagsterRun) -> bool:
    """Return whether a person's start made a run and, perhaps, died before it was queued."""
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
    """Return what a campaign run becomes when a Dagster run has a status. Pure.

    Args:
        run: Status of the Dagster run.
        status: Status of the campaign run.
        owns: Whether the Dagster run's attempt is the campaign run's newest.
        attempt: The attempt of the Dagster run, or None where it made none.
        newer: Whether the Dagster run began after what gave the campaign run its status.
        interrupted: Whether it failed since its process was told to end, by nobody in Dagster, and
            there is an attempt to go on from.
        resumes: Whether the gate asked for the Dagster run, when the campaign run was paused.

    Returns:
        The status that it gets, or None where it keeps the one that it has.
    """
    if attempt is not None:
        if not owns:
            return None
        # What ended was written down when it did; of what still works, the record loop tells.
        if attempt.ended_at is None:
            # Outside a record loop, which would have paused it: it goes on from its ledger, too.
            return RunStatus.PAUSED if interrupted else _ENDS.get(run)
        # But Dagster may give a run up whose process lives, and has nothing left to do.
        given_up = status in (RunStatus.FAILED, RunStatus.CANCELLED) and attempt.outcome is status
        return RunStatus.COMPLETED if given_up and run is _Status.SUCCESS else None
    if resumes and status is RunStatus.CANCELLED:
        return None  # a person was faster than the request
    if run in _ENDS:
        to = RunStatus.PAUSED if interrupted else _ENDS[run]
        if status is RunStatus.PAUSED and to in (RunStatus.PAUSED, RunStatus.COMPLETED):
            return None  # whatever it did, it did not work through the records
        again = newer and status is not to  # a person did it again, and it was soon over
        return to if status in UNFINISHED or again else None
    if run in _WAITS:
        return None if status in (RunStatus.PENDING, RunStatus.PROCESSING) else RunStatus.PENDING
    if run in _RUNS and (status is RunStatus.PENDING or (newer and status not in UNFINISHED)):
        return RunStatus.PROCESSING
    return None


def _stale(conn: Connection, found: Sequence[RunChange]) -> list[RunChange]:
    """Those Dagster runs whose campaign runs are not known, or may have to be moved."""
    attempts = runs.attempts_of(conn, [change.run.run_id for change in found])
    known = runs.named(conn, [(c.run.job_name, partition_of(c.run)) for c in found])
    stale = []
    for change in found:
        run = change.run
        campaign_run = known.get((run.job_name, partition_of(run)))
        attempt = attempts.get(run.run_id)
        if (
            campaign_run is None
            or _starts(campaign_run, run)
            or next_status(
                run.status,
                campaign_run.status,
                owns=attempt is not None and attempt.number == campaign_run.attempt,
                attempt=attempt,
                # `_follow` looks more closely at what repeats an earlier run.
                newer=campaign_run.changed_at < change.created_at or bool(ancestors(run)),
                resumes=is_resume(run),
            )
        ):
            stale.append(change)
    return stale


def _starts(campaign_run: CampaignRun, run: dg.DagsterRun) -> bool:
    """Return whether a run in Dagster's queue is what a campaign run waits for."""
    return campaign_run.waits_for_start and run.status in _WAITS


def _follow(
    conn: Connection,
    now: datetime,
    change: RunChange,
    campaign: Campaign,
    *,
    interrupted: bool,
) -> bool:
    run = change.run
    attempt = runs.attempt_of(conn, run.run_id)
    campaign_run = runs.ensure(
        conn, now, run.job_name, partition_of(run), priority=campaign.priority
    )
    if _starts(campaign_run, run):
        return runs.claim_start(conn, now, campaign_run, actor=SystemActor.DAGSTER)
    newest = runs.latest_attempt(conn, campaign_run.id)
    if attempt is None and newest is not None and newest.ended_at is None:
        return False  # another Dagster run works on it
    owns = attempt is not None and attempt.number == campaign_run.attempt
    to = next_status(
        run.status,
        campaign_run.status,
        owns=owns,
        attempt=attempt,
        # Dagster marks a run that failed after it has made the one that repeats it.
        newer=campaign_run.changed_at < change.created_at
        or (newest is not None and newest.dagster_run in ancestors(run)),
        interrupted=interrupted and newest is not None,
        resumes=is_resume(run),
    )
    if to is None or (attempt is None and change.at < campaign_run.changed_at):
        return False
    # Not the time of this tick: what Dagster did after it is newer.
    now = min(now, max(change.at, campaign_run.changed_at))
    begins = [] if campaign_run.status in UNFINISHED or to not in _ENDS.values() else [_AGAIN]
    moved = False
    for status in [*begins, *_WAYS[to]]:
        current = runs.get(conn, campaign_run.id)
        if current is None or current.status is status:
            continue
        reason = f"Dagster run {run.run_id} is {run.status.value}"
        if status is RunStatus.PAUSED:
            reason += ": its process was told to end; it goes on by itself"
        moved = runs.move(conn, now, current, status, reason=reason, actor=SystemActor.DAGSTER)
        if not moved:
            return False
    return moved
