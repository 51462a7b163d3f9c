"""The results database."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import dagster as dg
import sqlalchemy as sa
from pydantic import Field

from dagster_tidegate.store.database import Store

metadata = sa.MetaData()

letters = sa.Table(
    "letters",
    metadata,
    sa.Column("partition", sa.String(256), primary_key=True),
    sa.Column("email", sa.String(254), primary_key=True),
    # sent; undeliverable; failed: the ledger of the campaign run has the error
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("verification", sa.String(16)),
    sa.Column("text", sa.Text),
    sa.Column("instantly_id", sa.String(64)),
)
addresses = sa.Table(
    "addresses",
    metadata,
    sa.Column("partition", sa.String(256), primary_key=True),
    sa.Column("email", sa.String(254), primary_key=True),
    sa.Column("verification", sa.String(16), nullable=False),
)
digests = sa.Table(
    "digests",
    metadata,
    sa.Column("partition", sa.String(256), primary_key=True),
    sa.Column("company", sa.String(256), primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
)


class ResultsDatabase(dg.ConfigurableResource):
    """The results database; tables are created on first use."""

    url: str = Field(description="SQLAlchemy URL, sqlite or postgresql.")

    def replace(self, table: sa.Table, partition: str, rows: Sequence[dict[str, Any]]) -> None:
        """Replace all rows of a partition in one transaction.

        Args:
            table: One of the tables of this module.
            partition: The partition key.
            rows: The rows, without the column `partition`.
        """
        with _database(self.url).begin() as conn:
            conn.execute(table.delete().where(table.c.partition == partition))
            if rows:
                conn.execute(table.insert(), [{**row, "partition": partition} for row in rows])


@cache
def _database(url: str) -> Store:
    database = Store(url)
    with database.begin() as conn:
        if not database.is_sqlite:  # serialize concurrent creation
            conn.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('results'))"))
        metadata.create_all(conn)
    return database
