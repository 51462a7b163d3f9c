"""Who is let in by the guard, over real HTTP, to an app behind it that would let in everybody."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from dagster_tidegate.settings import ServeSettings
from dagster_tidegate.store import events, history, tokens
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.tokens import Role
from dagster_tidegate.web.middleware.connection import GuardedConnection
from dagster_tidegate.web.middleware.stack import guarded
from tests.integration.served import served
from tests.support.databases import both_databases
from tests.support.polling import wait_until

MAX_S = 60
READ = "{ runsOrError { __typename } }"
LAUNCH = "mutation Launch($p: P!) { launchRun(executionParams: $p) { __typename } }"


async def who(request: Request) -> Response:
    """What the app behind the guard sees."""
    identity = request.state.identity
    return JSONResponse(
        {
            "name": identity.name,
            "role": identity.role,
            "recorded": events.address.get(),
            "body": len(await request.body()),
        }
    )


def recorded_in_thread(_request: Request) -> Response:
    return PlainTextResponse(str(events.address.get()))


async def ticks(_request: Request) -> Response:
    async def tick() -> AsyncIterator[str]:
        while True:
            yield ": tick\n\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(tick(), media_type="text/event-stream")


async def echo(socket: WebSocket) -> None:
    await socket.accept(subprotocol="graphql-ws")
    async for text in socket.iter_text():
        await socket.send_text(text)


APP = Starlette(
    routes=[
        Route("/api/v1/health/live", lambda _: PlainTextResponse("ok")),
        Route("/api/v1/who", who, methods=["GET", "POST"]),
        Route("/api/v1/thread", recorded_in_thread),
        Route("/api/v1/ticks", ticks),
        Route("/graphql", who, methods=["GET", "POST"]),
        WebSocketRoute("/graphql", echo),
        Route("/{path:path}", who, methods=["GET", "POST"]),
    ]
)


pytestmark = pytest.mark.database_time


def made(store: Store, name: str, role: Role, **kwargs: Any) -> str:
    with store.begin() as conn:
        return tokens.create(conn, store.now(conn), name, role, actor="tests", **kwargs)[1]


def revoke(store: Store, name: str) -> None:
    with store.begin() as conn:
        tokens.revoke(conn, store.now(conn), name, actor="tests")


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


Serve = Callable[..., httpx.Client]


@pytest.fixture
def serve(store: Store) -> Iterator[Serve]:
    """A function that serves the app behind a guard, and returns a client of it."""
    running: list[Any] = []

    def serve(uvicorn: dict[str, Any] | None = None, **settings: Any) -> httpx.Client:
        server = served(guarded(APP, store, ServeSettings(**settings)), **(uvicorn or {}))
        url = server.__enter__()
        running.append(server)
        client = httpx.Client(base_url=url, trust_env=False, timeout=MAX_S)
        running.append(client)
        return client

    yield serve
    for each in reversed(running):
        each.__exit__(None, None, None)


def code(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


# Without tokens


def test_without_tokens_everybody_on_this_machine_is_admin_by_the_name_they_say(
    serve: Serve,
) -> None:
    client = serve()
    assert client.get("/api/v1/who").json()["name"] == "anonymous"
    named = client.post("/api/v1/who", headers=[(b"X-Tidegate-Actor", "ána".encode())]).json()
    assert (named["name"], named["role"], named["recorded"]) == ("ána", "admin", "127.0.0.1")


@pytest.mark.parametrize("name", ["a\u202eb", "a\x00b", "", "x" * 300])
def test_a_name_that_may_not_be_kept_is_refused(serve: Serve, name: str) -> None:
    client = serve(uvicorn={"http": "httptools"})
    try:
        answer = client.get("/api/v1/who", headers=[(b"X-Tidegate-Actor", name.encode())])
    except httpx.LocalProtocolError:  # the client refuses to send it
        return
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_without_tokens_nobody_comes_through_a_proxy(serve: Serve, header: str) -> None:
    answer = serve().get("/api/v1/who", headers={header: "192.0.2.7"})
    assert code(answer) == (401, "unauthenticated")


def test_without_tokens_nobody_comes_through_a_proxy_that_says_nothing(serve: Serve) -> None:
    url = serve().base_url
    with socket.create_connection((url.host, url.port or 80), 60) as connection:
        connection.sendall(b"GET /api/v1/who HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert b"unauthenticated" in answer


def test_without_tokens_another_machine_is_refused_whatever_it_says(serve: Serve) -> None:
    # The proxy is trusted, and says that the request is not of this machine.
    client = serve(uvicorn={"proxy_headers": True, "forwarded_allow_ips": "127.0.0.1"})
    answer = client.get("/api/v1/who", headers={"X-Forwarded-For": "192.0.2.7"})
    assert code(answer) == (401, "unauthenticated")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:3000", "127.0.0.1.evil.example"])
def test_a_name_that_somebody_gave_this_machine_is_refused(serve: Serve, host: str) -> None:
    answer = serve().get("/api/v1/who", headers={"Host": host})
    assert code(answer) == (421, "unknown_host")


def test_hosts_that_are_allowed(serve: Serve) -> None:
    client = serve(allowed_hosts="tide.example")
    for host in ("tide.example", "Tide.Example:8080", "localhost:1", "[::1]"):
        assert client.get("/api/v1/who", headers={"Host": host}).status_code == 200
    assert code(client.get("/api/v1/who", headers={"Host": "other.example"}))[0] == 421
    # A probe names the address of its container.
    assert client.get("/api/v1/health/live", headers={"Host": "10.0.0.7"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_a_page_of_another_site_changes_nothing(serve: Serve, headers: dict[str, str]) -> None:
    client = serve()
    assert code(client.post("/api/v1/who", headers=headers)) == (403, "cross_site")
    assert code(client.post("/graphql", headers=headers, json={"query": LAUNCH}))[0] == 403
    with pytest.raises(InvalidStatus):
        websocket(client, **headers)


def test_a_page_of_this_server_and_a_program_change_things(serve: Serve) -> None:
    client = serve()
    for headers in ({}, {"Origin": str(client.base_url)}, {"Sec-Fetch-Site": "same-origin"}):
        assert client.post("/api/v1/who", headers=headers).status_code == 200


def test_a_cookie_of_another_server_on_this_machine_is_no_matter(serve: Serve) -> None:
    client = serve()
    client.cookies.set("tidegate_session", "another")
    assert client.get("/api/v1/who").json()["name"] == "anonymous"
    with client.stream("GET", "/api/v1/ticks") as answer:
        lines = answer.iter_lines()
        for _ in range(100):  # longer than until it is looked at again
            assert next(lines) in (": tick", "")


# Tokens


def test_as_soon_as_there_is_a_token_everybody_needs_one(serve: Serve, store: Store) -> None:
    client = serve()
    assert client.get("/api/v1/who").status_code == 200
    secret = made(store, "ana", Role.VIEWER)
    wait_until(lambda: client.get("/api/v1/who").status_code == 401)
    assert client.get("/api/v1/who", headers=bearer(secret)).json() == {
        "name": "ana",
        "role": "viewer",
        "recorded": "127.0.0.1",
        "body": 0,
    }
    assert client.get("/api/v1/thread", headers=bearer(secret)).text == "127.0.0.1"


def test_when_the_last_token_ends_it_does_not_fall_open(serve: Serve, store: Store) -> None:
    secret = made(store, "ana", Role.ADMIN)
    client = serve()
    assert client.get("/api/v1/who", headers=bearer(secret)).status_code == 200
    revoke(store, "ana")
    wait_until(lambda: client.get("/api/v1/who", headers=bearer(secret)).status_code == 401)
    # Nor for a server that is started only now.
    for each in (client, serve()):
        assert code(each.get("/api/v1/who")) == (401, "unauthenticated")


@pytest.mark.parametrize(
    "value",
    [
        "Bearer",
        "Bearer tdg_wrong",
        "bearer x",
        "Bearer ' OR 1=1 --",
        "Basic YTpi",
        "Bearer " + "x" * 9000,
    ],
)
def test_a_wrong_token_is_refused(serve: Serve, store: Store, value: str) -> None:
    made(store, "ana", Role.ADMIN)
    answer = serve().get("/api/v1/who", headers={"Authorization": value})
    assert code(answer) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "x" * 100 not in answer.text


def test_a_token_that_has_expired_is_refused(serve: Serve, store: Store) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        ended, hour = now - timedelta(seconds=1), timedelta(hours=1)
        secret = tokens.create(
            conn, now - hour, "ana", Role.ADMIN, actor="tests", expires_at=ended
        )[1]
    assert code(serve().get("/api/v1/who", headers=bearer(secret)))[0] == 401
    assert made(store, "ana", Role.ADMIN)  # and has given its name back


def test_it_is_known_when_a_token_was_last_used(serve: Serve, store: Store) -> None:
    secret = made(store, "ana", Role.VIEWER)
    client = serve()
    client.get("/api/v1/who", headers=bearer(secret))
    with store.read() as conn:
        (token,) = tokens.read(conn)
        assert token.used_at is not None
        assert store.now(conn) - token.used_at < timedelta(minutes=1)


@both_databases
def test_requests_with_a_known_token_ask_the_store_nothing(serve: Serve, store: Store) -> None:
    secret = made(store, "ana", Role.VIEWER)
    client = serve()
    client.get("/api/v1/who", headers=bearer(secret))
    asked: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda *a: asked.append(a[2]))
    began = time.monotonic()
    for _ in range(20):
        assert client.get("/api/v1/who", headers=bearer(secret)).status_code == 200
    refreshes = 1 + int((time.monotonic() - began) / 2)
    assert len(asked) <= 4 * refreshes  # a transaction each


@both_databases
def test_a_store_that_is_away_lets_nobody_in(
    serve: Serve, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = made(store, "ana", Role.VIEWER)
    client = serve()

    def away(*_: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("password=hunter2"))

    monkeypatch.setattr(store, "read", away)
    answer = client.get("/api/v1/who", headers=bearer(secret))
    assert code(answer) == (503, "store_unavailable")
    assert "hunter2" not in answer.text
    assert client.get("/api/v1/health/live").status_code == 200


def test_a_token_in_a_url_is_refused_and_not_logged(
    serve: Serve, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    secret = made(store, "ana", Role.VIEWER)
    client = serve()
    quoted = secret.replace("_", "%5F")
    for path in (f"/api/v1/who?a={secret}", f"/runs/{secret}", f"/runs?x={quoted}"):
        assert code(client.get(path)) == (400, "secret_in_url")
    assert code(client.get("/api/v1/who?token=abc"))[0] == 400
    with pytest.raises(InvalidStatus):
        websocket(client, path=f"/graphql?t={secret}")
    assert '"GET /-' in caplog.text
    mine = [r.getMessage() for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
    assert not [line for line in mine if secret[4:] in line]


# Limits


def test_a_token_and_an_address_may_ask_only_so_often(serve: Serve, store: Store) -> None:
    ana, bo = made(store, "ana", Role.VIEWER), made(store, "bo", Role.VIEWER)
    client = serve(requests_per_token=3, requests_per_address=8)

    def ask(secret: str) -> httpx.Response:
        return client.get("/api/v1/who", headers=bearer(secret))

    assert [ask(ana).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert ask(bo).status_code == 200
    over = ask(ana)
    assert code(over) == (429, "too_many_requests")
    assert 1 <= int(over.headers["retry-after"]) <= 60
    assert [ask(bo).status_code for _ in range(3)] == [200, 200, 429]


def test_an_address_that_tries_wrong_tokens_may_try_few(
    serve: Serve, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    secret = made(store, "ana", Role.VIEWER)
    client = serve(refusals_per_address=3)
    assert client.get("/api/v1/who", headers=bearer(secret)).status_code == 200
    # A page that was left open asks again and again with the same ended session.
    stale = [client.get("/api/v1/who", headers=bearer("tdg_stale")) for _ in range(10)]
    assert {answer.status_code for answer in stale} == {401}
    tried = [client.get("/api/v1/who", headers=bearer(f"tdg_{n}")).status_code for n in range(4)]
    assert tried == [401, 401, 429, 429]
    login = client.post("/login", data={"token": "tdg_other"})
    assert login.status_code == 429
    assert 1 <= int(login.headers["retry-after"]) <= 60
    assert "try again in" in login.text, "the page says it, to a person"
    # Who has a right one is not shut out by it, known to this server before or not.
    assert client.get("/api/v1/who", headers=bearer(secret)).status_code == 200
    bos = bearer(made(store, "bo", Role.VIEWER))
    assert client.get("/api/v1/who", headers=bos).json()["name"] == "bo"
    cleo = made(store, "cleo", Role.VIEWER)
    assert client.post("/login", data={"token": cleo}).status_code == 303
    refused = [line for line in caplog.messages if line.startswith("refused an unknown")]
    assert len(refused) == 3
    assert all("127.0.0.1" in line for line in refused)


def test_bodies_are_bounded_also_without_a_length(serve: Serve) -> None:
    client = serve(request_bytes=10_000)
    assert client.post("/api/v1/who", content=b"x" * 10_000).json()["body"] == 10_000
    assert code(client.post("/api/v1/who", content=b"x" * 10_001)) == (413, "too_large")

    def chunks() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1000

    try:
        answer = client.post("/api/v1/who", content=chunks())
    except httpx.WriteError:
        return  # the server had closed before all was sent
    assert code(answer) == (413, "too_large")


def test_a_length_that_is_none_is_refused(serve: Serve) -> None:
    client = serve()
    for length in ("-1", "1e3", "9" * 30):
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as conn:
            conn.settimeout(MAX_S)
            request = f"POST /api/v1/who HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}"
            conn.sendall(f"{request}\r\n\r\n".encode())
            status = int(conn.recv(4096).split()[1])
        assert status in (400, 413)


def test_a_body_that_does_not_come_is_given_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dagster_tidegate.web.middleware.body.BODY_TIMEOUT_S", 0.2)
    client = serve()
    with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as conn:
        conn.settimeout(MAX_S)
        conn.sendall(b"POST /api/v1/who HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx")
        answer = conn.recv(4096)
    assert b"408" in answer.split(b"\r\n")[0]
    assert b"connection: close" in answer.lower()


def test_urls_and_headers_are_bounded(serve: Serve) -> None:
    client = serve()
    assert code(client.get("/api/v1/who", params={"q": "x" * 9000})) == (413, "too_large")
    headers = {f"X-{n}": "x" * 5000 for n in range(8)}
    assert code(client.get("/api/v1/who", headers=headers)) == (413, "too_large")


# Sessions


@pytest.fixture
def secret(store: Store) -> str:
    return made(store, "ana", Role.OPERATOR)


def log_in(client: httpx.Client, secret: str, **fields: str) -> httpx.Response:
    origin = {"Origin": str(client.base_url).rstrip("/")}
    return client.post("/login", data={"token": secret, **fields}, headers=origin)


def test_a_browser_is_sent_to_the_login_and_back(serve: Serve, secret: str) -> None:
    client = serve()
    sent = client.get("/runs?q=1", headers={"Accept": "text/html"})
    assert (sent.status_code, sent.headers["location"]) == (303, "/login?next=%2Fruns%3Fq%3D1")
    form = client.get(sent.headers["location"])
    assert 'value="/runs?q=1"' in form.text
    done = log_in(client, secret, next="/runs?q=1")
    assert (done.status_code, done.headers["location"]) == (303, "/runs?q=1")
    cookie = done.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" not in cookie
    assert secret not in cookie
    assert client.get("/runs").json()["name"] == "ana"
    assert "ana" in client.get("/login").text


@pytest.mark.parametrize(
    "wanted",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "javascript:alert(1)",
        "/a\r\nSet-Cookie: x=1",
        "/ünïcode",
        '/"><script>alert(1)</script>',
    ],
)
def test_nobody_is_sent_elsewhere_by_a_login(serve: Serve, secret: str, wanted: str) -> None:
    client = serve()
    assert log_in(client, secret, next=wanted).headers["location"] == "/"
    client.cookies.clear()
    form = client.get("/login", params={"next": wanted})
    assert 'name="next" type="hidden" value="/"' in form.text
    assert "evil" not in form.text
    assert "<script" not in form.text


@pytest.mark.usefixtures("secret")
def test_what_is_no_page_is_not_redirected(serve: Serve) -> None:
    client = serve()
    page = {"Accept": "text/html"}
    assert code(client.post("/graphql", json={"query": READ}, headers=page))[0] == 401
    assert code(client.get("/api/v1/who", headers=page))[0] == 401
    assert code(client.get("/graphql"))[0] == 401


@pytest.mark.usefixtures("secret")
def test_a_wrong_token_logs_nobody_in_and_is_not_repeated(serve: Serve) -> None:
    answer = log_in(serve(), "tdg_<script>alert(1)</script>")
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "tdg_<" not in answer.text
    assert "tdg_&lt;" not in answer.text
    assert 'role="alert"' in answer.text


def test_a_session_needs_this_servers_page_for_changes(serve: Serve, secret: str) -> None:
    client = serve()
    log_in(client, secret)
    origin = str(client.base_url).rstrip("/")
    for refused in ({}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "same-site"}):
        assert code(client.post("/api/v1/who", headers=refused)) == (403, "cross_site")
    assert client.post("/api/v1/who", headers={"Origin": origin}).json()["name"] == "ana"
    assert client.get("/api/v1/who", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_another_site_logs_nobody_in_or_out(serve: Serve, secret: str) -> None:
    client = serve()
    evil = {"Origin": "http://evil.example"}
    assert code(client.post("/login", data={"token": secret}, headers=evil))[0] == 403
    log_in(client, secret)
    assert code(client.post("/logout", headers=evil))[0] == 403
    assert client.get("/runs").status_code == 200


@both_databases
def test_a_login_begins_a_session_of_its_own(serve: Serve, store: Store, secret: str) -> None:
    client = serve()
    client.cookies.set("tidegate_session", "planted")
    log_in(client, secret)
    values = [cookie.value for cookie in client.cookies.jar]
    assert "planted" not in values[-1:]
    first = values[-1]
    log_in(client, secret)
    assert [cookie.value for cookie in client.cookies.jar][-1] != first
    with store.read() as conn:
        kept = conn.execute(sa.select(t.sessions.c.digest)).scalars().all()
    assert len(kept) == 2
    assert first not in kept  # only what can't be turned back


def test_a_logout_ends_the_session_at_once(serve: Serve, store: Store, secret: str) -> None:
    client = serve()
    log_in(client, secret)
    stolen = client.cookies["tidegate_session"]
    done = client.post("/logout", headers={"Origin": str(client.base_url).rstrip("/")})
    assert (done.status_code, done.headers["location"]) == (303, "/login")
    client.cookies.clear()
    again = client.get("/api/v1/who", headers={"Cookie": f"tidegate_session={stolen}"})
    assert code(again)[0] == 401
    with store.read() as conn:
        told = [(e.kind, e.to_status, e.actor, e.address) for e in history.read(conn, limit=2)]
    assert told == [
        ("session", "begun", "ana", "127.0.0.1"),
        ("session", "ended", "ana", "127.0.0.1"),
    ]


def test_a_session_ends_with_its_token(serve: Serve, store: Store, secret: str) -> None:
    client = serve()
    log_in(client, secret)
    assert client.get("/api/v1/who").status_code == 200
    revoke(store, "ana")
    wait_until(lambda: client.get("/api/v1/who").status_code == 401)


def test_a_session_ends_by_itself(serve: Serve, store: Store, secret: str) -> None:
    client = serve(session_hours=1)
    log_in(client, secret)
    with store.begin() as conn:
        conn.execute(t.sessions.update().values(expires_at=store.now(conn)))
    wait_until(lambda: client.get("/api/v1/who").status_code == 401)


def test_a_session_is_no_token_and_a_token_no_session(serve: Serve, secret: str) -> None:
    client = serve()
    log_in(client, secret)
    session = client.cookies["tidegate_session"]
    client.cookies.clear()
    assert client.get("/api/v1/who", headers=bearer(session)).status_code == 401
    token = {"Cookie": f"tidegate_session={secret}"}
    assert client.get("/api/v1/who", headers=token).status_code == 401


def test_with_tls_the_cookie_is_secure_and_browsers_come_back_by_tls(
    serve: Serve, secret: str
) -> None:
    client = serve(uvicorn={"proxy_headers": True, "forwarded_allow_ips": "127.0.0.1"})
    proxy = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7", "Host": "localhost"}
    done = client.post(
        "/login", data={"token": secret}, headers={**proxy, "Origin": "https://localhost"}
    )
    cookie = done.headers["set-cookie"]
    assert cookie.startswith("__Host-tidegate_session=")
    assert "Secure" in cookie
    assert "max-age" in done.headers["strict-transport-security"]
    assert "strict-transport-security" not in serve().get("/login").headers


def test_below_a_prefix(serve: Serve, secret: str) -> None:
    client = serve(path_prefix="/tide")
    sent = client.get("/tide/runs", headers={"Accept": "text/html"})
    assert sent.headers["location"] == "/tide/login?next=%2Ftide%2Fruns"
    assert 'action="/tide/login"' in client.get("/tide/login").text
    done = client.post("/tide/login", data={"token": secret})
    assert done.headers["location"] == "/tide"
    assert client.get("/tide/api/v1/who").status_code == 200


# The Dagster UI


@pytest.fixture
def by_role(store: Store) -> dict[Role, dict[str, str]]:
    return {role: bearer(made(store, f"a {role}", role)) for role in Role}


REFUSED_TO_VIEWERS = {
    "a mutation": lambda c, h: c.post("/graphql", json={"query": LAUNCH}, headers=h),
    "one beside a query": lambda c, h: c.post(
        "/graphql",
        json={"query": f"query A {READ} {LAUNCH}", "operationName": "A"},
        headers=h,
    ),
    "by its alias": lambda c, h: c.post(
        "/graphql", json={"query": "mutation { logTelemetry: launchRun { x } }"}, headers=h
    ),
    "in a fragment": lambda c, h: c.post(
        "/graphql", json={"query": "mutation { ...A } fragment A on M { launchRun }"}, headers=h
    ),
    "beside a harmless one": lambda c, h: c.post(
        "/graphql", json={"query": "mutation { logTelemetry launchRun }"}, headers=h
    ),
    "in the URL": lambda c, h: c.get("/graphql", params={"query": LAUNCH}, headers=h),
    "in the URL of a POST": lambda c, h: c.post(
        "/graphql", params={"query": LAUNCH}, content=b"{}", headers={**h, "Content-Type": "x/y"}
    ),
    "as GraphQL": lambda c, h: c.post(
        "/graphql", content=LAUNCH, headers={**h, "Content-Type": "application/graphql"}
    ),
    "as text": lambda c, h: c.post(
        "/graphql", content=json.dumps({"query": LAUNCH}), headers={**h, "Content-Type": "text/x"}
    ),
    "in a batch": lambda c, h: c.post("/graphql", json=[{"query": LAUNCH}], headers=h),
    "named twice": lambda c, h: c.post(
        "/graphql",
        content=json.dumps({"query": READ})[:-1] + f', "query": {json.dumps(LAUNCH)}}}',
        headers={**h, "Content-Type": "application/json"},
    ),
    "as UTF-16": lambda c, h: c.post(
        "/graphql",
        content=json.dumps({"query": LAUNCH}).encode("utf-16"),
        headers={**h, "Content-Type": "application/json"},
    ),
    "what can't be read": lambda c, h: c.post(
        "/graphql", json={"query": "mutation {"}, headers=h
    ),
    "what is too long to be read": lambda c, h: c.post(
        "/graphql", json={"query": "{" + "a " * 30_000 + "}"}, headers=h
    ),
    "what is too deep to be read": lambda c, h: c.post(
        "/graphql", json={"query": "{a" * 9_000}, headers=h
    ),
    "below a slash": lambda c, h: c.post("/graphql/", json={"query": LAUNCH}, headers=h),
    "an asset": lambda c, h: c.post("/report_asset_materialization/a", headers=h),
    "anything else": lambda c, h: c.post("/whatever", headers=h),
    "our own": lambda c, h: c.post("/api/v1/who", headers=h),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSED_TO_VIEWERS)
def test_a_viewer_changes_nothing(
    serve: Serve, by_role: dict[Role, dict[str, str]], how: str
) -> None:
    answer = REFUSED_TO_VIEWERS[how](serve(), by_role[Role.VIEWER])
    assert code(answer) == (403, "forbidden")
    assert answer.json()["needed"] == "operator"


@pytest.mark.parametrize("role", Role)
def test_everybody_with_a_token_reads(
    serve: Serve, by_role: dict[Role, dict[str, str]], role: Role
) -> None:
    client, headers = serve(), by_role[role]
    for answer in (
        client.post("/graphql", json={"query": READ}, headers=headers),
        client.get("/graphql", params={"query": READ}, headers=headers),
        client.post(
            "/graphql", json={"query": "mutation A { logTelemetry(a: 1) { x } }"}, headers=headers
        ),
        client.get("/runs", headers=headers),
    ):
        assert answer.json()["role"] == role


def test_a_change_in_dagsters_pages_is_written_down(
    serve: Serve, store: Store, by_role: dict[Role, dict[str, str]]
) -> None:
    client, headers = serve(), by_role[Role.OPERATOR]
    variables = {
        "executionParams": {
            "selector": {"jobName": "outreach", "repositoryLocationName": "here"},
            "runConfigData": {"resources": {"mail": {"name": "hunter2"}}},
            "mode": "default",
        }
    }
    sent = {"query": LAUNCH, "variables": variables}
    assert client.post("/graphql", json=sent, headers=headers).status_code == 200
    assert client.post("/graphql", json={"query": READ}, headers=headers).status_code == 200
    with store.read() as conn:
        (told,) = history.read(conn, kinds=[EventKind.DAGSTER_UI], limit=10)
    assert (told.name, told.actor, told.address) == ("launchRun", "a operator", "127.0.0.1")
    assert told.after == {"jobName": "outreach", "repositoryLocationName": "here"}


def test_changes_in_dagsters_pages_can_be_for_admins_alone(
    serve: Serve, by_role: dict[Role, dict[str, str]]
) -> None:
    client = serve(ui_changes="admin")

    def launch(role: Role) -> int:
        sent = {"query": LAUNCH}
        return client.post("/graphql", json=sent, headers=by_role[role]).status_code

    assert (launch(Role.OPERATOR), launch(Role.ADMIN)) == (403, 200)
    assert client.post("/api/v1/who", headers=by_role[Role.OPERATOR]).status_code == 200


def test_nobody_changes_anything_by_get(serve: Serve, by_role: dict[Role, dict[str, str]]) -> None:
    answer = serve().get("/graphql", params={"query": LAUNCH}, headers=by_role[Role.ADMIN])
    assert code(answer) == (403, "forbidden")


@pytest.mark.parametrize("path", ["/graphql%0A", "/graphql%0D", "/graph%E2%80%8Bql"])
def test_a_path_that_a_route_may_take_for_another_is_refused(serve: Serve, path: str) -> None:
    answer = serve().get(f"{path}?query={LAUNCH}", headers={"Sec-Fetch-Site": "cross-site"})
    assert code(answer) == (422, "invalid")


def websocket(client: httpx.Client, *, path: str = "/graphql", **headers: str) -> Any:
    url = f"{str(client.base_url).replace('http', 'ws', 1).rstrip('/')}{path}"
    return connect(url, additional_headers=headers, subprotocols=["graphql-ws"], proxy=None)  # type: ignore[list-item]


def start(query: str) -> str:
    return json.dumps({"type": "start", "id": "1", "payload": {"query": query}})


def test_a_websocket_needs_a_token_too(serve: Serve, store: Store, secret: str) -> None:
    client = serve()
    with pytest.raises(InvalidStatus):
        websocket(client)
    with websocket(client, **bearer(secret)) as subscribed:
        subscribed.send(start("subscription { capturedLogs }"))
        assert json.loads(subscribed.recv(MAX_S))["id"] == "1"
        # What was begun before the token ended ends with it.
        revoke(store, "ana")
        with pytest.raises(ConnectionClosed):
            subscribed.recv(MAX_S)


def test_a_session_opens_a_websocket_only_from_this_servers_pages(
    serve: Serve, secret: str
) -> None:
    client = serve()
    log_in(client, secret)
    cookie = {"Cookie": f"tidegate_session={client.cookies['tidegate_session']}"}
    for headers in ({}, {"Origin": "http://evil.example"}):
        with pytest.raises(InvalidStatus):
            websocket(client, **cookie, **headers)
    with websocket(client, **cookie, Origin=str(client.base_url).rstrip("/")) as opened:
        opened.send("{}")
        assert opened.recv(MAX_S) == "{}"


@pytest.mark.parametrize(
    "message",
    [
        start(LAUNCH),
        start("subscription {"),
        start(f"subscription A {{ capturedLogs }} {LAUNCH}"),
        json.dumps({"type": "start", "payload": {"query": 7}}),
        "not JSON",
        b"\x00",
        start("{ " + "a" * 20_000 + " }"),
    ],
)
def test_a_websocket_carries_no_changes(serve: Serve, message: str | bytes) -> None:
    client = serve(request_bytes=10_000)
    with websocket(client) as subscribed:
        subscribed.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            subscribed.recv(MAX_S)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


def test_a_stream_ends_when_the_token_is_revoked(serve: Serve, store: Store, secret: str) -> None:
    client = serve()
    with client.stream("GET", "/api/v1/ticks", headers=bearer(secret)) as answer:
        lines = answer.iter_lines()
        assert next(lines) == ": tick"
        revoke(store, "ana")
        for _ in lines:  # it comes to its end
            pass


# Headers


def test_answers_tell_browsers_what_they_may_do(serve: Serve) -> None:
    client = serve()
    own = client.get("/api/v1/who").headers
    assert own["x-content-type-options"] == "nosniff"
    assert own["cache-control"] == "no-store"
    assert "default-src 'none'" in own["content-security-policy"]
    page = client.get("/runs").headers
    assert page["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in page["content-security-policy"]
    assert "default-src" not in page["content-security-policy"]
    refused = client.post("/api/v1/who", headers={"Origin": "http://evil.example"}).headers
    assert "default-src 'none'" in refused["content-security-policy"]
    assert "access-control-allow-origin" not in own


def test_a_connection_is_local_only_if_both_ends_are() -> None:
    def connection(client: tuple | None, server: tuple | None) -> GuardedConnection:
        scope = {"type": "http", "path": "/", "headers": [], "client": client, "server": server}
        return GuardedConnection(scope, "")

    assert connection(("127.0.0.1", 1), ("127.0.0.1", 3000)).local
    assert connection(("::1", 1), ("::1", 3000)).local
    assert not connection(("192.0.2.7", 1), ("127.0.0.1", 3000)).local
    assert not connection(("127.0.0.1", 1), ("192.0.2.1", 3000)).local
    assert not connection(None, ("/run/tidegate.sock", None)).local
    assert connection(("a\nb", 1), None).address == "a\\nb"
