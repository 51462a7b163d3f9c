"""Which names of this server a request may use."""

from collections.abc import Collection

from starlette.types import ASGIApp

from dagster_tidegate.web.access.origins import allowed_host
from dagster_tidegate.web.api.problems import Code, Problem
from dagster_tidegate.web.middleware.connection import ConnectionMiddleware, GuardedConnection


class TrustedHosts(ConnectionMiddleware):
    """Refuses a `Host` header that names another server, which stops DNS rebinding.

    Starlette's `TrustedHostMiddleware` can't do this: it splits IPv6 literals at their first colon,
    accepts two `Host` headers, and has no rule that depends on whether a connection is local.

    Args:
        allowed: The accepted names besides those of loopback.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        super().__init__(app)
        self._allowed = allowed

    async def _check(self, connection: GuardedConnection) -> None:
        names = connection.headers.getlist("host")
        any_name = not connection.local
        if len(names) != 1 or not allowed_host(names[0], self._allowed, any_name=any_name):
            raise Problem(
                Code.UNKNOWN_HOST,
                "the Host header names another server: use localhost, or add the name to "
                "TIDEGATE_SERVE_ALLOWED_HOSTS",
            )
