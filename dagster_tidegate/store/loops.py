"""Leases of record loops: one process at a time, whatever Dagster launched."""

from datetime import datetime

from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.runs import AttemptRow
from dagster_tidegate.store.upsert import insert


def claim(
    conn: Connection, now: datetime, attempt: AttemptRow, op: str, worker: str, until: datetime
) -> bool:
    """Acquire or renew the lease of a loop.

    Args:
        worker: Identifies the process and its pass through the loop.

    Returns:
        False while another process of this attempt, or a newer attempt, has the lease.
    """
    loop = t.loops.c
    claimed = conn.execute(
        insert(conn, t.loops)
        .values(
            campaign_run=attempt.campaign_run,
            op=op,
            attempt=attempt.number,
            worker=worker,
            lease_until=until,
        )
        .on_conflict_do_update(
            index_elements=["campaign_run", "op"],
            set_={"attempt": attempt.number, "worker": worker, "lease_until": until},
            where=(loop.worker == worker)
            | (loop.attempt < attempt.number)
            | ((loop.attempt == attempt.number) & (loop.lease_until < now)),
        )
        .returning(loop.worker)
    ).first()
    return claimed is not None


def leave(conn: Connection, attempt: AttemptRow, op: str, worker: str) -> None:
    """Release the lease of a loop, if `worker` still has it."""
    loop = t.loops.c
    conn.execute(
        t.loops.delete().where(
            loop.campaign_run == attempt.campaign_run, loop.op == op, loop.worker == worker
        )
    )
