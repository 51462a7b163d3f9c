"""Brings a database to a revision of the schema, and says which one it has."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.store import compatibility
from dagster_tidegate.store.database import Store, shown_url

VERSION_TABLE = "tidegate_version"
MIGRATIONS = Path(__file__).parent / "migrations"


class SchemaError(Exception):
    """The database does not have a schema that this version works with."""


def current(store: Store) -> str | None:
    """Return the revision of a database, or None where the store was never made."""
    # Alembic's own way would cost every command its import, a quarter of a second.
    with store.read() as conn:
        if not sa.inspect(conn).has_table(VERSION_TABLE):
            return None
        version = sa.column("version_num", sa.String)
        return conn.scalar(sa.select(version).select_from(sa.table(VERSION_TABLE)))


def upgrade(store: Store, revision: str = "head") -> None:
    """Bring a database up to a revision; at it already, nothing happens.

    Args:
        store: The database.
        revision: Alembic's name of the revision.
    """
    _migrate(store, revision, up=True)


def downgrade(store: Store, revision: str) -> None:
    """Bring a database down to a revision; `base` removes all tables, with what they hold.

    Args:
        store: The database.
        revision: Alembic's name of the revision.
    """
    _migrate(store, revision, up=False)


def require_compatible(store: Store) -> None:
    """Check that this version works with the schema of a database.

    A newer schema will do, for as long as it has everything that this version needs: workers go on
    while a store is upgraded, before the new version is deployed.

    Raises:
        SchemaError: If it does not; the message says what to do.
    """
    found = current(store)
    if found == compatibility.REVISION:
        return
    if found is None or found < compatibility.REVISION:
        raise SchemaError(
            f"the store {shown_url(store.url)} has revision {found or 'none'}, and this "
            f"version of dagster-tidegate needs {compatibility.REVISION}: run 'tidegate store "
            "upgrade'"
        )
    with store.read() as conn:
        refusal = compatibility.refusal(compatibility.read(conn))
    if refusal is not None:
        raise SchemaError(refusal)


def _migrate(store: Store, revision: str, *, up: bool) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    run = command.upgrade if up else command.downgrade
    if store.is_sqlite:
        with _sqlite_migrating(store.engine) as conn:
            config.attributes["connection"] = conn
            run(config, revision)
        return
    from dagster_tidegate.store import postgres  # its driver is an extra

    with postgres.migrating(store.engine) as conn:
        config.attributes["connection"] = conn
        postgres.between_transactions(conn, lambda: run(config, revision))


@contextmanager
def _sqlite_migrating(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Give a connection in one transaction; others wait for their turn to write meanwhile.

    SQLite alters a table by making it anew, which rows that refer to it would forbid: so that is
    looked at in the end.
    """
    with engine.connect() as conn:
        driver: Any = conn.connection.driver_connection
        driver.execute("PRAGMA foreign_keys=OFF").close()
        try:
            with conn.begin():
                yield conn
                if broken := conn.exec_driver_sql("PRAGMA foreign_key_check").first():
                    raise SchemaError(f"a row of {broken[0]} would refer to none of {broken[2]}")
        finally:
            driver.execute("PRAGMA foreign_keys=ON").close()
