"""The API of a store, as the tests of the API use it: in this process, without sockets."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from starlette.datastructures import State
from starlette.types import ASGIApp

from dagster_tidegate.settings import ServeSettings
from dagster_tidegate.store.database import Store
from dagster_tidegate.web.api.app import create_app
from dagster_tidegate.web.api.context import AppContext
from dagster_tidegate.web.api.stream import Feed
from dagster_tidegate.web.middleware.stack import guarded
from tests.integration.served import served

MAX_S = 60.0
# Tests ask more often than anybody does.
SETTINGS = ServeSettings(requests_per_address=1_000_000, requests_per_token=1_000_000)
ACTOR = {"X-Tidegate-Actor": "ana"}


class Api:
    """Sends requests to the API, and checks its answers.

    Args:
        client: Knows the server.
    """

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def get(self, path: str, expect: int = 200, **query: Any) -> Any:
        """Return what a path answers; `expect` is its status."""
        return self.send("GET", path, expect=expect, **query)

    def post(
        self,
        path: str,
        body: Any = None,
        expect: int = 200,
        headers: dict[str, str] | None = None,
        **query: Any,
    ) -> Any:
        """Return what a path answers to a body; `expect` is its status."""
        return self.send("POST", path, body, expect, headers, **query)

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        expect: int = 200,
        headers: dict[str, str] | None = None,
        **query: Any,
    ) -> Any:
        """Return what a path answers to a method; `expect` is its status."""
        answer = self.client.request(
            method, f"/api/v1{path}", json=body, params=query, headers=headers
        )
        assert answer.status_code == expect, answer.text
        content = answer.json()
        if expect >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert content["status"] == expect
            assert content["type"].endswith(content["code"])
        return content


@cache
def _app(**options: Any) -> FastAPI:
    """An app without a store of its own: FastAPI takes a second to build one."""
    return create_app(Store("sqlite://"), settings=SETTINGS, **options)


def document() -> dict[str, Any]:
    """The OpenAPI document, which several modules read when they are imported. The app keeps it."""
    return _app().openapi()


def app_of(store: Store, workspace: Callable[[], Any] | None = None, **options: Any) -> ASGIApp:
    """Return the API of a store."""
    app = copy(_app(**options))
    read_only = options.get("read_only", False)
    app.state = State({"context": AppContext(store, Feed(store), workspace, read_only)})
    return guarded(app, store, SETTINGS)


class _InProcess(httpx.BaseTransport):
    """Calls an app in an event loop that runs in another thread."""

    def __init__(self, app: ASGIApp, portal: BlockingPortal) -> None:
        self._transport = httpx.ASGITransport(
            app, raise_app_exceptions=False, client=("127.0.0.1", 50_000)
        )
        self._portal = portal

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._portal.call(self._answer, request)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        answer = await self._transport.handle_async_request(request)
        content = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers.raw, content=content)


@contextmanager
def in_process(app: ASGIApp, **options: Any) -> Iterator[httpx.Client]:
    """Connect to an app from this machine, without a socket."""
    with (
        start_blocking_portal() as portal,
        httpx.Client(
            transport=_InProcess(app, portal), base_url="http://127.0.0.1:3000", **options
        ) as client,
    ):
        yield client


@contextmanager
def api(store: Store, workspace: Callable[[], Any] | None = None, **options: Any) -> Iterator[Api]:
    """Serve the API of a store until the end of the block."""
    with in_process(app_of(store, workspace, **options), headers=ACTOR) as client:
        yield Api(client)


@contextmanager
def api_on_port(store: Store, workspace: Callable[[], Any] | None = None) -> Iterator[Api]:
    """The same on a port, for streams and for other clients."""
    with (
        served(app_of(store, workspace)) as address,
        httpx.Client(base_url=address, timeout=MAX_S, headers=ACTOR) as client,
    ):
        yield Api(client)
