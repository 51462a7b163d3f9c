"""One connection to the server: what is read of it, and how it is served."""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

import anyio
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dagster_tidegate.holds import SystemActor
from dagster_tidegate.text import MAX_ACTOR, checked, shown
from dagster_tidegate.web.access.authenticator import REFRESH_S, Kind
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.access.origins import is_loopback, same_origin
from dagster_tidegate.web.api.problems import Code, Problem
from dagster_tidegate.web.middleware import headers
from dagster_tidegate.web.pages import login

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that only read."""
ACTOR_HEADER = "x-tidegate-actor"
FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
PROXY_VERSION = "1.0"
"""Of HTTP: proxies speak it that say nothing else of themselves, such as nginx as it comes."""
MAX_ADDRESS = 64
BODY_S = 30.0
"""A body has to be here after so long."""
POLICY_VIOLATION = 1008
_OWN = ("/api", "/metrics", login.LOGIN, login.LOGOUT)


def below(path: str, prefix: str) -> str:
    """Return a path as it is below the prefix.

    One without the prefix comes from a proxy that has taken it off, and stays as it is.

    Example:
        >>> below("/tide/login", "/tide"), below("/login", "/tide"), below("/tides", "/tide")
        ('/login', '/login', '/tides')
    """
    return path.removeprefix(prefix) if f"{path}/".startswith(f"{prefix}/") else path


def is_own(scope: Scope, prefix: str) -> bool:
    """Return whether a connection is for us, and not for Dagster's pages.

    The guard and what stands behind it both go by this: what is public is ours.

    Args:
        scope: Its ASGI scope.
        prefix: The path below which everything is served.
    """
    path = below(scope["path"], prefix)
    ours = path in _OWN or path.startswith(tuple(f"{own}/" for own in _OWN))
    return ours and scope["type"] == "http"


class GoneError(Exception):
    """Who asked has left before they had asked."""


class Visit:
    """A request or a websocket.

    Args:
        scope: Its ASGI scope.
        receive: Gives what comes of it.
        send: Takes what is answered.
        prefix: The path below which everything is served.

    Attributes:
        headers: Its headers.
        path: Its path, below the prefix.
        own: Whether it is for us, and not for Dagster's pages.
        address: The network address that it comes from; None where there is none.
        local: Whether it comes from this machine, by nothing but this machine.
        https: Whether it is known to come by TLS.
        identity: Who asks, as soon as that is known.
        unread: Whether a body is still to come.
    """

    identity: Identity

    def __init__(self, scope: Scope, receive: Receive, send: Send, prefix: str) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        self.headers = Headers(scope=scope)
        self.method = scope.get("method", "GET")
        self.path = below(scope["path"], prefix)
        self.own = is_own(scope, prefix)
        client, server = scope.get("client"), scope.get("server")
        self.address = shown(client[0])[:MAX_ADDRESS] if client else None
        self.local = (
            is_loopback(self.address)
            and is_loopback(server[0] if server else None)
            and scope.get("http_version") != PROXY_VERSION
            and not any(name in self.headers for name in FORWARDED)
        )
        self.https = scope.get("scheme") in ("https", "wss")
        self.unread = scope["type"] == "http" and (
            self.method not in SAFE_METHODS
            or self.headers.get("content-length", "0") != "0"
            or "transfer-encoding" in self.headers
        )

    @property
    def writes(self) -> bool:
        """Whether its method may change things."""
        return self.method not in SAFE_METHODS

    @property
    def query(self) -> str:
        """Its query, as it came."""
        return self.scope["query_string"].decode("latin-1")

    @property
    def wants_page(self) -> bool:
        """Whether a person waits for a page."""
        return (
            not self.writes
            and self.scope["type"] == "http"
            and not self.path.startswith(("/api/", "/metrics"))
            and "text/html" in self.headers.get("accept", "")
        )

    def parameter(self, name: str) -> str | None:
        """Return a parameter of the query."""
        try:
            return parse_qs(self.query, max_num_fields=20).get(name, [None])[0]
        except ValueError:
            return None

    def credential(self) -> tuple[Kind, str] | None:
        """Return the token that is shown, else the session."""
        scheme, _, secret = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return Kind.TOKEN, secret.strip()
        cookies = cookie_parser(self.headers.get("cookie", ""))
        session = cookies.get(login.cookie_name(self.https))
        return (Kind.SESSION, session) if session else None

    def named_actor(self) -> str:
        """Return who says to be asking, where that is believed.

        Raises:
            Problem: If the name may not be kept.
        """
        said = self.headers.get(ACTOR_HEADER)
        if said is None:
            return SystemActor.ANONYMOUS.value  # plain: it becomes a tag in Dagster
        try:
            return checked(said.encode("latin-1").decode(), "actor", MAX_ACTOR)
        except UnicodeDecodeError as error:
            raise Problem(Code.INVALID, f"{ACTOR_HEADER} is not UTF-8") from error
        except ValueError as error:
            raise Problem(Code.INVALID, f"{ACTOR_HEADER}: {error}") from error

    def check_origin(self) -> None:
        """Refuse what a page of another site made a browser send.

        Raises:
            Problem: `cross_site`.
        """
        found = self.credential()
        if found is not None and found[0] is Kind.TOKEN:
            return  # no browser sends one by itself
        if not same_origin(
            self.headers.get("host", ""),
            site=self.headers.get("sec-fetch-site"),
            origin=self.headers.get("origin"),
            browser=found is not None,
        ):
            raise Problem(
                Code.CROSS_SITE,
                "a browser may send this only from a page of this server: the Origin header has "
                "to name the host of the Host header. Programs send a token instead of a cookie",
            )

    async def read_body(self, most: int) -> bytes:
        """Read the whole body, and keep it for the app.

        Args:
            most: How many bytes it may have.

        Raises:
            Problem: `too_large`, or `too_slow`.
            GoneError: If the client leaves meanwhile.
        """
        if not self.unread:
            return b""
        too_large = Problem(Code.TOO_LARGE, f"the body may have {most} bytes")
        length = self.headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > most:
            raise too_large
        body = bytearray()
        with anyio.move_on_after(BODY_S) as timer:
            while self.unread:
                message = await self.receive()
                if message["type"] == "http.disconnect":
                    raise GoneError
                body += message.get("body", b"")
                if len(body) > most:
                    raise too_large
                self.unread = message.get("more_body", False)
        if timer.cancelled_caught:
            raise Problem(Code.TOO_SLOW, f"the body was not here after {BODY_S:g} s")
        self._give_back({"type": "http.request", "body": bytes(body), "more_body": False})
        return bytes(body)

    async def serve(
        self,
        app: ASGIApp,
        *,
        still: Callable[[], Awaitable[bool]] | None = None,
        passes: Callable[[Message], Awaitable[bool]] | None = None,
    ) -> None:
        """Let an app answer.

        Args:
            app: What answers.
            still: Whether who asks would still be let in. What takes long ends when they would not.
            passes: Whether a message of a websocket may go on to the app; one that may not ends it.
        """
        watcher: asyncio.Task | None = None
        closed = unbounded = False

        async def receive() -> Message:
            nonlocal closed
            message = await self.receive()
            if message["type"] != "websocket.receive" or passes is None or await passes(message):
                return message
            closed = True
            await self.send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return {"type": "websocket.disconnect", "code": POLICY_VIOLATION}

        async def send(message: Message) -> None:
            nonlocal watcher, unbounded
            if closed:
                return
            if message["type"] == "http.response.start":
                headers.secure(message, self.scope, own=self.own)
                unbounded = "content-length" not in Headers(raw=message["headers"])
            takes_long = message.get("more_body") or message["type"] == "websocket.accept"
            if takes_long and watcher is None and still is not None:
                watcher = asyncio.create_task(_watch(still, alive))
            await self.send(message)

        with anyio.CancelScope() as alive:
            try:
                await app(self.scope, receive, send)
            finally:
                if watcher is not None:
                    watcher.cancel()
        if not alive.cancelled_caught:
            return
        if self.scope["type"] == "websocket":
            await self.send({"type": "websocket.close", "code": POLICY_VIOLATION})
        elif unbounded:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    def _give_back(self, read: Message) -> None:
        """Let the next who receives have what was read."""
        rest, todo = self.receive, [read]

        async def receive() -> Message:
            return todo.pop() if todo else await rest()

        self.receive = receive


async def _watch(still: Callable[[], Awaitable[bool]], alive: anyio.CancelScope) -> None:
    while await still():
        await asyncio.sleep(REFRESH_S)
    alive.cancel()
