"""Stands before the API and Dagster's pages alike: who asks, how often, how much, and from where.

docs/security.md says what is promised.
"""

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar
from urllib.parse import unquote

from anyio import to_thread
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dagster_tidegate.settings import ServeSettings
from dagster_tidegate.store import events, sessions, tokens
from dagster_tidegate.store.database import UNREACHABLE, Store
from dagster_tidegate.text import shown
from dagster_tidegate.web.access import graphql
from dagster_tidegate.web.access.authenticator import Authenticator, Kind
from dagster_tidegate.web.access.identity import ONLY_LOOKS, Identity, Role
from dagster_tidegate.web.access.limits import Limit, TooManyError, network
from dagster_tidegate.web.access.origins import allowed_host
from dagster_tidegate.web.api import metrics
from dagster_tidegate.web.api.authentication import require_role
from dagster_tidegate.web.api.problems import Code, Problem, unreachable
from dagster_tidegate.web.middleware.visit import POLICY_VIOLATION, GoneError, Visit
from dagster_tidegate.web.pages import dagster, login

T = TypeVar("T")

PUBLIC = frozenset({"/api/v1/health/live", "/api/v1/health/ready"})
"""Paths that need no token: they tell whether to restart the process or to ask it, no more."""
MAX_URL = 8_192
MAX_HEADERS = 32_768
LOGIN_BYTES = 10_000
"""So much is read of a body before it is known who sends it."""
LONG_DOCUMENT = 20_000
"""What is longer, in bytes, is parsed in a thread: it takes so long that others would wait."""
_SECRET_PARAMETER = re.compile(r"(?:^|&)(?:access_token|token|api_key)=", re.IGNORECASE)


