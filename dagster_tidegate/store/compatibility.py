"""Which versions of this package the store still works with.

A schema only ever grows, so that workers go on while it is migrated, until a migration takes
something away that older ones need. It says so before: the store has the oldest revision whose
workers it still fits, and who is older takes no more records.
"""

import sqlalchemy as sa

from dagster_tidegate.store import tables as t

REVISION = "0002"
"""The revision of the schema that this version works with. Revisions are numbered, in one line."""
OLDEST = sa.select(t.compatibility.c.oldest_revision).scalar_subquery()
"""The oldest revision whose workers the store still fits; NULL where nobody has ever said."""


def refusal(oldest: str | None) -> str | None:
    """Return why this version may not work with a store any more, or None if it may.

    Args:
        oldest: What `OLDEST` reads.

    Example:
        >>> refusal("0001") is None
        True
        >>> refusal("9999")
        'the store needs revision 9999 or newer, and this version of dagster-tidegate has 0002: \
deploy the version that the store was upgraded with'
    """
    if oldest is None or oldest <= REVISION:
        return None
    return (
        f"the store needs revision {oldest} or newer, and this version of dagster-tidegate has "
        f"{REVISION}: deploy the version that the store was upgraded with"
    )


def read(conn: sa.Connection) -> str | None:
    """Return the oldest revision whose workers the store fits, or None where nobody has said."""
    if not sa.inspect(conn).has_table(t.compatibility.name):  # made by the second revision
        return None
    return conn.scalar(sa.select(OLDEST))
