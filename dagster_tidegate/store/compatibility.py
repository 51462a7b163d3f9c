"""Which versions of this package may use a store.

The schema only grows, so that workers keep running while it is migrated, until a migration removes
something that older versions need. Before that, it sets the oldest revision that the store still
supports, and older workers start no more records.
"""

import sqlalchemy as sa

from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection

REVISION = "0004"
"""The schema revision of this version. Revisions are consecutive numbers."""
OLDEST = sa.select(t.compatibility.c.oldest_revision).scalar_subquery()
"""The oldest revision that the store supports; NULL if it was never set."""


def refusal(oldest: str | None) -> str | None:
    """Return why this version may no longer use a store, or None if it may.

    Args:
        oldest: The value of `OLDEST`.

    Example:
        >>> refusal("0001") is None
        True
        >>> refusal("9999")
        'the store needs revision 9999 or newer, and this version of dagster-tidegate has 0004: \
deploy the version that the store was upgraded with'
    """
    if oldest is None or oldest <= REVISION:
        return None
    return (
        f"the store needs revision {oldest} or newer, and this version of dagster-tidegate has "
        f"{REVISION}: deploy the version that the store was upgraded with"
    )


def read(conn: Connection) -> str | None:
    """Return the oldest revision that the store supports, or None if it was never set."""
    if not sa.inspect(conn).has_table(t.compatibility.name):  # created by revision 0002
        return None
    return conn.scalar(sa.select(OLDEST))
