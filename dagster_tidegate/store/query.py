"""Several queries in one statement, for whoever looks often and mostly finds nothing new."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

T = TypeVar("T")


@dataclass(frozen=True)
class Query(Generic[T]):
    """A query, and what becomes of its rows.

    Attributes:
        select: The query. Each of its columns has a name of its own.
        make: Makes a thing of a row, whose values are passed by the names of the columns.
        order: By what the things are sorted, since a part of a statement has no order.
    """

    select: sa.Select
    make: Callable[..., T]
    order: Callable[[T], Any] = lambda _thing: 0

    def all(self, conn: sa.Connection) -> list[T]:
        """Return what the query finds."""
        return together(conn, self)[0]


def together(conn: sa.Connection, *queries: Query[Any]) -> list[list[Any]]:
    """Return what each of some queries finds, read in one statement and so at one moment.

    Args:
        conn: A connection of the store.
        queries: The queries.

    Example:
        >>> one = Query(sa.select(sa.literal(1).label("n")), lambda n: n + 1)
        >>> two = Query(sa.select(sa.literal("a").label("name")), lambda name: name)
        >>> with sa.create_engine("sqlite://").connect() as conn:
        ...     together(conn, one, two)
        [[2], ['a']]
    """
    parts = [query.select.subquery() for query in queries]
    places = [(number, column) for number, part in enumerate(parts) for column in part.c]
    # A row is of one part, and has nothing in the columns of the others.
    selects = [
        sa.select(
            sa.literal(part).label("part"),
            *(
                (column if owner == part else sa.cast(sa.null(), column.type)).label(f"c{place}")
                for place, (owner, column) in enumerate(places)
            ),
        )
        for part in range(len(parts))
    ]
    mine = [
        [(place, column.key) for place, (owner, column) in enumerate(places, 1) if owner == part]
        for part in range(len(parts))
    ]
    found: list[list[Any]] = [[] for _ in queries]
    rows: Any = conn.execute(sa.union_all(*selects))
    for row in rows:
        part = row[0]
        found[part].append(queries[part].make(**{key: row[place] for place, key in mine[part]}))
    return [sorted(things, key=query.order) for query, things in zip(queries, found, strict=True)]
