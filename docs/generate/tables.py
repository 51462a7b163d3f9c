"""The page docs/reference/tables.md: a diagram of the store's tables, and their columns."""

import ast
import tokenize
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from dagster_tidegate.store import tables

SOURCE = Path(tables.__file__)
HEAD = """\
# Tables of the store

<!-- Written by `make reference`. A test fails while it differs from the code. -->

The schema of the database that `TIDEGATE_STORE_URL` names. Read it for your own reports; change it
only with `tidegate`, which writes the audit log and wakes other processes. The tables are not a
public API: a new version may add tables and columns, and removes one over two releases
([CONTRIBUTING.md](../../CONTRIBUTING.md#write-a-migration)). Every time is UTC.

## Diagram

Tables with foreign keys, and the columns of their keys. Holds, takeovers, events and the like refer
to services and campaigns by name, so that they outlive them.

"""
_TYPES = {
    tables.UTCDateTime: "time",
    sa.JSON: "JSON",
    sa.Boolean: "boolean",
    sa.Float: "number",
    sa.Integer: "integer",
    sa.String: "text",  # and sa.Text
}


def page() -> str:
    """Return the page."""
    parts = [HEAD, "```mermaid\n", *_diagram(), "```\n"]
    comments = _comments()
    for table in tables.metadata.sorted_tables:
        parts.append(f"\n## `{table.name}`\n\n")
        if text := comments.get((table.name, "")):
            parts.append(f"{text}\n\n")
        parts.append("| column | type | key | meaning |\n|---|---|---|---|\n")
        for column in table.columns:
            meanings = [comments.get((table.name, column.name), ""), _values(table, column)]
            meaning = "; ".join(filter(None, meanings)).replace("|", "\\|")
            parts.append(f"| `{column.name}` | {_type(column)} | {_key(column)} | {meaning} |\n")
    return "".join(parts)


def _diagram() -> Iterator[str]:
    yield "erDiagram\n    direction LR\n"
    linked: set[str] = set()
    for table in tables.metadata.sorted_tables:
        for column in table.columns:
            for key in column.foreign_keys:
                linked |= {table.name, key.column.table.name}
                yield f"    {key.column.table.name} ||--o{{ {table.name} : {column.name}\n"
    for table in tables.metadata.sorted_tables:
        if table.name in linked:
            keys = [each for each in table.columns if each.primary_key or each.foreign_keys]
            yield f"    {table.name} {{\n"
            for column in keys:
                kinds = ["PK"] * column.primary_key + ["FK"] * bool(column.foreign_keys)
                yield f"        {_type(column)} {column.name} {', '.join(kinds)}\n"
            yield "    }\n"


def _type(column: sa.Column) -> str:
    return next(name for kind, name in _TYPES.items() if isinstance(column.type, kind))


def _key(column: sa.Column) -> str:
    targets = [f"→ `{key.column.table.name}`" for key in column.foreign_keys]
    return " ".join(["primary"] * column.primary_key + targets)


def _values(table: sa.Table, column: sa.Column) -> str:
    """Return the values that a column may have, if they are listed."""
    for constraint in table.constraints:
        if isinstance(constraint, sa.CheckConstraint):
            name, _, values = str(constraint.sqltext).partition(" IN ")
            if name == column.name:
                return values.strip("()").replace("'", "`")
    return ""


def _comments() -> dict[tuple[str, str], str]:
    """Return what the source says of each table (under column "") and of each column."""
    with SOURCE.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    said = {
        each.start[0]: each.string.lstrip("# ") for each in tokens if each.type == tokenize.COMMENT
    }
    lines = SOURCE.read_text().split("\n")

    def above(line: int) -> str:
        """The comment on the lines before one."""
        first = line
        while lines[first - 2].strip().startswith("#"):
            first -= 1
        return " ".join(said[each] for each in range(first, line))

    comments: dict[tuple[str, str], str] = {}
    for node in ast.parse(SOURCE.read_text()).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        if ast.unparse(node.value.func) != "sa.Table":
            continue
        name, _, *items = node.value.args
        table = ast.literal_eval(name)
        comments[table, ""] = above(node.lineno)
        for item in items:
            call = item.value if isinstance(item, ast.Starred) else item
            if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
                column = call.args[0].value
                beside = "" if call.end_lineno is None else said.get(call.end_lineno, "")
                text = "; ".join(each for each in (above(item.lineno), beside) if each)
                if not text.startswith(("noqa", "type:")):
                    comments[table, str(column)] = text
    return comments
