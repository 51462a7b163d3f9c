"""How large and how slow a request body may be."""

import anyio
from starlette.types import ASGIApp, Message, Receive, Send

from dagster_tidegate.web.api.problems import Code, Problem
from dagster_tidegate.web.middleware.connection import ConnectionMiddleware, GuardedConnection

BODY_TIMEOUT_S = 30.0


class BodyLimit(ConnectionMiddleware):
    """Reads the whole body, within limits, before the app sees the request."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        super().__init__(app)
        self._max_bytes = max_bytes

    async def _serve(self, connection: GuardedConnection, receive: Receive, send: Send) -> None:
        if not connection.unread:
            await self.app(connection.scope, receive, send)
            return
        length = connection.headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self._max_bytes:
            raise self._too_large()
        body = bytearray()
        with anyio.move_on_after(BODY_TIMEOUT_S) as timer:
            while connection.unread:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message.get("body", b"")
                if len(body) > self._max_bytes:
                    raise self._too_large()
                connection.unread = message.get("more_body", False)
        if timer.cancelled_caught:
            raise Problem(Code.TOO_SLOW, f"the body did not arrive within {BODY_TIMEOUT_S:g} s")
        connection.body = bytes(body)
        replayed: list[Message] = [{"type": "http.request", "body": connection.body}]

        async def replay() -> Message:
            return replayed.pop() if replayed else await receive()

        await self.app(connection.scope, replay, send)

    def _too_large(self) -> Problem:
        return Problem(Code.TOO_LARGE, f"the body is larger than {self._max_bytes} bytes")
