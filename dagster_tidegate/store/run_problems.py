"""Campaign runs that need a person: cut off, failed after a pause, or paused without a hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from dagster_tidegate.holds import TargetKind, run_name
from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.runs import CampaignRun

MAX_AGE = timedelta(hours=24)
"""Campaign runs that ended earlier are ignored."""
MAX_LEDGERS = 20
"""How many campaign runs that were cut off are looked through for records in doubt."""


@dataclass(frozen=True)
class EndedAttempt:
    """The latest attempt of a campaign run, if it has ended or its record loop's lease expired.

    Attributes:
        ended_at: When the attempt ended, or when its lease expired (UTC).
    """

    campaign_run: int
    number: int
    name: str
    ended_at: datetime


@dataclass(frozen=True)
class InDoubt:
    """A campaign run with records in doubt, and when their attempt ended (UTC)."""

    campaign_run: int
    name: str
    records: int
    ended_at: datetime


@dataclass(frozen=True)
class FailedRecords:
    """How many of the records of a campaign run failed.

    Attributes:
        finished: How many are done or failed.
    """

    run: str
    status: RunStatus
    failed: int
    finished: int


@dataclass(frozen=True)
class PausedRuns:
    """The paused runs of a campaign that have no hold of their own.

    Attributes:
        since: When the first of them paused (UTC).
        changed_at: When any run of the campaign last changed its status (UTC).
    """

    count: int
    since: datetime
    changed_at: datetime


def ended_attempts(conn: Connection, now: datetime, *, before: datetime) -> Sequence[EndedAttempt]:
    """Return the attempts that ended before a time and may have left records in doubt."""
    run, attempt, loop = t.campaign_runs.c, t.attempts.c, t.loops.c
    lease_expired_at = (
        sa.select(sa.func.max(loop.lease_until))
        .where(loop.campaign_run == run.id, loop.attempt == run.attempt)
        .scalar_subquery()
    )
    ended_at = sa.func.coalesce(attempt.ended_at, lease_expired_at)
    stopped = run.status.in_((RunStatus.PAUSED, RunStatus.FAILED, RunStatus.CANCELLED))
    rows = conn.execute(
        sa.select(run.id, run.campaign, run.partition, attempt.number, ended_at.label("ended_at"))
        .join(t.attempts, (attempt.campaign_run == run.id) & (attempt.number == run.attempt))
        .where(
            run.pruned_at.is_(None),
            (stopped & (run.changed_at > now - MAX_AGE)) | (run.status == RunStatus.PROCESSING),
            ended_at <= before,
        )
        .order_by(run.changed_at.desc())
    )
    return [
        EndedAttempt(row.id, row.number, run_name(row.campaign, row.partition), row.ended_at)
        for row in rows
    ]


def records_in_doubt(conn: Connection, campaign_run: int) -> int:
    """Return how many records of a campaign run were started and have no result.

    This reads the whole ledger of the campaign run.
    """
    ledger = t.ledger.c
    return (
        conn.scalar(
            sa.select(sa.func.count())
            .select_from(t.ledger.join(t.campaign_runs))
            .where(
                ledger.campaign_run == campaign_run,
                ledger.status == RecordStatus.STARTED,
                ledger.attempt >= t.campaign_runs.c.first_attempt,
            )
        )
        or 0
    )


def in_doubt(conn: Connection, now: datetime) -> Sequence[InDoubt]:
    """Return campaign runs with records in doubt, of the `MAX_LEDGERS` that changed last.

    A loop that stops by itself leaves exact counts and no record in doubt: its ledger, which may be
    long, is not read.
    """
    ended = ended_attempts(conn, now, before=now)
    p = t.progress.c
    rows = conn.execute(
        sa.select(p.campaign_run)
        .where(p.campaign_run.in_([each.campaign_run for each in ended]))
        .group_by(p.campaign_run)
        .having(sa.func.min(sa.cast(p.exact, sa.Integer)) == 1)
    )
    exact = set(rows.scalars())
    cut_off = [each for each in ended if each.campaign_run not in exact][:MAX_LEDGERS]
    return [
        InDoubt(each.campaign_run, each.name, records, each.ended_at)
        for each in cut_off
        if (records := records_in_doubt(conn, each.campaign_run))
    ]


def failed_records(conn: Connection, now: datetime) -> Sequence[FailedRecords]:
    """Return the campaign runs that have ended with failed records, the latest first."""
    run, p = t.campaign_runs.c, t.progress.c
    failed, done = sa.func.sum(p.failed), sa.func.sum(p.done)
    rows = conn.execute(
        sa.select(run.campaign, run.partition, run.status, failed, done)
        .join(t.progress, p.campaign_run == run.id)
        .where(
            run.status.in_((RunStatus.COMPLETED, RunStatus.FAILED)),
            run.changed_at > now - MAX_AGE,
        )
        .group_by(run.id, run.campaign, run.partition, run.status, run.changed_at)
        .having(failed > 0)
        .order_by(run.changed_at.desc())
    )
    return [
        FailedRecords(run_name(campaign, partition), RunStatus(status), failed, failed + done)
        for campaign, partition, status, failed, done in rows
    ]


def with_failed_records(
    conn: Connection, *, text: str = "", before: int | None = None, limit: int
) -> Sequence[CampaignRun]:
    """Return campaign runs with records that failed, the one created last first.

    Args:
        text: Only those with this in their campaign or partition, in upper or lower case.
        before: Only those with a lower id.
    """
    c = t.campaign_runs.c
    failed = sa.select(t.progress.c.campaign_run).where(t.progress.c.failed > 0)
    query = sa.select(t.campaign_runs).where(c.id.in_(failed), c.pruned_at.is_(None))
    if text:
        name = sa.func.lower(c.campaign + "/" + c.partition)
        query = query.where(name.contains(text.lower(), autoescape=True))
    if before is not None:
        query = query.where(c.id < before)
    rows = conn.execute(query.order_by(c.id.desc()).limit(limit)).mappings()
    return [runs.from_row(row) for row in rows]


def failed_after_pause(conn: Connection, now: datetime) -> Mapping[str, str | None]:
    """Return the reasons of the campaign runs that failed in the attempt after a pause, by name."""
    run, attempt = t.campaign_runs.c, t.attempts.c
    rows = conn.execute(
        sa.select(run.campaign, run.partition, run.reason)
        .join(t.attempts, (attempt.campaign_run == run.id) & (attempt.number == run.attempt - 1))
        .where(
            run.status == RunStatus.FAILED,
            run.changed_at > now - MAX_AGE,
            attempt.outcome == RunStatus.PAUSED,
        )
    )
    return {run_name(row.campaign, row.partition): row.reason for row in rows}


def paused_without_hold(
    conn: Connection, now: datetime, *, before: datetime
) -> Mapping[str, PausedRuns]:
    """Return the runs that paused before a time and have no hold of their own, by campaign."""
    run, hold = t.campaign_runs.c, t.holds.c
    held = sa.exists().where(
        hold.released_at.is_(None),
        hold.expires_at.is_(None) | (hold.expires_at > now),
        hold.target_kind == TargetKind.CAMPAIGN_RUN,
        hold.target_name == run.campaign + "/" + run.partition,
    )
    rows = conn.execute(
        sa.select(
            run.campaign, sa.func.count().label("runs"), sa.func.min(run.paused_at).label("since")
        )
        .where(run.status == RunStatus.PAUSED, run.paused_at < before, ~held)
        .group_by(run.campaign)
    ).all()
    changes = conn.execute(
        sa.select(run.campaign, sa.func.max(run.changed_at).label("at"))
        .where(run.campaign.in_([row.campaign for row in rows]))
        .group_by(run.campaign)
    )
    changed_at = {row.campaign: row.at for row in changes}
    return {row.campaign: PausedRuns(row.runs, row.since, changed_at[row.campaign]) for row in rows}
