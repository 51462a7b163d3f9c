"""The page docs/reference/python.md: every public name with its signature and its docstring.

It is also the snapshot of the public API: a test fails while it differs from the code. The source
is read and not imported, so that the page is the same with every version of Python.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from inspect import cleandoc
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
MODULES = {
    "dagster_tidegate": "What campaigns use.",
    "dagster_tidegate.breaker": "The breaker without Dagster, and without a database.",
    "dagster_tidegate.testing": "For tests of campaigns.",
    "dagster_tidegate.testing.fixtures": "Pytest fixtures.",
}
HEAD = """\
# Python reference

<!-- Written by `make reference`. A test fails while it differs from the code. -->

The public names, with their docstrings. Everything else is internal and may change without
notice. A public name is renamed or removed only with an entry in the changelog that says what to
use instead.
"""
WIDTH = 88
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example|Examples):$", re.MULTILINE)


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    shown: dict[tuple[str, str], str] = {}  # the module in which a name is described
    for module, purpose in MODULES.items():
        parts.append(f"## `{module}`\n\n{purpose}\n")
        for name in sorted(_public(module), key=str.casefold):
            home, node, comment = _definition(module, name)
            first = shown.setdefault((home, name), module)
            if first == module:
                parts.append(
                    "\n".join(
                        [f"### `{name}`\n", *filter(None, _described(home, name, node, comment))]
                    )
                )
            else:
                parts.append(f"### `{module.rpartition('.')[2]}.{name}`\n\nAs in `{first}`.\n")
    return "\n".join(parts)


def _described(module: str, name: str, node: Definition, comment: str) -> Iterator[str]:
    """Yield the parts of the description of a name."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        yield _code([ast.unparse(node)])
        yield _prose(comment)
    elif isinstance(node, ast.ClassDef):
        yield from _class(module, node)
    else:
        yield _code(_function(name, node))
        yield _prose(ast.get_docstring(node))


def _class(module: str, node: ast.ClassDef) -> Iterator[str]:
    members = _members(module, node)
    fields = [member for member in members if isinstance(member, ast.Assign | ast.AnnAssign)]
    functions = {
        member.name: member
        for member in members
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    bases = ", ".join(map(ast.unparse, node.bases))
    head = f"class {node.name}({bases})" if bases else f"class {node.name}"
    lines = [f"{head}:", *(f"    {_field(field)}" for field in fields)]
    if "__init__" in functions:
        arguments = _function(node.name, functions["__init__"])
        arguments[-1] = arguments[-1].removesuffix(" -> None")
        lines = [lines[0], *(f"    {line}" for line in arguments), *lines[1:]]
    yield _code(lines if len(lines) > 1 else [head])
    yield _prose(ast.get_docstring(node))
    described = [f"- `{_name(field)}`: {text}" for field in fields if (text := _field_text(field))]
    if described:
        yield "\n".join([*described, ""])
    for member in functions.values():
        if not member.name.startswith("_") or member.name == "__call__":
            yield _code(_function(member.name, member))
            yield _prose(ast.get_docstring(member))


def _members(module: str, node: ast.ClassDef) -> list[ast.stmt]:
    """Return the public members of a class, with those of its bases that are not public."""
    members: dict[str, ast.stmt] = {}
    for base in map(ast.unparse, node.bases):
        if base in {name for each in MODULES for name in _public(each)}:
            continue
        try:
            home, definition, _ = _definition(module, base)
        except LookupError:
            continue  # of another package
        if isinstance(definition, ast.ClassDef) and home.startswith("dagster_tidegate"):
            members |= {_name(member): member for member in _members(home, definition)}
    for member in node.body:
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
            kinds = [ast.unparse(each) for each in member.decorator_list]
            if not any(kind.endswith(".setter") or "validator" in kind for kind in kinds):
                members[member.name] = member
        elif isinstance(member, ast.Assign | ast.AnnAssign):
            name = _name(member)
            if not name.startswith("_") and name != "model_config":
                members[name] = member
    return list(members.values())


def _name(node: ast.stmt) -> str:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0])
    return ast.unparse(node.target) if isinstance(node, ast.AnnAssign) else ""


def _field(node: ast.Assign | ast.AnnAssign) -> str:
    """Return a field of a class: its name, type and default."""
    kind = f": {ast.unparse(node.annotation)}" if isinstance(node, ast.AnnAssign) else ""
    value = node.value
    if isinstance(value, ast.Call) and ast.unparse(value.func) in ("Field", "field"):
        defaults = [each for each in value.keywords if each.arg in ("default", "default_factory")]
        value = defaults[0].value if defaults else None
    return _name(node) + kind + (f" = {ast.unparse(value)}" if value is not None else "")


def _field_text(node: ast.Assign | ast.AnnAssign) -> str:
    if isinstance(node.value, ast.Call):
        for keyword in node.value.keywords:
            if keyword.arg == "description" and isinstance(keyword.value, ast.Constant):
                return str(keyword.value.value)
    return ""


