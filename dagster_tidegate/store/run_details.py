"""Campaign runs for people: their progress, and what went wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from dagster_tidegate.statuses import RecordStatus
from dagster_tidegate.store import ledger, runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.runs import AttemptRow, CampaignRun


@dataclass(frozen=True, kw_only=True)
class LoopProgress(ledger.Progress):
    """Progress of an op of a campaign run, and when it was written (UTC)."""

    op: str
    updated_at: datetime


@dataclass(frozen=True)
class ListedRun:
    """A campaign run, and the progress of its ops."""

    run: CampaignRun
    progress: Sequence[LoopProgress]

    @property
    def failed(self) -> int:
        """How many records failed, in all ops."""
        return sum(each.failed for each in self.progress)


@dataclass(frozen=True)
class LedgerRecord:
    """A record that is in doubt or failed.

    Attributes:
        attempt: Number of the attempt that started it.
        error: Why it failed; None if it is in doubt.
    """

    op: str
    key: str
    attempt: int
    error: str | None
    at: datetime


@dataclass(frozen=True)
class RunDetails:
    """A campaign run, its attempts and the records that need a look.

    Attributes:
        in_doubt: Records that were started and have no result, by an attempt that is over: they
            may or may not have reached the service. At most `limit`.
        in_hand_count: How many records are in flight.
        failed: Records that failed, at most `limit`.
    """

    run: CampaignRun
    progress: Sequence[LoopProgress]
    attempts: Sequence[AttemptRow]
    in_doubt: Sequence[LedgerRecord]
    in_doubt_count: int
    in_hand_count: int
    failed: Sequence[LedgerRecord]
    failed_count: int


def with_progress(
    conn: Connection, now: datetime, campaign_runs: Sequence[CampaignRun]
) -> Sequence[ListedRun]:
    """Return campaign runs with their progress, in the same order."""
    progress = _progress(conn, now, [run.id for run in campaign_runs])
    return [ListedRun(run, progress.get(run.id, [])) for run in campaign_runs]


def details(conn: Connection, now: datetime, run: CampaignRun, *, limit: int) -> RunDetails:
    """Return a campaign run in detail, with at most `limit` records of each kind."""
    attempts = runs.attempts(conn, run.id)
    working = [attempt.number for attempt in attempts if attempt.works(now)]
    c = t.ledger.c
    of_run = (c.campaign_run == run.id) & (c.attempt >= run.first_attempt)
    started = of_run & (c.status == RecordStatus.STARTED)
    in_doubt = started & c.attempt.not_in(working)
    failed = of_run & (c.status == RecordStatus.FAILED)
    return RunDetails(
        run=run,
        progress=_progress(conn, now, [run.id]).get(run.id, []),
        attempts=attempts,
        in_doubt=_records(conn, in_doubt, limit),
        in_doubt_count=_count(conn, in_doubt),
        in_hand_count=_count(conn, started & c.attempt.in_(working)),
        failed=_records(conn, failed, limit),
        failed_count=_count(conn, failed),
    )


def _progress(
    conn: Connection, now: datetime, ids: Sequence[int]
) -> Mapping[int, list[LoopProgress]]:
    columns = [column for column in t.progress.c if column.name != "rate"]
    rows = conn.execute(
        sa.select(*columns, ledger.rate(now).label("rate"))
        .where(t.progress.c.campaign_run.in_(ids))
        .order_by(t.progress.c.updated_at, t.progress.c.op)
    )
    by_run: dict[int, list[LoopProgress]] = {}
    for row in rows.mappings():
        values = dict(row)
        by_run.setdefault(values.pop("campaign_run"), []).append(LoopProgress(**values))
    return by_run


def _count(conn: Connection, where: sa.ColumnElement[bool]) -> int:
    return conn.scalar(sa.select(sa.func.count()).select_from(t.ledger).where(where)) or 0


def _records(conn: Connection, where: sa.ColumnElement[bool], limit: int) -> Sequence[LedgerRecord]:
    c = t.ledger.c
    rows = conn.execute(
        sa.select(c.op, c.key, c.attempt, c.error, c.at)
        .where(where)
        .order_by(c.at.desc(), c.op, c.key)
        .limit(limit)
    )
    return [LedgerRecord(**row._asdict()) for row in rows]
