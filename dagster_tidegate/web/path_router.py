"""Which app serves a path."""

from starlette.types import ASGIApp, Receive, Scope, Send

from dagster_tidegate.settings import PAGES

LOGIN = "/login"
LOGOUT = "/logout"
STATIC = ("tidegate.css", "tidegate.js", "icon.svg")
"""What the pages load besides themselves."""
PUBLIC = frozenset(
    {
        "/api/v1/health/live",
        "/api/v1/health/ready",
        *(f"{PAGES}/static/{name}" for name in STATIC),
    }
)
"""Paths that need no token: whether to restart the process or send it requests, and what the login
and the page of a store that is unreachable look like."""
_OWN = ("/api", "/metrics", PAGES, LOGIN, LOGOUT)


def strip_prefix(path: str, prefix: str) -> str:
    """Return a path without the prefix, which a proxy may have removed already.

    Example:
        >>> strip_prefix("/tide/login", "/tide"), strip_prefix("/login", "/tide")
        ('/login', '/login')
        >>> strip_prefix("/tides", "/tide")
        '/tides'
    """
    return path.removeprefix(prefix) if f"{path}/".startswith(f"{prefix}/") else path


def is_own(scope: Scope, prefix: str) -> bool:
    """Return whether a connection is for Tidegate rather than for the Dagster UI."""
    path = strip_prefix(scope["path"], prefix)
    ours = path in _OWN or path.startswith(tuple(f"{own}/" for own in _OWN))
    return ours and scope["type"] == "http"


class PathRouter:
    """Sends each connection to one of four apps by its path.

    Dagster's webserver answers every path, so Tidegate's own paths are matched first.

    Args:
        public: Answers the `PUBLIC` paths.
        login: Answers `/login` and `/logout`.
        api: Answers the other paths of Tidegate, and the server's lifespan.
        pages: Answers everything else.
        prefix: The path under which everything is served; empty for the root.
    """

    def __init__(
        self, *, public: ASGIApp, login: ASGIApp, api: ASGIApp, pages: ASGIApp, prefix: str
    ) -> None:
        self._own = {LOGIN: login, LOGOUT: login, **dict.fromkeys(PUBLIC, public)}
        self._api = api
        self._pages = pages
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection."""
        app = self._pages
        if scope["type"] == "lifespan":
            app = self._api
        elif is_own(scope, self._prefix):
            app = self._own.get(strip_prefix(scope["path"], self._prefix), self._api)
        await app(scope, receive, send)
