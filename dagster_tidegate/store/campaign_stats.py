"""Statistics of campaigns, for people."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.statuses import UNFINISHED, RunStatus
from dagster_tidegate.store import ledger
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection

RUNNING = "running"


@dataclass(frozen=True)
class RecordStats:
    """Record counts of a campaign.

    Attributes:
        total: All records of the loops that know their total.
    """

    done: int
    failed: int
    total: int


@dataclass(frozen=True)
class CampaignStats:
    """Statistics of a campaign. Times are UTC.

    Attributes:
        attempts: How many attempts have each outcome; `running` for those in progress.
        records_per_second: Current rate of all its loops together.
        first_run_at: When its first campaign run was created, or None.
        last_change_at: When the status of one last changed, or None.
    """

    campaign: str
    runs: Mapping[RunStatus, int]
    attempts: Mapping[str, int]
    records: RecordStats
    records_per_second: float
    first_run_at: datetime | None
    last_change_at: datetime | None


def read(conn: Connection, now: datetime, campaign: str) -> CampaignStats:
    """Return the statistics of a campaign; all zero for an unknown one."""
    r, a, p = t.campaign_runs.c, t.attempts.c, t.progress.c
    of_campaign = r.campaign == campaign
    by_status = conn.execute(
        sa.select(
            r.status,
            sa.func.count(),
            sa.func.min(r.created_at, type_=r.created_at.type),
            sa.func.max(r.changed_at, type_=r.changed_at.type),
        )
        .where(of_campaign)
        .group_by(r.status)
    ).all()
    counts = {RunStatus(status): count for status, count, _, _ in by_status}
    outcome = sa.func.coalesce(a.outcome, RUNNING)
    attempts = conn.execute(
        sa.select(outcome.label("outcome"), sa.func.count().label("attempts"))
        .select_from(t.attempts.join(t.campaign_runs, a.campaign_run == r.id))
        .where(of_campaign)
        .group_by(outcome)
    )
    sums: Any = conn.execute(
        sa.select(
            *(sa.func.coalesce(sa.func.sum(each), 0) for each in (p.done, p.failed, p.total)),
            sa.func.coalesce(
                sa.func.sum(ledger.rate(now)).filter(r.status == RunStatus.PROCESSING), 0.0
            ),
        )
        .select_from(t.progress.join(t.campaign_runs, p.campaign_run == r.id))
        .where(of_campaign)
    ).one()
    done, failed, total, rate = sums
    return CampaignStats(
        campaign=campaign,
        runs={status: counts.get(status, 0) for status in RunStatus},
        attempts={row.outcome: row.attempts for row in attempts},
        records=RecordStats(int(done), int(failed), int(total)),
        records_per_second=float(rate),
        first_run_at=min((first for _, _, first, _ in by_status), default=None),
        last_change_at=max((last for _, _, _, last in by_status), default=None),
    )


@dataclass(frozen=True)
class UnfinishedRuns:
    """The runs of a campaign that have one unfinished status, and the records they have left.

    Attributes:
        records_left: How many records they have left, as far as the loops know their total.
    """

    campaign: str
    status: RunStatus
    runs: int
    records_left: int


def unfinished(conn: Connection) -> list[UnfinishedRuns]:
    """Return the unfinished runs of each campaign, by status."""
    r, p = t.campaign_runs.c, t.progress.c
    left = (
        sa.select(p.campaign_run, sa.func.sum(p.total - p.done - p.failed).label("records"))
        .group_by(p.campaign_run)
        .subquery()
    )
    rows = conn.execute(
        sa.select(
            r.campaign, r.status, sa.func.count(), sa.func.coalesce(sa.func.sum(left.c.records), 0)
        )
        .select_from(t.campaign_runs.outerjoin(left, left.c.campaign_run == r.id))
        .where(r.status.in_(UNFINISHED))
        .group_by(r.campaign, r.status)
    )
    return [
        UnfinishedRuns(campaign, RunStatus(status), count, max(0, int(records)))
        for campaign, status, count, records in rows
    ]


def failed_records(conn: Connection, campaigns: Collection[str] | None = None) -> Mapping[str, int]:
    """Return how many records failed in all runs of each campaign that has some.

    Args:
        campaigns: Only of these; None: of all.
    """
    r, p = t.campaign_runs.c, t.progress.c
    query = (
        sa.select(r.campaign, sa.func.sum(p.failed).label("failed"))
        .join(t.progress, p.campaign_run == r.id)
        .where(p.failed > 0)
        .group_by(r.campaign)
    )
    rows = conn.execute(query if campaigns is None else query.where(r.campaign.in_(campaigns)))
    return {row.campaign: int(row.failed) for row in rows}


def paused_since(conn: Connection) -> Mapping[str, datetime]:
    """Return when the longest paused run of each campaign paused (UTC), where one is paused."""
    r = t.campaign_runs.c
    rows = conn.execute(
        sa.select(r.campaign, sa.func.min(r.paused_at).label("since"))
        .where(r.status == RunStatus.PAUSED, r.paused_at.is_not(None))
        .group_by(r.campaign)
    )
    return {row.campaign: row.since for row in rows}


@dataclass(frozen=True)
class OpProgress:
    """Progress of an op, summed over the unfinished runs of its campaign.

    Attributes:
        total: Records that the loops have, as far as they know; 0 where none knows.
        records_per_second: Current rate of the processing runs.
    """

    campaign: str
    op: str
    done: int
    failed: int
    total: int
    records_per_second: float


def op_progress(
    conn: Connection, now: datetime, campaigns: Collection[str] | None = None
) -> list[OpProgress]:
    """Return the progress of each op that has unfinished campaign runs.

    Args:
        campaigns: Only of these; None: of all.
    """
    r, p = t.campaign_runs.c, t.progress.c
    processing_rate = sa.case((r.status == RunStatus.PROCESSING, ledger.rate(now)))
    wanted = sa.true() if campaigns is None else r.campaign.in_(campaigns)
    rows = conn.execute(
        sa.select(
            r.campaign,
            p.op,
            sa.func.sum(p.done).label("done"),
            sa.func.sum(p.failed).label("failed"),
            sa.func.coalesce(sa.func.sum(p.total), 0).label("total"),
            sa.func.coalesce(sa.func.sum(processing_rate), 0.0).label("records_per_second"),
        )
        .join(t.progress, p.campaign_run == r.id)
        .where(r.status.in_(UNFINISHED), wanted)
        .group_by(r.campaign, p.op)
    )
    return [OpProgress(**row) for row in rows.mappings()]
