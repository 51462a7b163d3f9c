"""The settings that an instance needs, and how to write them into its dagster.yaml. Pure.

The file is edited as text, so that comments, order and layout stay; the YAML parser says where.
"""

from collections.abc import Mapping
from typing import Any

import yaml

FREE_SLOTS_AFTER_S = 10
_COORDINATOR = {"module": "dagster.core.run_coordinator", "class": "QueuedRunCoordinator"}
_DEFAULT_COORDINATOR = "DefaultRunCoordinator"
Path = tuple[str, ...]


class NotEditableError(ValueError):
    """The file can't be edited; the message says what to do."""


def with_settings(text: str) -> str:
    """Return a dagster.yaml with the settings that Tidegate needs, and everything else as it was.

    Raises:
        NotEditableError: If it is no YAML mapping, or of a form that can't be edited.
    """
    config = _load(text)
    for path, value in _missing(config):
        text = _set(text, path, value)
        config = _with(config, path, value)
        if _load(text) != config:
            raise NotEditableError(
                f"{'.'.join(path)} can't be set in this file: set it to {value!r} by hand"
            )
    return text


def _load(text: str) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise NotEditableError(f"it is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise NotEditableError("it is not a mapping of settings: see Dagster's documentation")
    return config


def _missing(config: Mapping[str, Any]) -> list[tuple[Path, Any]]:
    wanted: list[tuple[Path, Any]] = []
    coordinator = config.get("run_coordinator")
    if not coordinator:
        wanted.append((("run_coordinator",), _COORDINATOR))
    elif _get(config, "run_coordinator", "class") == _DEFAULT_COORDINATOR:
        wanted += [(("run_coordinator", key), value) for key, value in _COORDINATOR.items()]
    wanted.append((("concurrency", "pools", "granularity"), "run"))
    # Each lets that many runs through a pool whose limit is 0.
    for path in (
        ("concurrency", "pools", "op_granularity_run_buffer"),
        ("run_coordinator", "config", "op_concurrency_slot_buffer"),
    ):
        if _get(config, *path):
            wanted.append((path, 0))
    wanted.append((("run_monitoring", "enabled"), True))
    free_slots = ("run_monitoring", "free_slots_after_run_end_seconds")
    if _get(config, *free_slots) is None:
        wanted.append((free_slots, FREE_SLOTS_AFTER_S))
    return [(path, value) for path, value in wanted if _get(config, *path) != value]


def _get(config: Any, *path: str) -> Any:
    for key in path:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _with(config: Any, path: Path, value: Any) -> dict[str, Any]:
    changed = dict(config) if isinstance(config, Mapping) else {}
    key, *rest = path
    changed[key] = _with(changed.get(key), tuple(rest), value) if rest else value
    return changed


def _set(text: str, path: Path, value: Any) -> str:
    """Set one value: replace it, or insert it into the innermost mapping that exists."""
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode) or not root.value:
        return _joined(text, _block({path[0]: _nested(path[1:], value)}, 0))
    node: yaml.MappingNode = root
    for depth, key in enumerate(path):
        below = next((each for name, each in node.value if name.value == key), None)
        rest = _nested(path[depth + 1 :], value)
        if below is None:
            return _insert(text, node, {key: rest}, is_root=node is root)
        if depth == len(path) - 1 or not isinstance(below, yaml.MappingNode) or not below.value:
            return _replace(text, below, rest)
        node = below
    raise AssertionError("the loop returns at the last key")


def _nested(path: Path, value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


def _insert(text: str, node: yaml.MappingNode, entry: dict[str, Any], *, is_root: bool) -> str:
    if is_root and not node.flow_style:
        return _joined(text, _block(entry, 0))
    first = node.value[0][0].start_mark
    if node.flow_style:
        return text[: first.index] + _flow(entry)[1:-1] + ", " + text[first.index :]
    block = _block(entry, first.column).lstrip()
    return text[: first.index] + block + " " * first.column + text[first.index :]


def _replace(text: str, node: yaml.Node, value: Any) -> str:
    start, end = node.start_mark.index, node.end_mark.index
    space = " " if start == end and not text[:start].endswith((" ", "\n")) else ""
    return text[:start] + space + _flow(value) + text[end:]


def _joined(text: str, block: str) -> str:
    if not text.strip():
        return text + block
    return text.rstrip("\n") + "\n\n" + block


def _block(entry: dict[str, Any], column: int) -> str:
    lines = yaml.safe_dump(entry, sort_keys=False).splitlines()
    return "".join(f"{' ' * column}{line}\n" for line in lines)


def _flow(value: Any) -> str:
    if not isinstance(value, dict):
        return yaml.safe_dump(value).splitlines()[0]
    return yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False).strip()
