"""INSERT ... ON CONFLICT: the same SQL on SQLite and PostgreSQL, but not the same in SQLAlchemy."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.compiler import SQLCompiler


def insert(conn: sa.Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT into `table` that has `on_conflict_do_nothing` and `..._do_update`."""
    return insert_on(conn.dialect.name, table)


def insert_on(dialect: str, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """Return the same for a dialect, by its name."""
    return (postgresql if dialect == "postgresql" else sqlite).insert(table)


def insert_columns(
    conn: sa.Connection,
    statement: sa.Insert,
    columns: Mapping[str, Sequence[Any]],
    same: Mapping[str, Any],
) -> None:
    """Execute an INSERT of many rows, whose values are given by column.

    SQLAlchemy would look up and convert each value of each row, which takes longer than the
    database takes to write them. Here the driver gets the rows as they are.

    Args:
        statement: The same object each time: its text is cached.
        columns: The values that differ between rows.
        same: Those that do not.
    """
    compiled = _compiled(conn.dialect, statement, (*columns, *same))
    converters = {name: _converter(conn.dialect, statement, name) for name in (*columns, *same)}
    values = {
        **{name: map(converters[name], each) for name, each in columns.items()},
        **{name: repeat(converters[name](value)) for name, value in same.items()},
    }
    if compiled.positiontup is None:
        rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=False)]
    else:
        rows = list(zip(*(values[name] for name in compiled.positiontup), strict=False))
    conn.exec_driver_sql(str(compiled), rows)


@lru_cache(maxsize=32)
def _compiled(dialect: sa.Dialect, statement: sa.Insert, names: tuple[str, ...]) -> SQLCompiler:
    compiled = statement.compile(dialect=dialect, column_keys=[*names])
    assert isinstance(compiled, SQLCompiler)  # it is no DDL
    return compiled


def _converter(dialect: sa.Dialect, statement: sa.Insert, name: str) -> Callable[[Any], Any]:
    """Return what makes a value of a column one that the driver takes."""
    type_ = statement.table.c[name].type
    return type_.dialect_impl(dialect).bind_processor(dialect) or (lambda value: value)
