"""What requests to Dagster's own pages may do, and the record of what they change.

Dagster's webserver knows no users: whoever reaches it may do everything. Its pages send all they
read and change to `/graphql`, so that is read here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from dagster_tidegate.store import events
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.text import MAX_NAME, shown
from dagster_tidegate.web.access import graphql
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.middleware.visit import Visit

GRAPHQL = "/graphql"
HARMLESS = frozenset({"logTelemetry", "setNuxSeen"})
"""Mutations that Dagster's pages send by themselves; they change nothing of the deployment."""
UNREADABLE = "a request that can't be read"


@dataclass(frozen=True)
class Change:
    """What a request would change.

    Attributes:
        names: Fields of GraphQL mutations, or method and path of another request; none: nothing.
        subjects: What is changed, as far as the request says so in known places.
    """

    names: Sequence[str] = ()
    subjects: Mapping[str, Any] = field(default_factory=dict)


def change(reader: graphql.Reader, visit: Visit, body: bytes) -> Change:
    """Return what a request would change in Dagster.

    Args:
        reader: Reads GraphQL.
        visit: The request.
        body: Its body.
    """
    other = [f"{visit.method} {visit.path}"] if visit.writes and visit.path != GRAPHQL else []
    if not visit.path.rstrip("/").endswith(GRAPHQL):
        return Change(other)
    query = [v for name, v in parse_qsl(visit.query, keep_blank_values=True) if name == "query"]
    found = graphql.documents(query, visit.headers.get("content-type", ""), body)
    if found is None:
        return Change([UNREADABLE])
    documents, variables = found
    names = other
    for document in documents:
        read = reader.changes(document)
        names += [UNREADABLE] if read is None else [name for name in read if name not in HARMLESS]
    return Change(names, graphql.subjects(variables))


def record(store: Store, identity: Identity, made: Change) -> None:
    """Write down that somebody asked Dagster for a change, before it is made."""
    name = shown(", ".join(made.names))[:MAX_NAME]
    with store.begin() as conn:
        events.write(
            conn,
            store.now(conn),
            kind=EventKind.DAGSTER_UI,
            name=name,
            to_status="requested",
            actor=identity.name,
            after=dict(made.subjects) or None,
        )
