"""Migrates a database, and checks the revision of its schema."""

import re
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
    """This version can't work with the schema of the database, or migrate to a revision."""


def current(store: Store) -> str | None:
    """Return the revision of a database, or None if it has no store."""
    # Without Alembic, whose import would add a quarter of a second to every command.
    with store.read() as conn:
        if not sa.inspect(conn).has_table(VERSION_TABLE):
            return None
        version = sa.column("version_num", sa.String)
        return conn.scalar(sa.select(version).select_from(sa.table(VERSION_TABLE)))


def upgrade(store: Store, revision: str = "head") -> None:
    """Upgrade a database to a revision; a newer one stays as it is.

    Raises:
        SchemaError: If there is no such revision, or as for `require_compatible` if the database is
            newer than this version.
    """
    # A deployment that goes back to this version begins with an upgrade, too.
    if revision == "head" and (current(store) or "") > compatibility.REVISION:
        require_compatible(store)
        return
    require_revision(revision)
    _migrate(store, revision, up=True)


def downgrade(store: Store, revision: str) -> None:
    """Downgrade a database to a revision; `base` drops all tables and their rows.

    Raises:
        SchemaError: If there is no such revision, or the database is older.
    """
    require_revision(revision)
    at = current(store)
    if revision.isdecimal() and (at or "") < revision:
        raise SchemaError(f"the store is at {at or 'base'}: to get to {revision}, upgrade it")
    _migrate(store, revision, up=False)


def require_revision(revision: str) -> None:
    """Check that there is a revision to migrate to.

    Raises:
        SchemaError: If not; the message lists those that there are.
    """
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(MIGRATIONS)).walk_revisions()
    known = ["base", *sorted(each.revision for each in scripts), "head"]
    if revision not in known and not re.fullmatch(r"[+-]\d+", revision):
        raise SchemaError(f"there is no revision {revision!r}; known: {', '.join(known)}")


def make_ready(store: Store) -> None:
    """Create an embedded store that does not exist yet, and check any other one.

    Processes that do so at the same time wait for each other. Nothing else is migrated unasked: a
    store that several deployments may share is upgraded when its operator says so.

    Raises:
        SchemaError: As for `require_compatible`.
    """
    if store.embedded and current(store) is None:
        upgrade(store)
    require_compatible(store)


def require_compatible(store: Store) -> None:
    """Check that this version can work with the schema of a database.

    A newer schema is fine while it supports this version's revision: workers keep running while the
    store is upgraded, before the new version is deployed.

    Raises:
        SchemaError: If it can't; the message says what to do.
    """
    revision = current(store)
    if revision == compatibility.REVISION:
        return
    if revision is None or revision < compatibility.REVISION:
        raise SchemaError(
            f"the store {shown_url(store.url)} has revision {revision or 'none'}, and this "
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
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))

    def run() -> None:
        (command.upgrade if up else command.downgrade)(config, revision)

    try:
        if store.is_sqlite:
            with _sqlite_migrating(store.engine) as conn:
                config.attributes["connection"] = conn
                run()
        else:
            from dagster_tidegate.store import postgres  # its driver is an extra

            with postgres.migrating(store.engine) as conn:
                config.attributes["connection"] = conn
                postgres.between_transactions(conn, run)
    except CommandError as error:
        raise SchemaError(str(error)) from error


@contextmanager
def _sqlite_migrating(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Yield a connection in one transaction, which keeps other writers waiting.

    SQLite alters a table by recreating it, which foreign keys would forbid: so they are checked at
    the end.
    """
    with engine.connect() as conn:
        driver: Any = conn.connection.driver_connection
        driver.execute("PRAGMA foreign_keys=OFF").close()
        try:
            with conn.begin():
                yield conn
                if broken := conn.exec_driver_sql("PRAGMA foreign_key_check").first():
                    raise SchemaError(
                        f"a row of {broken[0]} refers to a missing row of {broken[2]}"
                    )
        finally:
            driver.execute("PRAGMA foreign_keys=ON").close()
