"""Cross-site request forgery: what a page of another site makes a browser send."""

from dagster_tidegate.web.access.authenticator import Kind
from dagster_tidegate.web.access.origins import same_origin
from dagster_tidegate.web.api.problems import Code, Problem
from dagster_tidegate.web.middleware.connection import ConnectionMiddleware, GuardedConnection


class SameOrigin(ConnectionMiddleware):
    """Refuses changes and websockets that come from a page of another site."""

    async def _check(self, connection: GuardedConnection) -> None:
        if not connection.writes and not connection.is_websocket:
            return
        credential = connection.credential()
        if credential is not None and credential[0] is Kind.TOKEN:
            return  # no browser adds one on its own
        if not same_origin(
            connection.headers.get("host", ""),
            site=connection.headers.get("sec-fetch-site"),
            origin=connection.headers.get("origin"),
            browser=credential is not None,
        ):
            raise Problem(
                Code.CROSS_SITE,
                "a browser may send this only from a page of this server: the Origin header must "
                "match the Host header. Programs send a token instead of a cookie",
            )
