"""The connection that the middlewares check."""

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from dagster_tidegate.holds import SystemActor
from dagster_tidegate.store import events
from dagster_tidegate.text import MAX_ACTOR, checked, shown
from dagster_tidegate.web.access.authenticator import Kind
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.access.origins import is_loopback
from dagster_tidegate.web.api.authentication import session_cookie
from dagster_tidegate.web.api.problems import Code, Problem
from dagster_tidegate.web.path_router import is_own, strip_prefix

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
ACTOR_HEADER = "x-tidegate-actor"
PROXY_HEADERS = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
PROXY_HTTP_VERSION = "1.0"
"""Spoken by proxies that send none of these headers, such as nginx with its defaults."""
MAX_ADDRESS = 64
_KEY = "tidegate.connection"


class GuardedConnection(HTTPConnection):
    """A request or websocket on its way through the middlewares.

    Attributes:
        own: Whether it is for Tidegate rather than for the Dagster UI.
        address: The client's network address, if it has one.
        local: Whether both ends are on this machine, with no proxy between them.
        https: Whether it is known to arrive over TLS.
        identity: Set by `Authentication`.
        body: Set by `BodyLimit`.
        unread: Whether the client may still be sending its body.
    """

    identity: Identity

    def __init__(self, scope: Scope, prefix: str) -> None:
        super().__init__(scope)
        self.method: str = scope.get("method", "GET")
        self.path = strip_prefix(scope["path"], prefix)
        self.own = is_own(scope, prefix)
        server = scope.get("server")
        self.address = shown(self.client.host)[:MAX_ADDRESS] if self.client else None
        self.local = (
            is_loopback(self.address)
            and is_loopback(server[0] if server else None)
            and scope.get("http_version") != PROXY_HTTP_VERSION
            and not any(name in self.headers for name in PROXY_HEADERS)
        )
        self.https = scope.get("scheme") in ("https", "wss")
        self.body = b""
        self.unread = not self.is_websocket and (
            self.writes
            or self.headers.get("content-length", "0") != "0"
            or "transfer-encoding" in self.headers
        )

    @property
    def is_websocket(self) -> bool:
        """Whether it is a websocket."""
        return self.scope["type"] == "websocket"

    @property
    def writes(self) -> bool:
        """Whether its method may change something."""
        return self.method not in SAFE_METHODS

    @property
    def query(self) -> str:
        """The raw query string."""
        return self.scope["query_string"].decode("latin-1")

    @property
    def wants_page(self) -> bool:
        """Whether a browser is loading a page of Dagster's."""
        return (
            not self.writes
            and not self.is_websocket
            and not self.path.startswith(("/api/", "/metrics"))
            and "text/html" in self.headers.get("accept", "")
        )

    def credential(self) -> tuple[Kind, str] | None:
        """Return the bearer token, or else the session."""
        scheme, _, secret = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return Kind.TOKEN, secret.strip()
        session = self.cookies.get(session_cookie(https=self.https))
        return (Kind.SESSION, session) if session else None

    def named_actor(self) -> str:
        """Return the name in `X-Tidegate-Actor`, which is trusted only without tokens.

        Raises:
            Problem: `invalid`, if the name can't be recorded.
        """
        name = self.headers.get(ACTOR_HEADER)
        if name is None:
            return SystemActor.ANONYMOUS.value  # a plain str: it becomes a tag in Dagster
        try:
            return checked(name.encode("latin-1").decode(), "actor", MAX_ACTOR)
        except UnicodeDecodeError as error:
            raise Problem(Code.INVALID, f"{ACTOR_HEADER} is not UTF-8") from error
        except ValueError as error:
            raise Problem(Code.INVALID, f"{ACTOR_HEADER}: {error}") from error


class Connections:
    """Outermost: describes each connection for the middlewares, and its address for the audit log.

    Args:
        prefix: The path under which everything is served; empty for the root.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = scope[_KEY] = GuardedConnection(scope, self._prefix)
        reset = events.address.set(connection.address)
        try:
            await self._app(scope, receive, send)
        finally:
            events.address.reset(reset)


def connection_of(scope: Scope) -> GuardedConnection:
    """Return the connection of a scope that came through `Connections`."""
    return scope[_KEY]


class ConnectionMiddleware:
    """A middleware behind `Connections`: overrides `_check`, or `_serve` if it needs the messages.

    Anything but requests and websockets passes through.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection."""
        if scope["type"] in ("http", "websocket"):
            await self._serve(connection_of(scope), receive, send)
        else:
            await self.app(scope, receive, send)

    async def _serve(self, connection: GuardedConnection, receive: Receive, send: Send) -> None:
        await self._check(connection)
        await self.app(connection.scope, receive, send)

    async def _check(self, connection: GuardedConnection) -> None:
        """Raise a `Problem` or `TooManyError` to refuse the connection."""
