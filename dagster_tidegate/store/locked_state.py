"""What the fleet knows of a service, as one text in a row that is changed under a lock."""

from collections.abc import Callable

import sqlalchemy as sa

from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.upsert import insert


def lock(conn: Connection, table: sa.Table, service: str, empty: Callable[[], str]) -> str:
    """Return the state of a service, locked until the transaction ends.

    Read the time after it: it may have waited for the lock.

    Args:
        empty: Returns the state of a service that has none yet.
    """
    mine = sa.select(table.c.state).where(table.c.service == service).with_for_update()
    row = conn.execute(mine).one_or_none()
    if row is None:
        new = insert(conn, table).values(service=service, state=empty())
        conn.execute(new.on_conflict_do_nothing())
        row = conn.execute(mine).one()
    return row.state


def save(conn: Connection, table: sa.Table, service: str, state: str) -> None:
    """Write the state of a service, which is locked."""
    conn.execute(table.update().where(table.c.service == service).values(state=state))
