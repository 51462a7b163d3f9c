"""The record of who changed what, when and why."""

from datetime import datetime

import sqlalchemy as sa

from dagster_tidegate.store import tables as t


def write(
    conn: sa.Connection,
    now: datetime,
    *,
    kind: str,
    name: str,
    to_status: str,
    from_status: str | None = None,
    reason: str | None = None,
    actor: str,
) -> None:
    """Write one event, in the transaction of the change that it tells of."""
    conn.execute(
        t.events.insert().values(
            at=now,
            kind=kind,
            name=name,
            from_status=from_status,
            to_status=to_status,
            reason=reason,
            actor=actor,
        )
    )
