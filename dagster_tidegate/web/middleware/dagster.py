"""The Dagster UI: who may change something in it, and the audit log of those changes.

Dagster's webserver has no users: whoever reaches it may do everything. Its pages send all their
queries and mutations to `/graphql`, so the documents sent there are parsed here.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from anyio import to_thread
from starlette.types import ASGIApp, Message, Receive, Send

from dagster_tidegate.dagster_api import PAGES_READ_ONLY
from dagster_tidegate.store import events
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.tokens import Role
from dagster_tidegate.text import MAX_NAME, shown
from dagster_tidegate.web.access import graphql
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.access.limits import Limit, TooManyError
from dagster_tidegate.web.api.authentication import require_role
from dagster_tidegate.web.api.problems import Code, Problem
from dagster_tidegate.web.middleware.connection import ConnectionMiddleware, GuardedConnection
from dagster_tidegate.web.middleware.refusals import POLICY_VIOLATION

GRAPHQL = "/graphql"
HARMLESS = frozenset({"logTelemetry", "setNuxSeen"})
"""Mutations that the UI sends on its own; they change nothing in the deployment."""
UNREADABLE = "an unreadable request"
LONG_DOCUMENT = 20_000
"""A longer document, in bytes, is parsed in a thread, so that other requests don't wait for it."""
T = TypeVar("T")


class DagsterChanges(ConnectionMiddleware):
    """Refuses mutations without the role for them, and records the others before they are made.

    Dagster's webserver makes no change over a websocket, so a websocket that sends one is closed.

    Args:
        by_token: Limits the queries that each token sends over websockets.
        max_message: How long a message of a websocket may be.
    """

    def __init__(
        self, app: ASGIApp, store: Store, *, role: Role, by_token: Limit, max_message: int
    ) -> None:
        super().__init__(app)
        self._store = store
        self._role = role
        self._by_token = by_token
        self._max_message = max_message
        self._reader = graphql.DocumentReader()

    async def _serve(self, connection: GuardedConnection, receive: Receive, send: Send) -> None:
        read_only = not connection.identity.role.allows(self._role)
        connection.scope["state"][PAGES_READ_ONLY] = read_only
        if not connection.is_websocket:
            await super()._serve(connection, receive, send)
            return
        closed = False

        async def checked() -> Message:
            nonlocal closed
            message = await receive()
            if message["type"] != "websocket.receive" or await self._reads(connection, message):
                return message
            closed = True
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return {"type": "websocket.disconnect", "code": POLICY_VIOLATION}

        async def until_closed(message: Message) -> None:
            if not closed:
                await send(message)

        await self.app(connection.scope, checked, until_closed)

    async def _check(self, connection: GuardedConnection) -> None:
        names, subjects = await _in_thread_if_long(
            len(connection.body), lambda: self._changes(connection)
        )
        if not names:
            return
        require_role(connection.identity, self._role)
        if not connection.writes:
            raise Problem(
                Code.FORBIDDEN, f"mutations can't be sent by {connection.method}: use POST"
            )
        await to_thread.run_sync(self._record, connection.identity, names, subjects)

    def _changes(self, connection: GuardedConnection) -> tuple[Sequence[str], Mapping[str, Any]]:
        """Return the mutations of a request, or its method and path; and what they would change."""
        path = connection.path
        names = [f"{connection.method} {path}"] if connection.writes and path != GRAPHQL else []
        if not path.rstrip("/").endswith(GRAPHQL):
            return names, {}
        in_url = connection.query_params.getlist("query")
        content_type = connection.headers.get("content-type", "")
        sent = graphql.documents(in_url, content_type, connection.body)
        if sent is None:
            return [UNREADABLE], {}
        documents, variables = sent
        for document in documents:
            mutations = self._reader.changes(document)
            if mutations is None:
                names.append(UNREADABLE)
            else:
                names += [name for name in mutations if name not in HARMLESS]
        return names, graphql.subjects(variables)

    def _record(
        self, identity: Identity, names: Sequence[str], subjects: Mapping[str, Any]
    ) -> None:
        with self._store.begin() as conn:
            events.write(
                conn,
                self._store.now(conn),
                kind=EventKind.DAGSTER_UI,
                name=shown(", ".join(names))[:MAX_NAME],
                to_status="requested",
                actor=identity.name,
                after=subjects or None,
            )

    async def _reads(self, connection: GuardedConnection, message: Message) -> bool:
        """Return whether a message of a websocket is no GraphQL document but a readable query."""
        text = message.get("text")
        if text is None or len(text) > self._max_message:
            return False
        try:
            sent = json.loads(text)
            payload = sent.get("payload") if isinstance(sent, dict) else None
            if not isinstance(payload, dict) or "query" not in payload:
                return True
            if connection.identity.token is not None:
                self._by_token.count(str(connection.identity.token))
        except (ValueError, RecursionError, TooManyError):
            return False
        query = payload["query"]
        if not isinstance(query, str):
            return False
        mutations = await _in_thread_if_long(len(query), lambda: self._reader.changes(query))
        return mutations == ()


async def _in_thread_if_long(length: int, parse: Callable[[], T]) -> T:
    return parse() if length <= LONG_DOCUMENT else await to_thread.run_sync(parse)
