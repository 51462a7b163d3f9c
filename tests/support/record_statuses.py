"""The statuses of all records of a loop, to compare with what a test expects."""

from collections.abc import Mapping

import sqlalchemy as sa

from dagster_tidegate.statuses import RecordStatus
from dagster_tidegate.store import tables as t


def record_statuses(conn: sa.Connection, campaign_run: int, op: str) -> Mapping[str, RecordStatus]:
    """Return the status of every record of a loop in the ledger, by key."""
    c = t.ledger.c
    rows = conn.execute(
        sa.select(c.key, c.status).where(c.campaign_run == campaign_run, c.op == op)
    )
    return {row.key: RecordStatus(row.status) for row in rows}
