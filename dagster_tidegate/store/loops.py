"""Which process is at work on a record loop: one at a time, whatever Dagster launched."""

from datetime import datetime

import sqlalchemy as sa

from dagster_tidegate.store import tables as t
from dagster_tidegate.store.runs import AttemptRow
from dagster_tidegate.store.upsert import insert


def claim(
    conn: sa.Connection, now: datetime, attempt: AttemptRow, op: str, worker: str, until: datetime
) -> bool:
    """Take a loop for a process, or renew its lease.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        attempt: The attempt that the process belongs to.
        op: Name of the loop.
        worker: The process; another string for each time that it goes through the loop.
        until: Until when it is alive at least, UTC.

    Returns:
        Whether it has the loop; False while another process of this attempt or of a newer one has.
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


def leave(conn: sa.Connection, attempt: AttemptRow, op: str, worker: str) -> None:
    """Give a loop back that a process has; one that it has no more is left alone."""
    loop = t.loops.c
    conn.execute(
        t.loops.delete().where(
            loop.campaign_run == attempt.campaign_run, loop.op == op, loop.worker == worker
        )
    )
