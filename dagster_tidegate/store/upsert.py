"""INSERT ... ON CONFLICT: the same SQL on SQLite and PostgreSQL, but not the same in SQLAlchemy."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite


def insert(conn: sa.Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT into `table` that has `on_conflict_do_nothing` and `..._do_update`."""
    return insert_on(conn.dialect.name, table)


def insert_on(dialect: str, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """Return the same for a dialect, by its name."""
    return (postgresql if dialect == "postgresql" else sqlite).insert(table)
