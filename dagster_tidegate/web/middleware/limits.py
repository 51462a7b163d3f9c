"""How large a URL and its headers may be, and how often an address may send a request."""

import re
from urllib.parse import unquote

from starlette.types import ASGIApp

from dagster_tidegate.store import tokens
from dagster_tidegate.text import shown
from dagster_tidegate.web.access.limits import Limit, network
from dagster_tidegate.web.api.problems import Code, Problem
from dagster_tidegate.web.middleware.connection import ConnectionMiddleware, GuardedConnection

MAX_URL = 8_192
MAX_HEADERS = 32_768
_SECRET_PARAMETER = re.compile(r"(?:^|&)(?:access_token|token|api_key)=", re.IGNORECASE)


class UrlLimits(ConnectionMiddleware):
    """Refuses URLs and headers that are too long, and URLs that contain a secret."""

    async def _check(self, connection: GuardedConnection) -> None:
        scope, query = connection.scope, connection.query
        path: str = scope["path"]
        if shown(path) != path:
            # A route may match "/graphql\n" as "/graphql"; the checks here would not.
            raise Problem(Code.INVALID, "the path contains an invisible character")
        raw_path = scope.get("raw_path", b"").decode("latin-1") or path
        if len(raw_path) + len(query) > MAX_URL:
            raise Problem(Code.TOO_LARGE, f"the URL is longer than {MAX_URL} characters")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADERS:
            raise Problem(Code.TOO_LARGE, f"the headers are longer than {MAX_HEADERS} bytes")
        secret = tokens.SECRET.search(path) or tokens.SECRET.search(unquote(query))
        if secret or (connection.own and _SECRET_PARAMETER.search(query)):
            # The server logs the URL of the scope.
            scope.update(path="/-", raw_path=b"/-", query_string=b"")
            raise Problem(
                Code.SECRET_IN_URL,
                "URLs are logged: revoke this token, and send the new one as "
                "'Authorization: Bearer ...'",
            )


class AddressLimit(ConnectionMiddleware):
    """Limits the requests of each network address."""

    def __init__(self, app: ASGIApp, per_minute: int) -> None:
        super().__init__(app)
        self._limit = Limit("requests from this address", per_minute)

    async def _check(self, connection: GuardedConnection) -> None:
        self._limit.count(network(connection.address))
