"""Positions of readers in the audit log."""

from datetime import datetime

import sqlalchemy as sa

from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.upsert import insert

DAGSTER_ASSETS = "dagster_assets"
"""Reads the changes of breakers, and reports them to Dagster as events of the services' assets."""


def read(conn: Connection, reader: str) -> int | None:
    """Return the last event that was read; None if none ever was."""
    return conn.scalar(sa.select(t.cursors.c.event).where(t.cursors.c.reader == reader))


def move(conn: Connection, now: datetime, reader: str, event: int) -> None:
    """Move a reader to an event."""
    values = {"event": event, "at": now}
    conn.execute(
        insert(conn, t.cursors)
        .values(reader=reader, **values)
        .on_conflict_do_update(index_elements=["reader"], set_=values)
    )
