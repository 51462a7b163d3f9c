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
    database takes to write them. Here the driver gets the rows as they are, and PostgreSQL gets
    each column as one array.

    Args:
        statement: The same object each time: its text is cached.
        columns: The values that differ between rows, of which no two are of one key.
        same: Those that do not.
    """
    if conn.dialect.name == "postgresql":
        values = {f"{name}_": value for name, value in (*columns.items(), *same.items())}
        conn.execute(_of_arrays(statement, tuple(columns), tuple(same)), values)
        return
    compiled = _compiled(conn.dialect, statement, (*columns, *same))
    converters = {name: _converter(conn.dialect, statement, name) for name in (*columns, *same)}
    values = {
        **{name: map(converters[name], each) for name, each in columns.items()},
        **{name: repeat(converters[name](value)) for name, value in same.items()},
    }
    assert compiled.positiontup is not None  # SQLite's driver takes question marks
    rows = zip(*(values[name] for name in compiled.positiontup), strict=False)
    conn.exec_driver_sql(str(compiled), list(rows))


def _column(type_: sa.types.TypeEngine) -> postgresql.ARRAY:
    return postgresql.ARRAY(type_, dimensions=1)  # a list among JSON values is one value


@lru_cache(maxsize=32)
def _of_arrays(statement: sa.Insert, columns: tuple[str, ...], same: tuple[str, ...]) -> sa.Insert:
    types = {column.name: column.type for column in statement.table.c}
    rows = sa.select(
        *(sa.func.unnest(sa.bindparam(f"{n}_", type_=_column(types[n]))) for n in columns),
        *(sa.bindparam(f"{name}_", type_=types[name]) for name in same),
    )
    return statement.from_select([*columns, *same], rows)


@lru_cache(maxsize=32)
def _compiled(dialect: sa.Dialect, statement: sa.Insert, names: tuple[str, ...]) -> SQLCompiler:
    compiled = statement.compile(dialect=dialect, column_keys=[*names])
    assert isinstance(compiled, SQLCompiler)  # it is no DDL
    return compiled


def _converter(dialect: sa.Dialect, statement: sa.Insert, name: str) -> Callable[[Any], Any]:
    """Return what makes a value of a column one that the driver takes."""
    type_ = statement.table.c[name].type
    return type_.dialect_impl(dialect).bind_processor(dialect) or (lambda value: value)
