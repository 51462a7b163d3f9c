"""What the guard adds to a request, beside the same app without it, in one process.

    python -m tests.benchmarks.guard

Prints microseconds a request and the ratio; asserts nothing.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from dagster_tidegate.settings import ServeSettings
from dagster_tidegate.store import schema, tokens
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.tokens import Role
from dagster_tidegate.web.middleware.stack import guarded

QUERY = "query Runs($limit: Int) { runsOrError(limit: $limit) { ... on Runs { results { id } } } }"


async def answer(request: Request) -> Response:
    return JSONResponse({"read": len(await request.body())})


APP = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])


def request(secret: str, method: str, path: str, body: bytes) -> dict[str, Any]:
    headers = [
        (b"host", b"127.0.0.1"),
        (b"authorization", f"Bearer {secret}".encode()),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "scheme": "http",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 3000),
    }


async def time_requests(app: ASGIApp, count: int, *asked: Any) -> float:
    """Microseconds a request."""
    statuses = set()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.add(message["status"])

    async def one() -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": asked[-1], "more_body": False}

        await app(request(*asked), receive, send)

    await one()
    began = time.perf_counter()
    for _ in range(count):
        await one()
    assert statuses == {200}, statuses
    return (time.perf_counter() - began) / count * 1e6


async def measure(store: Store, count: int) -> None:
    settings = ServeSettings(requests_per_address=10**9, requests_per_token=10**9)
    with store.begin() as conn:
        secret = tokens.create(conn, store.now(conn), "ana", Role.OPERATOR, actor="benchmark")[1]
    app = guarded(APP, store, settings)
    query = json.dumps({"query": QUERY, "variables": {"limit": 1}}).encode()
    for what, *asked in (
        ("GET, a known token", "GET", "/api/v1/holds", b""),
        ("POST to the API, 1 kB", "POST", "/api/v1/holds", b"x" * 1000),
        ("POST /graphql, a known query", "POST", "/graphql", query),
    ):
        bare = await time_requests(APP, count, secret, *asked)
        with_guard = await time_requests(app, count, secret, *asked)
        print(
            f"{what:32} {bare:7.0f} us without, {with_guard:7.0f} us with: "
            f"{with_guard - bare:+.0f} us, x{with_guard / bare:.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as directory:
        store = Store(f"sqlite:///{Path(directory) / 'tidegate.db'}")
        schema.upgrade(store)
        asyncio.run(measure(store, count))
        store.dispose()


if __name__ == "__main__":
    main()
