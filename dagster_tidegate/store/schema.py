"""Brings a database to a revision of the schema, and says which one it has."""

from contextlib import ExitStack
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from dagster_tidegate.store.database import Store

VERSION_TABLE = "tidegate_version"
# One number for all who migrate at once; PostgreSQL lets them in one after the other.
LOCK = 7_403_112


class SchemaError(Exception):
    """The database does not have the schema that this version works with."""


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


def require_head(store: Store) -> None:
    """Check that a database has the revision that this version works with.

    Raises:
        SchemaError: If it has not; the message says what to do.
    """
    found, wanted = current(store), head()
    if found != wanted:
        raise SchemaError(
            f"the store {store.url.render_as_string()} has revision {found or 'none'}, and this "
            f"version of dagster-tidegate needs {wanted}: run 'tidegate store upgrade'"
        )


def _migrate(store: Store, revision: str, *, up: bool) -> None:
    with ExitStack() as stack:
        conn = stack.enter_context(store.begin())
        if not store.is_sqlite:
            from dagster_tidegate.store import postgres  # its driver is an extra

            stack.enter_context(postgres.unbounded(conn))
            conn.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        config = _config()
        config.attributes["connection"] = conn
        (command.upgrade if up else command.downgrade)(config, revision)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
