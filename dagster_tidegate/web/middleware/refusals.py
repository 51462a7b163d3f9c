"""Turns what the middlewares raise into answers."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dagster_tidegate.settings import PAGES
from dagster_tidegate.store.database import UNREACHABLE
from dagster_tidegate.web.access.limits import TooManyError
from dagster_tidegate.web.api import metrics
from dagster_tidegate.web.api.problems import Code, Problem, problem_of
from dagster_tidegate.web.middleware.connection import ConnectionMiddleware, GuardedConnection
from dagster_tidegate.web.pages import login
from dagster_tidegate.web.pages.rendering import problem_page

POLICY_VIOLATION = 1008


class Refusals(ConnectionMiddleware):
    """Answers with problem details, a redirect to the login page, or the close of a websocket.

    Args:
        prefix: The path under which everything is served; empty for the root.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        super().__init__(app)
        self._prefix = prefix

    async def _serve(self, connection: GuardedConnection, receive: Receive, send: Send) -> None:
        started = False

        async def starting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(connection.scope, receive, starting)
        except (Problem, TooManyError, *UNREACHABLE) as error:
            if started:
                raise
            await self._answer(connection, error)(connection.scope, receive, send)

    def _answer(self, connection: GuardedConnection, error: Exception) -> ASGIApp:
        if connection.is_websocket:
            return _close
        is_unreachable = isinstance(error, UNREACHABLE)
        if is_unreachable and connection.own and connection.path == metrics.PATH:
            return metrics.without_store()  # so that Prometheus learns that the store is down
        problem = problem_of(connection, error)
        if problem.code is Code.UNAUTHENTICATED and connection.wants_page:
            query = f"?{connection.query}" if connection.query else ""
            return login.to_login(self._prefix, connection.scope["path"] + query)
        own_page = connection.own and connection.path.startswith(PAGES)
        if own_page and "text/html" in connection.headers.get("accept", ""):
            response = problem_page(problem, self._prefix)
        else:
            response = problem.response()
        if connection.unread:
            response.headers["Connection"] = "close"  # or the server would read the whole body
        return response


async def _close(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "websocket.close", "code": POLICY_VIOLATION})
