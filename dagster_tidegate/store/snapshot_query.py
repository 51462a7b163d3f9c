"""Several SELECTs in one statement: one round trip, and a single moment of the database."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.store.database import Connection, Store

_CLOCK = sa.select(sa.func.clock_timestamp(type_=sa.DateTime(timezone=True)).label("now"))


class SnapshotQuery:
    """Some SELECTs that are read at one moment. Their rows have no order."""

    def __init__(self, **selects: sa.Select) -> None:
        self._selects = selects

    @cached_property
    def _union(self) -> sa.CompoundSelect:
        return _union(self._selects)

    @cached_property
    def _union_and_clock(self) -> sa.CompoundSelect:
        return _union({**self._selects, "clock": _CLOCK})

    def read(
        self, store: Store, conn: Connection, **parameters: Any
    ) -> tuple[datetime, Mapping[str, list[dict[str, Any]]]]:
        """Return the database's time (UTC), and the rows of each SELECT by its name."""
        now = None
        columns = {part: each.selected_columns.keys() for part, each in self._selects.items()}
        rows: dict[str, list[dict[str, Any]]] = {part: [] for part in columns}
        union = self._union_and_clock if store.has_clock else self._union
        for row in conn.execute(union, parameters).mappings():
            if (part := row["part"]) == "clock":
                now = row["clock_now"].astimezone(UTC)
            else:
                rows[part].append({name: row[f"{part}_{name}"] for name in columns[part]})
        return now or store.now(conn), rows


def _union(selects: Mapping[str, sa.Select]) -> sa.CompoundSelect:
    """A row has NULL in the columns of the other SELECTs."""
    parts = {name: select.subquery() for name, select in selects.items()}
    return sa.union_all(
        *(
            sa.select(
                sa.literal(part).label("part"),
                *(
                    (column if owner == part else sa.cast(sa.null(), column.type)).label(
                        f"{owner}_{column.name}"
                    )
                    for owner, select in parts.items()
                    for column in select.c
                ),
            )
            for part in parts
        )
    )
