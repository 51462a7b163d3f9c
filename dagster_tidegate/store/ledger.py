"""The ledger: which records of a campaign run are done, with their result."""

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.runs import Attempt
from dagster_tidegate.store.upsert import insert


class AttemptOverError(Exception):
    """A write was refused: a newer attempt owns the campaign run."""


@dataclass(frozen=True)
class Entry:
    """What is to be written of one record.

    Attributes:
        key: Key of the record.
        status: Its status.
        result: What the author's code made of it, as JSON can hold it.
        error: Why it failed, for people.
    """

    key: str
    status: RecordStatus
    result: Any = None
    error: str | None = None


def write(
    conn: sa.Connection, now: datetime, attempt: Attempt, op: str, entries: Sequence[Entry]
) -> None:
    """Write entries of an op, unless a newer attempt owns the campaign run.

    Raises:
        AttemptOverError: If it does; nothing is written.
    """
    _fence(conn, attempt)
    statement = insert(conn, t.ledger)
    conn.execute(
        statement.on_conflict_do_update(
            index_elements=["campaign_run", "op", "key"],
            set_={
                name: statement.excluded[name]
                for name in ("status", "attempt", "result", "error", "at")
            },
        ),
        [
            {
                "campaign_run": attempt.campaign_run,
                "op": op,
                "key": entry.key,
                "status": entry.status,
                "attempt": attempt.number,
                "result": entry.result,
                "error": entry.error,
                "at": now,
            }
            for entry in entries
        ],
    )


def abandon(conn: sa.Connection, attempt: Attempt, op: str) -> None:
    """Forget that this attempt started records which it stopped before: none is in doubt.

    Raises:
        AttemptOverError: If a newer attempt owns the campaign run.
    """
    _fence(conn, attempt)
    conn.execute(
        t.ledger.delete().where(
            t.ledger.c.campaign_run == attempt.campaign_run,
            t.ledger.c.op == op,
            t.ledger.c.attempt == attempt.number,
            t.ledger.c.status == RecordStatus.STARTED,
        )
    )


def write_progress(
    conn: sa.Connection,
    now: datetime,
    attempt: Attempt,
    op: str,
    *,
    done: int,
    failed: int,
    total: int | None,
) -> None:
    """Write how far an op of a campaign run is."""
    statement = insert(conn, t.progress).values(
        campaign_run=attempt.campaign_run,
        op=op,
        done=done,
        failed=failed,
        total=total,
        updated_at=now,
    )
    conn.execute(
        statement.on_conflict_do_update(
            index_elements=["campaign_run", "op"],
            set_={
                name: statement.excluded[name] for name in ("done", "failed", "total", "updated_at")
            },
        )
    )


def begun(conn: sa.Connection, ops: Collection[str]) -> Set[tuple[int, str]]:
    """Return which paused campaign runs have begun which of some ops, as (id, op)."""
    rows = conn.execute(
        sa.select(t.progress.c.campaign_run, t.progress.c.op)
        .join(t.campaign_runs)
        .where(t.campaign_runs.c.status == RunStatus.PAUSED, t.progress.c.op.in_(ops))
    )
    return {(row.campaign_run, row.op) for row in rows}


def statuses(
    conn: sa.Connection, campaign_run: int, op: str, *, failed_since: int = 0
) -> Mapping[str, RecordStatus]:
    """Return the status of every record of an op that the ledger knows, by key.

    Args:
        conn: A connection of the store.
        campaign_run: Id of the campaign run.
        op: Name of the op.
        failed_since: Records that failed in an attempt before this one are left out.
    """
    rows = conn.execute(
        sa.select(t.ledger.c.key, t.ledger.c.status).where(
            t.ledger.c.campaign_run == campaign_run,
            t.ledger.c.op == op,
            (t.ledger.c.status != RecordStatus.FAILED) | (t.ledger.c.attempt >= failed_since),
        )
    )
    return {row.key: RecordStatus(row.status) for row in rows}


def results(conn: sa.Connection, campaign_run: int, op: str) -> Mapping[str, Any]:
    """Return the results of the records of an op that are done, by key."""
    rows = conn.execute(
        sa.select(t.ledger.c.key, t.ledger.c.result).where(
            t.ledger.c.campaign_run == campaign_run,
            t.ledger.c.op == op,
            t.ledger.c.status == RecordStatus.DONE,
        )
    )
    return {row.key: row.result for row in rows}


def _fence(conn: sa.Connection, attempt: Attempt) -> None:
    # FOR SHARE makes a newer attempt wait until this transaction is over (SQLite, which lets one
    # writer in at a time, needs no such word and is sent none).
    owned = conn.scalar(
        sa.select(t.campaign_runs.c.attempt)
        .where(t.campaign_runs.c.id == attempt.campaign_run)
        .with_for_update(read=True)
    )
    if owned != attempt.number:
        raise AttemptOverError(
            f"attempt {attempt.number} (Dagster run {attempt.dagster_run}) is over: attempt "
            f"{owned} owns the campaign run. Nothing was written"
        )
