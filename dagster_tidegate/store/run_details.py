"""Campaign runs as a person looks at them: how far they are, and what went wrong."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import ledger, runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.runs import Attempt, CampaignRun


@dataclass(frozen=True, kw_only=True)
class Progress(ledger.Progress):
    """How far an op of a campaign run is.

    Attributes:
        op: Its name.
        updated_at: When this was written, UTC.
    """

    op: str
    updated_at: datetime


@dataclass(frozen=True)
class ListedRun:
    """A campaign run, and how far its ops are, in the order in which they were begun."""

    run: CampaignRun
    progress: Sequence[Progress]


@dataclass(frozen=True)
class Record:
    """A record of the ledger that is in doubt or failed.

    Attributes:
        op: Name of the op.
        key: Key of the record.
        attempt: Number of the attempt that wrote this.
        error: Why it failed; None of one in doubt.
        at: When this was written, UTC.
    """

    op: str
    key: str
    attempt: int
    error: str | None
    at: datetime


@dataclass(frozen=True)
class RunDetails:
    """All that the store knows of a campaign run.

    Attributes:
        run: The campaign run.
        progress: How far its ops are.
        attempts: Its attempts, the oldest first.
        started: Records that were begun and have no result, at most as many as were asked for.
            They are in doubt if their attempt is over, or its process has died, and in hand
            while it works.
        started_count: How many there are.
        failed: Records that failed, at most as many as were asked for.
        failed_count: How many there are.
    """

    run: CampaignRun
    progress: Sequence[Progress]
    attempts: Sequence[Attempt]
    started: Sequence[Record]
    started_count: int
    failed: Sequence[Record]
    failed_count: int

    def in_doubt(self, now: datetime) -> Sequence[Record]:
        """Return the records whose effect may or may not have reached the service.

        Args:
            now: The database's time, UTC.
        """
        at_work = {
            attempt.number
            for attempt in self.attempts
            if attempt.ended_at is None
            and (attempt.lease_until is None or attempt.lease_until >= now)
        }
        return [record for record in self.started if record.attempt not in at_work]


def listed(
    conn: sa.Connection,
    *,
    campaign: str | None = None,
    statuses: Collection[RunStatus] = (),
    limit: int,
) -> Sequence[ListedRun]:
    """Return campaign runs and how far they are, the one that changed last first.

    Args:
        conn: A connection of the store.
        campaign: Only those of this campaign.
        statuses: Only those that have one of these.
        limit: How many at most.
    """
    found = runs.newest(conn, campaign=campaign, statuses=statuses, by_change=True, limit=limit)
    return _with_progress(conn, found)


def page(
    conn: sa.Connection,
    campaign: str,
    *,
    statuses: Collection[RunStatus] = (),
    before: int | None = None,
    limit: int,
) -> Sequence[ListedRun]:
    """Return campaign runs of a campaign and how far they are, the one created last first.

    Args:
        conn: A connection of the store.
        campaign: The campaign.
        statuses: Only those that have one of these.
        before: Only those with a lower id.
        limit: How many at most.
    """
    found = runs.newest(conn, campaign=campaign, statuses=statuses, before=before, limit=limit)
    return _with_progress(conn, found)


def _with_progress(conn: sa.Connection, found: Sequence[CampaignRun]) -> Sequence[ListedRun]:
    progress = _progress(conn, [run.id for run in found])
    return [ListedRun(run, progress.get(run.id, [])) for run in found]


def details(conn: sa.Connection, run: CampaignRun, *, limit: int) -> RunDetails:
    """Return all that the store knows of a campaign run.

    Args:
        conn: A connection of the store.
        run: The campaign run.
        limit: How many records of each kind at most.
    """
    started, started_count = _records(conn, run, RecordStatus.STARTED, limit)
    failed, failed_count = _records(conn, run, RecordStatus.FAILED, limit)
    return RunDetails(
        run=run,
        progress=_progress(conn, [run.id]).get(run.id, []),
        attempts=runs.attempts(conn, run.id),
        started=started,
        started_count=started_count,
        failed=failed,
        failed_count=failed_count,
    )


def _progress(conn: sa.Connection, ids: Sequence[int]) -> Mapping[int, list[Progress]]:
    rows = conn.execute(
        sa.select(t.progress)
        .where(t.progress.c.campaign_run.in_(ids))
        .order_by(t.progress.c.updated_at, t.progress.c.op)
    )
    found: dict[int, list[Progress]] = {}
    for row in rows:
        values = {name: value for name, value in row._mapping.items() if name != "campaign_run"}
        found.setdefault(row.campaign_run, []).append(Progress(**values))
    return found


def _records(
    conn: sa.Connection, run: CampaignRun, status: RecordStatus, limit: int
) -> tuple[Sequence[Record], int]:
    of_status = (t.ledger.c.campaign_run == run.id, t.ledger.c.status == status)
    count = conn.scalar(sa.select(sa.func.count()).select_from(t.ledger).where(*of_status)) or 0
    rows = conn.execute(
        sa.select(t.ledger)
        .where(*of_status)
        .order_by(t.ledger.c.at.desc(), t.ledger.c.op, t.ledger.c.key)
        .limit(limit)
    )
    return [Record(row.op, row.key, row.attempt, row.error, row.at) for row in rows], count
