"""What a GraphQL request to Dagster would change. Pure."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Any

from graphql import (
    FieldNode,
    FragmentSpreadNode,
    GraphQLSyntaxError,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    parse,
)

from dagster_tidegate.text import shown

MAX_TOKENS = 20_000
"""Longer documents are not read; the longest of Dagster's own pages has a tenth of that."""
MAX_REMEMBERED = 512
MAX_SUBJECTS = 20
MAX_SUBJECT = 256
SUBJECTS = frozenset(
    {
        *("assetKey", "backfillId", "concurrencyKey", "jobName", "name", "partitionName"),
        *("partitionSetName", "path", "pipelineName", "repositoryLocationName", "repositoryName"),
        *("id", "limit", "runId", "runIds", "scheduleName", "sensorName"),
    }
)
"""Names of the variables of Dagster's mutations that say what is changed. Configurations of runs
are not among them: they may have secrets."""


class Reader:
    """Reads GraphQL documents, and remembers what it read: pages send the same ones again."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._read: OrderedDict[bytes, tuple[str, ...] | None] = OrderedDict()

    def changes(self, document: str) -> tuple[str, ...] | None:
        """Return what a document would change.

        Args:
            document: The document. Whichever of its operations is meant, all of them count.

        Returns:
            The fields of its mutations, `launchRun` for example; empty where it only reads. None
            where it can't be read.
        """
        key = hashlib.sha256(document.encode(errors="surrogatepass")).digest()
        with self._lock:
            if key in self._read:
                self._read.move_to_end(key)
                return self._read[key]
        found = changes(document)
        with self._lock:
            self._read[key] = found
            if len(self._read) > MAX_REMEMBERED:
                self._read.popitem(last=False)
        return found


def changes(document: str) -> tuple[str, ...] | None:
    """Return what a document would change, as `Reader.changes` does.

    Example:
        >>> changes("{ runsOrError { __typename } }")
        ()
        >>> changes("query A { version } mutation B { launchRun { __typename } }")
        ('launchRun',)
    """
    try:
        parsed = parse(document, no_location=True, max_tokens=MAX_TOKENS)
    except (GraphQLSyntaxError, RecursionError):
        return None
    return tuple(
        name
        for found in parsed.definitions
        if isinstance(found, OperationDefinitionNode) and found.operation is OperationType.MUTATION
        for name in _fields(found.selection_set)
    )


def documents(
    query_values: Iterable[str], content_type: str, body: bytes
) -> tuple[list[str], Mapping[str, Any]] | None:
    """Return every document that a server might find in a request, and the variables.

    Args:
        query_values: The values of `query` in the URL.
        content_type: The `Content-Type` header.
        body: The body.

    Returns:
        The documents, and the variables of the one in the body; None where the body can't be
        read.
    """
    found = list(query_values)
    if not body:
        return found, {}
    if "application/graphql" in content_type:
        try:
            return [*found, body.decode()], {}
        except UnicodeDecodeError:
            return None
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        return (found, {}) if "json" not in content_type else None
    if not isinstance(sent, Mapping):
        return None
    query, variables = sent.get("query"), sent.get("variables")
    if isinstance(query, str):
        found.append(query)
    elif query is not None:
        return None
    return found, variables if isinstance(variables, Mapping) else {}


def subjects(variables: Any) -> dict[str, Any]:
    """Return what the variables of a mutation say of what it changes, for the record.

    Example:
        >>> subjects({"executionParams": {"selector": {"jobName": "outreach"}, "runConfigData": 1}})
        {'jobName': 'outreach'}
    """
    found: dict[str, Any] = {}
    todo = [variables]
    while todo and len(found) < MAX_SUBJECTS:
        each = todo.pop()
        if isinstance(each, list):
            todo += each[:MAX_SUBJECTS]
        if not isinstance(each, Mapping):
            continue
        for name, value in list(each.items())[:MAX_SUBJECTS]:
            if name in SUBJECTS and (short := _short(value)) is not None:
                found.setdefault(name, short)
            elif "config" not in name.lower():
                todo.append(value)
    return found


def _short(value: Any) -> Any:
    if isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return shown(value[:MAX_SUBJECT])
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return [shown(each[:MAX_SUBJECT]) for each in value[:MAX_SUBJECTS]]
    return None


def _fields(selection: SelectionSetNode) -> Iterable[str]:
    for found in selection.selections:
        if isinstance(found, FieldNode):
            yield found.name.value
        elif isinstance(found, FragmentSpreadNode):
            yield f"...{found.name.value}"
        elif isinstance(found, InlineFragmentNode):
            yield from _fields(found.selection_set)
