"""Alembic's entry point. `store.schema` runs it with a connection; there is no alembic.ini."""

from alembic import context

from dagster_tidegate.store.schema import VERSION_TABLE
from dagster_tidegate.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite alters a table by making it anew.
    render_as_batch=True,
    version_table=VERSION_TABLE,
    compare_type=True,
    # On PostgreSQL no revision keeps its locks while the next one works.
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