class Guard:
    """Wraps the app that a server runs.

    Args:
        app: The API, or the API and Dagster's pages.
        store: The store, which has the tokens.
        settings: What may ask, how often and how much.
    """

    def __init__(self, app: ASGIApp, store: Store, settings: ServeSettings) -> None:
        self._app = app
        self._store = store
        self._settings = settings
        self._prefix = settings.path_prefix
        self._authenticator = Authenticator(store, refusals=settings.refusals_per_address)
        self._by_address = Limit("requests of this address", settings.requests_per_address)
        self._by_token = Limit("requests with this token", settings.requests_per_token)
        self._reader = graphql.Reader()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        visit = Visit(scope, receive, send, self._prefix)
        reset = events.address.set(visit.address)
        try:
            try:
                app = await self._admit(visit)
            except Problem as problem:
                app = self._refusal(visit, problem)
            except TooManyError as error:
                headers = {"Retry-After": str(error.retry_after_s)}
                too_many = Problem(Code.TOO_MANY_REQUESTS, str(error), headers=headers)
                app = self._refusal(visit, too_many)
            except UNREACHABLE as error:
                app = self._refusal(visit, unreachable(error))
                # Prometheus has to be told of just this.
                if visit.own and visit.path == metrics.PATH:
                    app = metrics.without_store()
            if app is self._app and not _is_public(visit):
                still, passes = partial(self._still, visit), partial(self._passes, visit)
                await visit.serve(app, still=still, passes=passes)
            else:
                await visit.serve(app)
        except GoneError:
            pass  # nobody is there to be answered
        finally:
            events.address.reset(reset)

    async def _admit(self, visit: Visit) -> ASGIApp:
        """Return what answers: the app, or the pages of the login.

        Raises:
            Problem: Why neither does.
            TooManyError: If somebody asks too often.
        """
        _check_url(visit)
        self._by_address.count(network(visit.address))
        most = self._settings.request_bytes
        if _is_public(visit):
            await visit.read_body(LOGIN_BYTES)
            return self._app
        self._check_host(visit)
        if visit.own and visit.path in (login.LOGIN, login.LOGOUT):
            return await self._login(visit)
        await self._identify(visit)
        if visit.writes or visit.scope["type"] == "websocket":
            visit.check_origin()
        body = await visit.read_body(most)
        if not visit.own:
            await self._check_change(visit, body)
        elif visit.writes:
            require_role(visit.identity, Role.OPERATOR)
        return self._app

    def _check_host(self, visit: Visit) -> None:
        names = visit.headers.getlist("host")
        allowed = self._settings.allowed_hosts
        if len(names) != 1 or not allowed_host(names[0], allowed, any_name=not visit.local):
            raise Problem(
                Code.UNKNOWN_HOST,
                "the Host header names another server: use localhost, or name this one in "
                "TIDEGATE_SERVE_ALLOWED_HOSTS",
            )

    async def _identify(self, visit: Visit) -> None:
        """Find out who asks, and write it into the scope."""
        needed = await self._authenticator.needed()
        shown = visit.credential()
        # A cookie may be that of another server on this machine: cookies know no ports.
        if shown is not None and (needed or shown[0] is Kind.TOKEN):
            kind, secret = shown
            holder = await self._authenticator.holder(kind, secret, visit.address)
            if holder is None:
                raise _unauthenticated(f"the {kind} is unknown, has expired or is revoked")
            self._by_token.count(str(holder.token))
            visit.identity = Identity(holder.name, holder.role, visit.address, holder.token)
        elif needed:
            raise _unauthenticated("a token is needed: send 'Authorization: Bearer ...'")
        elif not visit.local:
            raise _unauthenticated(
                "without tokens only this machine itself is let in, and not through a proxy: make "
                "one with 'tidegate tokens create'"
            )
        else:
            visit.identity = Identity(visit.named_actor(), Role.ADMIN, visit.address)
        state = visit.scope.setdefault("state", {})
        state["identity"] = visit.identity
        state[ONLY_LOOKS] = not visit.identity.role.allows(Role(self._settings.ui_changes))

    async def _check_change(self, visit: Visit, body: bytes) -> None:
        """Refuse a change through Dagster's pages to whom may make none, else write it down."""
        read = partial(dagster.change, self._reader, visit, body)
        made = await _parsed(len(body), read)
        if not made.names:
            return
        require_role(visit.identity, Role(self._settings.ui_changes))
        if not visit.writes:
            raise Problem(Code.FORBIDDEN, f"{visit.method} may change nothing: use POST")
        await to_thread.run_sync(dagster.record, self._store, visit.identity, made)

    async def _passes(self, visit: Visit, message: Message) -> bool:
        """Return whether a message of a websocket may go on to Dagster."""
        text = message.get("text")
        if text is None or len(text) > self._settings.request_bytes:
            return False
        try:
            sent = json.loads(text)
            payload = sent.get("payload") if isinstance(sent, dict) else None
            if not isinstance(payload, dict) or "query" not in payload:
                return True
            if visit.identity.token is not None:
                self._by_token.count(str(visit.identity.token))
        except (ValueError, RecursionError, TooManyError):
            return False
        # Dagster can make no change by websocket, so that none has a reason to be sent.
        query = payload["query"]
        if not isinstance(query, str):
            return False
        return await _parsed(len(query), partial(self._reader.changes, query)) == ()

    async def _still(self, visit: Visit) -> bool:
        """Return whether who was let in would still be."""
        shown = visit.credential()
        try:
            if visit.identity.token is None or shown is None:
                return not await self._authenticator.needed()
            return await self._authenticator.still(*shown)
        except UNREACHABLE:
            return False

    async def _login(self, visit: Visit) -> Response:
        if visit.method not in ("GET", "HEAD", "POST"):
            detail = f"{visit.method} is not allowed here: use GET or POST"
            raise Problem(Code.METHOD_NOT_ALLOWED, detail, headers={"Allow": "GET, HEAD, POST"})
        if visit.method == "POST":
            visit.check_origin()
        body = await visit.read_body(LOGIN_BYTES)
        if visit.method == "POST" and visit.path == login.LOGIN:
            return await self._begin_session(visit, body)
        try:
            await self._identify(visit)
        except Problem as problem:
            if problem.code is not Code.UNAUTHENTICATED:
                raise
            if visit.method == "POST":
                return login.ended(self._prefix, https=visit.https)
            return login.form(self._prefix, visit.parameter("next"))
        shown = visit.credential()
        if visit.identity.token is None or shown is None:  # nobody needs to log in
            return RedirectResponse(login.home(self._prefix), 303)
        if visit.method != "POST":
            return login.logged_in(self._prefix, visit.identity)
        if shown[0] is Kind.SESSION:
            await to_thread.run_sync(self._end, shown[1], visit.identity)
            self._authenticator.forget(*shown)
        return login.ended(self._prefix, https=visit.https)

    async def _begin_session(self, visit: Visit, body: bytes) -> Response:
        secret, wanted = login.submitted(body)
        try:
            # Only who has a right one makes the store write.
            known = await self._authenticator.holder(Kind.TOKEN, secret, visit.address)
        except TooManyError as error:
            refusal = f"This token is wrong, as were others from this address: {error}."
            answer = login.form(self._prefix, wanted, refusal=refusal, status=429)
            answer.headers["Retry-After"] = str(error.retry_after_s)
            return answer
        begun = None if known is None else await to_thread.run_sync(self._begin, secret)
        if begun is None:
            refusal = "This token is unknown, has expired or is revoked."
            return login.form(self._prefix, wanted, refusal=refusal, status=401)
        session, ends = begun
        return login.begun(self._prefix, wanted, session, ends, https=visit.https)

    def _begin(self, secret: str) -> tuple[str, datetime] | None:
        length = timedelta(hours=self._settings.session_hours)
        with self._store.begin() as conn:
            return sessions.begin(conn, self._store.now(conn), secret, length)

    def _end(self, secret: str, identity: Identity) -> None:
        with self._store.begin() as conn:
            sessions.end(conn, self._store.now(conn), secret, actor=identity.name)

    def _refusal(self, visit: Visit, problem: Problem) -> ASGIApp:
        if visit.scope["type"] == "websocket":
            return _close
        if problem.code is Code.UNAUTHENTICATED and visit.wants_page:
            query = f"?{visit.query}" if visit.query else ""
            return login.to_login(self._prefix, visit.scope["path"] + query)
        answer = problem.response()
        if visit.unread:
            answer.headers["Connection"] = "close"  # else the server would read on
        return answer


