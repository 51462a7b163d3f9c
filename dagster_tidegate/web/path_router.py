"""The API and Dagster's pages as one app."""

from starlette.types import ASGIApp, Receive, Scope, Send

from dagster_tidegate.web.middleware.visit import is_own


class OnePort:
    """Sends each request to the API or to Dagster's pages, by its path.

    Dagster's own last route takes every path, so that ours come first.

    Args:
        api: The API; it is told of the start and the end of the server.
        pages: Dagster's webserver.
        prefix: The path below which everything is served.
    """

    def __init__(self, api: ASGIApp, pages: ASGIApp, prefix: str) -> None:
        self._api = api
        self._pages = pages
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection."""
        ours = scope["type"] == "lifespan" or is_own(scope, self._prefix)
        await (self._api if ours else self._pages)(scope, receive, send)
