"""The login page, on which a browser exchanges a token for a session, and the logout."""

from datetime import datetime, timedelta
from urllib.parse import parse_qs, urlencode

from anyio import to_thread
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from dagster_tidegate.settings import ServeSettings
from dagster_tidegate.store import sessions
from dagster_tidegate.store.database import Store
from dagster_tidegate.web.access.authenticator import Authenticator, Kind
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.access.limits import Limit, TooManyError
from dagster_tidegate.web.access.origins import local_path
from dagster_tidegate.web.api.authentication import session_cookie
from dagster_tidegate.web.api.problems import Code, Problem
from dagster_tidegate.web.middleware.authentication import identify
from dagster_tidegate.web.middleware.connection import GuardedConnection, connection_of
from dagster_tidegate.web.pages.rendering import bare_page
from dagster_tidegate.web.path_router import LOGIN

MAX_FIELDS = 4

_CSP = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


class LoginPages:
    """Answers `/login` and `/logout`."""

    def __init__(
        self, store: Store, settings: ServeSettings, authenticator: Authenticator, by_token: Limit
    ) -> None:
        self._store = store
        self._prefix = settings.path_prefix
        self._session_length = timedelta(hours=settings.session_hours)
        self._authenticator = authenticator
        self._by_token = by_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        response = await self._answer(connection_of(scope))
        await response(scope, receive, send)

    async def _answer(self, connection: GuardedConnection) -> Response:
        if connection.method not in ("GET", "HEAD", "POST"):
            detail = f"{connection.method} is not allowed here: use GET or POST"
            raise Problem(Code.METHOD_NOT_ALLOWED, detail, headers={"Allow": "GET, HEAD, POST"})
        posted = connection.method == "POST"
        if posted and connection.path == LOGIN:
            return await self._log_in(connection)
        try:
            await identify(connection, self._authenticator, self._by_token)
        except Problem as problem:
            if problem.code is not Code.UNAUTHENTICATED:
                raise
            if posted:
                return self._logged_out(connection)
            return self._form(connection.query_params.get("next"))
        credential = connection.credential()
        if connection.identity.token is None or credential is None:  # nobody needs to log in
            return RedirectResponse(_home(self._prefix), 303)
        if not posted:
            return bare_page("login.html", self._prefix, csp=_CSP, identity=connection.identity)
        if credential[0] is Kind.SESSION:
            await to_thread.run_sync(self._end, credential[1], connection.identity)
            self._authenticator.forget(*credential)
        return self._logged_out(connection)

    async def _log_in(self, connection: GuardedConnection) -> Response:
        secret, wanted = _submitted(connection.body)
        try:
            # Looked up first, so that a wrong token never makes the store write.
            holder = await self._authenticator.holder(Kind.TOKEN, secret, connection.address)
        except TooManyError as error:
            refusal = f"Wrong token; {error}."
            response = self._form(wanted, refusal=refusal, status=429)
            response.headers["Retry-After"] = str(error.retry_after_s)
            return response
        begun = None if holder is None else await to_thread.run_sync(self._begin, secret)
        if begun is None:
            refusal = "This token is unknown, expired or revoked."
            return self._form(wanted, refusal=refusal, status=401)
        session, expires_at = begun
        response = RedirectResponse(local_path(wanted, _home(self._prefix)), 303)
        https = connection.https
        # Lax: a link in a message opens the UI, and a request that reads changes nothing.
        response.set_cookie(
            session_cookie(https=https),
            session,
            expires=expires_at,
            httponly=True,
            secure=https,
            samesite="lax",
        )
        return response

    def _logged_out(self, connection: GuardedConnection) -> Response:
        response = RedirectResponse(self._prefix + LOGIN, 303)
        https = connection.https
        response.delete_cookie(
            session_cookie(https=https), httponly=True, secure=https, samesite="lax"
        )
        return response

    def _form(self, wanted: str | None, *, refusal: str = "", status: int = 200) -> Response:
        return bare_page(
            "login.html",
            self._prefix,
            status,
            csp=_CSP,
            identity=None,
            refusal=refusal,
            next=local_path(wanted, _home(self._prefix)),
        )

    def _begin(self, token_secret: str) -> tuple[str, datetime] | None:
        with self._store.begin() as conn:
            return sessions.begin(conn, self._store.now(conn), token_secret, self._session_length)

    def _end(self, secret: str, identity: Identity) -> None:
        with self._store.begin() as conn:
            sessions.end(conn, self._store.now(conn), secret, actor=identity.name)


def to_login(prefix: str, wanted: str) -> Response:
    """Return the redirect to the login page, which leads back to a path afterwards."""
    query = f"?{urlencode({'next': wanted})}" if local_path(wanted, "") else ""
    return RedirectResponse(f"{prefix}{LOGIN}{query}", 303)


def _submitted(body: bytes) -> tuple[str, str | None]:
    """Return the token and the path of a submitted form; the token is empty if there is none."""
    try:
        fields = parse_qs(body.decode("ascii"), max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:
        return "", None
    return fields.get("token", [""])[0].strip(), fields.get("next", [None])[0]


def _home(prefix: str) -> str:
    return prefix or "/"
