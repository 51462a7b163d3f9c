"""One PostgreSQL database for all tests of a worker, emptied between them.

To make a database and to drop it takes five times as long.
"""

from collections.abc import Callable

import psycopg
import sqlalchemy as sa
from psycopg.sql import SQL, Composable, Identifier, Literal

from dagster_tidegate.store.schema import VERSION_TABLE
from dagster_tidegate.store.tables import compatibility, metadata


def emptying(url: str) -> Callable[[], None]:
    """Return a function that brings a database back to how it is now: tables without rows.

    Args:
        url: A database as the migrations leave it. Whoever is still connected is disconnected.
    """
    address = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    emptied: list[Composable] = [
        SQL("DELETE FROM {}").format(Identifier(table.name))
        for table in reversed(metadata.sorted_tables)
    ]
    with psycopg.connect(address, autocommit=True) as conn:
        for (name,) in conn.execute("SELECT sequencename FROM pg_sequences").fetchall():
            emptied.append(SQL("ALTER SEQUENCE {} RESTART").format(Identifier(name)))
        # What the migrations write themselves.
        emptied.append(SQL("DELETE FROM {}").format(Identifier(VERSION_TABLE)))
        for table in (VERSION_TABLE, compatibility.name):
            for row in conn.execute(SQL("SELECT * FROM {}").format(Identifier(table))).fetchall():
                values = SQL(", ").join(map(Literal, row))
                emptied.append(SQL("INSERT INTO {} VALUES ({})").format(Identifier(table), values))
    statements = SQL("; ").join(emptied)

    def empty() -> None:
        with psycopg.connect(address, autocommit=True) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            conn.execute(statements)

    return empty
