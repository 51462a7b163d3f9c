"""Which mutations a GraphQL request contains. Pure."""

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
"""Longer documents are refused; the longest that the Dagster UI sends has a tenth of that."""
MAX_CACHED = 512
MAX_SUBJECTS = 20
MAX_SUBJECT = 256
SUBJECTS = frozenset(
    {
        *("assetKey", "backfillId", "concurrencyKey", "jobName", "name", "partitionName"),
        *("partitionSetName", "path", "pipelineName", "repositoryLocationName", "repositoryName"),
        *("id", "limit", "runId", "runIds", "scheduleName", "sensorName"),
    }
)
"""Variables of Dagster's mutations that name what is changed, without run configurations, which may
contain secrets."""


class DocumentReader:
    """Parses GraphQL documents and caches the results: pages send the same documents repeatedly."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._read: OrderedDict[bytes, tuple[str, ...] | None] = OrderedDict()

    def changes(self, document: str) -> tuple[str, ...] | None:
        """Return the fields of a document's mutations, such as `launchRun`.

        All its operations count, whichever the request names. Empty: it only reads. None: it can't
        be parsed.
        """
        key = hashlib.sha256(document.encode(errors="surrogatepass")).digest()
        with self._lock:
            if key in self._read:
                self._read.move_to_end(key)
                return self._read[key]
        mutations = changes(document)
        with self._lock:
            self._read[key] = mutations
            if len(self._read) > MAX_CACHED:
                self._read.popitem(last=False)
        return mutations


def changes(document: str) -> tuple[str, ...] | None:
    """Return the same as `DocumentReader.changes`, without a cache.

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
        for operation in parsed.definitions
        if isinstance(operation, OperationDefinitionNode)
        and operation.operation is OperationType.MUTATION
        for name in _fields(operation.selection_set)
    )


def documents(
    query_values: Iterable[str], content_type: str, body: bytes
) -> tuple[list[str], Mapping[str, Any]] | None:
    """Return every document that a server might execute for a request, and the variables.

    Returns:
        The documents, and the variables of the one in the body; None if the body can't be parsed.
    """
    in_url = list(query_values)
    if not body:
        return in_url, {}
    if "application/graphql" in content_type:
        try:
            return [*in_url, body.decode()], {}
        except UnicodeDecodeError:
            return None
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        return (in_url, {}) if "json" not in content_type else None
    if not isinstance(sent, Mapping):
        return None
    query, variables = sent.get("query"), sent.get("variables")
    if query is not None and not isinstance(query, str):
        return None
    documents = in_url if query is None else [*in_url, query]
    return documents, variables if isinstance(variables, Mapping) else {}


def subjects(variables: Any) -> dict[str, Any]:
    """Return what a mutation changes, as far as its variables name it, for the audit log.

    Example:
        >>> subjects({"executionParams": {"selector": {"jobName": "outreach"}, "runConfigData": 1}})
        {'jobName': 'outreach'}
    """
    named: dict[str, Any] = {}
    todo = [variables]
    while todo and len(named) < MAX_SUBJECTS:
        each = todo.pop()
        if isinstance(each, list):
            todo += each[:MAX_SUBJECTS]
        if not isinstance(each, Mapping):
            continue
        for name, value in list(each.items())[:MAX_SUBJECTS]:
            if name in SUBJECTS and (short := _short(value)) is not None:
                named.setdefault(name, short)
            elif "config" not in name.lower():
                todo.append(value)
    return named


def _short(value: Any) -> Any:
    if isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return shown(value[:MAX_SUBJECT])
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return [shown(each[:MAX_SUBJECT]) for each in value[:MAX_SUBJECTS]]
    return None


def _fields(selection: SelectionSetNode) -> Iterable[str]:
    for node in selection.selections:
        if isinstance(node, FieldNode):
            yield node.name.value
        elif isinstance(node, FragmentSpreadNode):
            yield f"...{node.name.value}"
        elif isinstance(node, InlineFragmentNode):
            yield from _fields(node.selection_set)
