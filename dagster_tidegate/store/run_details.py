"""Campaign runs as a person looks at them: how far they are, and what went wrong."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import ledger, runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.runs import AttemptRow, CampaignRun


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
        in_doubt: Records that were begun and have no result, and nobody is at work on them: their
            effect may or may not have reached the service. At most as many as were asked for.
        in_doubt_count: How many there are.
        in_hand_count: How many records are at work.
        failed: Records that failed, at most as many as were asked for.
        failed_count: How many there are.
    """

    run: CampaignRun
    progress: Sequence[Progress]
    attempts: Sequence[AttemptRow]
    in_doubt: Sequence[Record]
    in_doubt_count: int
    in_hand_count: int
    failed: Sequence[Record]
    failed_count: int


def listed(
    conn: sa.Connection,
    now: datetime,
    *,
    campaign: str | None = None,
    statuses: Collection[RunStatus] = (),
    before: int | None = None,
    by_change: bool = False,
    limit: int,
) -> Sequence[ListedRun]:
    """Return campaign runs and how far they are now; the others are those of `runs.newest`."""
    return with_progress(
        conn,
        now,
        runs.newest(
            conn,
            campaign=campaign,
            statuses=statuses,
            before=before,
            by_change=by_change,
            limit=limit,
        ),
    )


def with_progress(
    conn: sa.Connection, now: datetime, found: Sequence[CampaignRun]
) -> Sequence[ListedRun]:
    """Return campaign runs with how far they are now, in the same order."""
    progress = _progress(conn, now, [run.id for run in found])
    return [ListedRun(run, progress.get(run.id, [])) for run in found]


def details(conn: sa.Connection, now: datetime, run: CampaignRun, *, limit: int) -> RunDetails:
    """Return all that the store knows of a campaign run.

    Args:
        conn: A connection of the store.
        now: The database's time, UTC.
        run: The campaign run.
        limit: How many records of each kind at most.
    """
    attempts = runs.attempts(conn, run.id)
    at_work = [
        attempt.number
        for attempt in attempts
        if attempt.ended_at is None and (attempt.lease_until is None or attempt.lease_until >= now)
    ]
    c = t.ledger.c
    of_run = c.campaign_run == run.id
    begun = of_run & (c.status == RecordStatus.STARTED)
    in_doubt = begun & c.attempt.not_in(at_work)
    failed = of_run & (c.status == RecordStatus.FAILED)
    return RunDetails(
        run=run,
        progress=_progress(conn, now, [run.id]).get(run.id, []),
        attempts=attempts,
        in_doubt=_records(conn, in_doubt, limit),
        in_doubt_count=_count(conn, in_doubt),
        in_hand_count=_count(conn, begun & c.attempt.in_(at_work)),
        failed=_records(conn, failed, limit),
        failed_count=_count(conn, failed),
    )


def _progress(
    conn: sa.Connection, now: datetime, ids: Sequence[int]
) -> Mapping[int, list[Progress]]:
    columns = [column for column in t.progress.c if column.name != "rate"]
    rows = conn.execute(
        sa.select(*columns, ledger.rate(now).label("rate"))
        .where(t.progress.c.campaign_run.in_(ids))
        .order_by(t.progress.c.updated_at, t.progress.c.op)
    )
    found: dict[int, list[Progress]] = {}
    for row in rows:
        values = {name: value for name, value in row._mapping.items() if name != "campaign_run"}
        found.setdefault(row.campaign_run, []).append(Progress(**values))
    return found


def _count(conn: sa.Connection, where: sa.ColumnElement[bool]) -> int:
    return conn.scalar(sa.select(sa.func.count()).select_from(t.ledger).where(where)) or 0


def _records(conn: sa.Connection, where: sa.ColumnElement[bool], limit: int) -> Sequence[Record]:
    c = t.ledger.c
    rows = conn.execute(
        sa.select(c.op, c.key, c.attempt, c.error, c.at)
        .where(where)
        .order_by(c.at.desc(), c.op, c.key)
        .limit(limit)
    )
    return [Record(**row._mapping) for row in rows]
