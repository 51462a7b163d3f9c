"""The headers of every answer that restrict what a browser may do with it."""

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Send

from dagster_tidegate.web.middleware.connection import ConnectionMiddleware, GuardedConnection

LOAD_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
"""For Tidegate's own answers."""
NO_FRAMES = "base-uri 'self'; object-src 'none'; frame-ancestors 'none'"
"""For those pages of Dagster that set no policy themselves."""
EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
HTTPS_ONLY = "max-age=31536000"


class SecurityHeaders(ConnectionMiddleware):
    """Adds the headers that an answer does not set itself."""

    async def _serve(self, connection: GuardedConnection, receive: Receive, send: Send) -> None:
        own = connection.own
        defaults = {
            **EVERYWHERE,
            "Content-Security-Policy": LOAD_NOTHING if own else NO_FRAMES,
            **({"Cache-Control": "no-store"} if own else {}),
            **({"Strict-Transport-Security": HTTPS_ONLY} if connection.https else {}),
        }

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in defaults.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(connection.scope, receive, secured)
