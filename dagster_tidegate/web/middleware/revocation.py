"""Streams and websockets end when the token or session that opened them does."""

import asyncio

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Send

from dagster_tidegate.store.database import UNREACHABLE
from dagster_tidegate.web.access.authenticator import REFRESH_S, Authenticator
from dagster_tidegate.web.middleware.connection import ConnectionMiddleware, GuardedConnection
from dagster_tidegate.web.middleware.refusals import POLICY_VIOLATION


class Revocation(ConnectionMiddleware):
    """Checks the credential again for as long as an answer takes."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        super().__init__(app)
        self._authenticator = authenticator

    async def _serve(self, connection: GuardedConnection, receive: Receive, send: Send) -> None:
        watcher: asyncio.Task[None] | None = None
        unbounded = False

        async def watched(message: Message) -> None:
            nonlocal watcher, unbounded
            if message["type"] == "http.response.start":
                unbounded = "content-length" not in Headers(raw=message.get("headers", []))
            takes_long = message.get("more_body") or message["type"] == "websocket.accept"
            if takes_long and watcher is None:
                watcher = asyncio.create_task(self._watch(connection, serving))
            await send(message)

        with anyio.CancelScope() as serving:
            try:
                await self.app(connection.scope, receive, watched)
            finally:
                if watcher is not None:
                    watcher.cancel()
        if not serving.cancelled_caught:
            return
        if connection.is_websocket:
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        elif unbounded:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, connection: GuardedConnection, serving: anyio.CancelScope) -> None:
        while await self._valid(connection):
            await asyncio.sleep(REFRESH_S)
        serving.cancel()

    async def _valid(self, connection: GuardedConnection) -> bool:
        credential = connection.credential()
        try:
            if connection.identity.token is None or credential is None:
                return not await self._authenticator.needed()
            return await self._authenticator.still(*credential)
        except UNREACHABLE:
            return False
