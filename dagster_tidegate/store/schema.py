"""Brings a database to a revision of the schema, and says which one it has."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from dagster_tidegate.store import compatibility
from dagster_tidegate.store.database import Store, shown_url

VERSION_TABLE = "tidegate_version"
MIGRATIONS = Path(__file__).parent / "migrations"


class SchemaError(Exception):
    """The database does not have a schema that this version works with."""


def head() -> str:
    """Return the revision that this version works with."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None  # the package ships at least one
    return revision


def current(store: Store) -> str | None:
    """Return the revision of a database, or None where the store was never made."""
    with store.read() as conn:
        context = MigrationContext.configure(conn, opts={"version_table": VERSION_TABLE})
        return context.get_current_revision()


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
    if found == head():
        return
    if found is None or found in _revisions():
        raise SchemaError(
            f"the store {shown_url(store.url)} has revision {found or 'none'}, and this "
            f"version of dagster-tidegate needs {head()}: run 'tidegate store upgrade'"
        )
    with store.read() as conn:
        refusal = compatibility.refusal(compatibility.read(conn))
    if refusal is not None:
        raise SchemaError(refusal)


def _revisions() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _migrate(store: Store, revision: str, *, up: bool) -> None:
    config = _config()
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


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config