def _is_public(visit: Visit) -> bool:
    return visit.own and visit.path in PUBLIC


def _check_url(visit: Visit) -> None:
    scope, query = visit.scope, visit.query
    if shown(scope["path"]) != scope["path"]:
        # A route may take "/graphql\n" for "/graphql", and what is checked here would not.
        raise Problem(Code.INVALID, "the path has a character that can't be seen")
    path = scope.get("raw_path", b"").decode("latin-1") or scope["path"]
    if len(path) + len(query) > MAX_URL:
        raise Problem(Code.TOO_LARGE, f"the URL may have {MAX_URL} characters")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADERS:
        raise Problem(Code.TOO_LARGE, f"the headers may have {MAX_HEADERS} bytes")
    found = tokens.SECRET.search(scope["path"]) or tokens.SECRET.search(unquote(query))
    if found or (visit.own and _SECRET_PARAMETER.search(query)):
        # The server writes into its log what it reads here.
        scope.update(path="/-", raw_path=b"/-", query_string=b"")
        raise Problem(
            Code.SECRET_IN_URL,
            "URLs end up in logs: send the token as 'Authorization: Bearer ...', and revoke this "
            "one",
        )


async def _parsed(length: int, parse: Callable[[], T]) -> T:
    return parse() if length <= LONG_DOCUMENT else await to_thread.run_sync(parse)


async def _close(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "websocket.close", "code": POLICY_VIOLATION})


def _unauthenticated(detail: str) -> Problem:
    headers = {"WWW-Authenticate": 'Bearer realm="tidegate"'}
    return Problem(Code.UNAUTHENTICATED, detail, headers=headers)