def _function(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return the lines of a signature."""
    kinds = [ast.unparse(each) for each in node.decorator_list]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if any(kind.endswith("property") for kind in kinds):
        return [f"{name}{returns.replace(' -> ', ': ')}  # property"]
    listed = _arguments(node.args)
    if listed and listed[0] in ("self", "cls"):
        listed = listed[1:]
    prefix = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    line = f"{prefix}{name}({', '.join(listed)}){returns}"
    if len(line) <= WIDTH:
        return [line]
    return [f"{prefix}{name}(", *(f"    {each}," for each in listed), f"){returns}"]


def _arguments(node: ast.arguments) -> list[str]:
    """Return each argument of a function, with its type and default."""
    listed: list[str] = []
    positional = [*node.posonlyargs, *node.args]
    missing = len(positional) - len(node.defaults)
    for index, argument in enumerate(positional):
        default = node.defaults[index - missing] if index >= missing else None
        listed.append(_argument(argument, default))
        if node.posonlyargs and index == len(node.posonlyargs) - 1:
            listed.append("/")
    if node.vararg:
        listed.append(f"*{_argument(node.vararg, None)}")
    elif node.kwonlyargs:
        listed.append("*")
    for argument, default in zip(node.kwonlyargs, node.kw_defaults, strict=True):
        listed.append(_argument(argument, default))
    if node.kwarg:
        listed.append(f"**{_argument(node.kwarg, None)}")
    return listed


def _argument(node: ast.arg, default: ast.expr | None) -> str:
    if node.annotation is None:
        return node.arg + (f"={ast.unparse(default)}" if default is not None else "")
    kind = ast.unparse(node.annotation)
    return f"{node.arg}: {kind}" + (f" = {ast.unparse(default)}" if default is not None else "")


def _code(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```", ""])


def _prose(docstring: str | None) -> str:
    """Return a docstring as Markdown: its sections as lists, its examples as code.

    Example:
        >>> print(_prose("Do it.\\n\\nArgs:\\n    what: A thing\\n        to do.\\n"))
        Do it.
        <BLANKLINE>
        Arguments:
        <BLANKLINE>
        - `what`: A thing to do.
        <BLANKLINE>
    """
    text = cleandoc(docstring or "")
    head, *sections = _SECTION.split(text)
    parts = [head.strip()]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        section, after = _split(body)
        if title.startswith("Example"):
            parts.append(section if section.startswith("```") else f"```pycon\n{section}\n```")
        else:
            parts.append({"Args": "Arguments:", "Returns": "Returns:"}.get(title, f"{title}:"))
            parts.append(_list(section))
        if after:
            parts.append(after)
    return "\n\n".join(part for part in parts if part) + "\n" if text else ""


def _split(body: str) -> tuple[str, str]:
    """Split what follows a title into the section, which is indented, and the text after it."""
    lines = body.strip("\n").split("\n")
    end = next((n for n, line in enumerate(lines) if line and line[0] != " "), len(lines))
    return dedent("\n".join(lines[:end])).strip(), "\n".join(lines[end:]).strip()


def _list(body: str) -> str:
    """Return the entries of a section, each on one line."""
    entries: list[str] = []
    for line in body.split("\n"):
        if line.startswith(" ") and entries:
            entries[-1] += f" {line.strip()}"
        elif line:
            entries.append(line)
    if not all(re.match(r"[*\w.]+: ", entry) for entry in entries):
        return " ".join(entries)
    return "\n".join(re.sub(r"^([*\w.]+): ", r"- `\1`: ", entry) for entry in entries)


@cache
def _public(module: str) -> list[str]:
    """Return the public names of a module: those of `__all__`, or else its functions."""
    tree = _tree(module)
    for node in tree.body:
        if isinstance(node, ast.Assign) and _name(node) == "__all__":
            return ast.literal_eval(node.value)
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


@cache
def _definition(module: str, name: str) -> tuple[str, Definition, str]:
    """Return where a name is defined, its definition, and the docstring after an assignment.

    Raises:
        LookupError: If it is not defined in this package.
    """
    body = list(_tree(module).body)
    for node in _tree(module).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            body += node.body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ImportFrom) and name in {each.name for each in node.names}:
            if node.module is None or not node.module.startswith("dagster_tidegate"):
                break
            return _definition(node.module, name)
        if isinstance(node, Definition) and _name(node) == name and not _is_overload(node):
            text = after.value if isinstance(after, ast.Expr) else None
            return module, node, str(text.value) if isinstance(text, ast.Constant) else ""
    raise LookupError(f"{module} has no definition of {name}")


def _is_overload(node: ast.stmt) -> bool:
    """Whether this is one of the signatures before a function, which has the docstring."""
    return any(ast.unparse(each) == "overload" for each in getattr(node, "decorator_list", ()))


@cache
def _tree(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    return ast.parse(
        (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    )
