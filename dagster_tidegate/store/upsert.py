"""INSERT ... ON CONFLICT, which SQLite and PostgreSQL spell the same and SQLAlchemy does not."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite


def insert(conn: sa.Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT into `table` that has `on_conflict_do_nothing` and `..._do_update`."""
    dialect = postgresql if conn.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)
