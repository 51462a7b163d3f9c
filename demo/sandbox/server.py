"""The sandbox's HTTP server.

| request | what it does |
|---|---|
| `GET /{service}/health` | 200, or what the fault of the service makes of it |
| `POST /_control/{service}` | places a `Fault` |
| `DELETE /_control/{service}` | heals the service |
| `GET /_stats` | counts per service; `DELETE` sets them back |
| `GET /_calls?since=&service=&limit=` | the last calls, the oldest first |
| `GET /_keys/{service}` | arrivals, effects and repeats per idempotency key |
| `GET /_effects/{service}` | how often each subject took effect |
| all else | the services themselves; see `answers` |
"""

import asyncio
import json
import socket
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from math import ceil
from typing import Any

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from demo.sandbox.answers import SERVICES, Request, answer
from demo.sandbox.books import MAX_CALLS, Book
from demo.sandbox.faults import Fault, Mode, explain

HOST = "127.0.0.1"
DEFAULT_PORT = 8765
DEFAULT_LATENCY_S = 0.003
MAX_BYTES = 1_000_000
KEY_HEADER = "Idempotency-Key"
MAX_KEY = 255


class PortTakenError(Exception):
    """The port that the sandbox is to listen on belongs to another process."""


def create_app(
    *,
    latency_s: float = DEFAULT_LATENCY_S,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Starlette:
    """Return the sandbox as an ASGI app; its state lives and dies with it.

    Args:
        latency_s: Seconds that every answer takes.
        clock: Gives the time, UTC.
    """
    books = {service: Book() for service in SERVICES}
    calls: deque[dict[str, Any]] = deque(maxlen=MAX_CALLS)

    def book_of(request: HttpRequest) -> tuple[str, Book]:
        service = request.path_params["service"]
        if service not in books:
            raise HTTPException(404, f"no service {service!r}; there are {', '.join(books)}")
        return service, books[service]

    async def health(request: HttpRequest) -> Response:
        service, book = book_of(request)
        book.health_calls += 1
        live = book.live_episode(clock())
        fault = live.fault if live and live.fault.mode is not Mode.WRONG else None
        if fault is not None and fault.touches(book.health_calls):
            await asyncio.sleep(fault.delay_s)
            if fault.refusal_status is not None:
                return _refused(service, fault)
        return JSONResponse({"service": service, "status": "ok"})

    async def serve_call(request: HttpRequest) -> Response:
        service, book = book_of(request)
        body = await _json_body(request)
        now = clock()
        path = request.path_params["path"]
        key = request.headers.get(KEY_HEADER)
        if key is not None and not 0 < len(key) <= MAX_KEY:
            raise HTTPException(400, f"{KEY_HEADER}: 1 to {MAX_KEY} characters")
        fault = book.arrive(now, key)
        if fault is not None:
            book.failures_served += 1
        if fault is not None and fault.refusal_status is not None:
            response: Response = _refused(service, fault)
        else:
            answered = answer(service, Request(request.method, path, request.query_params, body))
            if answered.status < 400:
                book.take_effect(key, answered.subject)
            if fault is not None and fault.mode is Mode.WRONG:
                response = _wrong(book.calls)
            else:
                response = JSONResponse(answered.body, answered.status)
        book.by_status[response.status_code] += 1
        calls.append(
            {
                "at": now.isoformat(timespec="microseconds"),
                "service": service,
                "path": path[:MAX_KEY],
                "status": response.status_code,
                "fault": None if fault is None else fault.mode,
                "idempotency_key": key,
            }
        )
        await asyncio.sleep(latency_s + (0.0 if fault is None else fault.delay_s))
        return response

    async def control(request: HttpRequest) -> Response:
        service, book = book_of(request)
        now = clock()
        if request.method == "DELETE":
            return JSONResponse({"service": service, "healed": book.heal(now)})
        try:
            fault = Fault.model_validate(await _json_body(request))
        except ValidationError as error:
            raise HTTPException(422, explain(error)) from error
        book.place(now, fault)
        return JSONResponse({"service": service, **book.as_json(now)["fault"]})

    async def stats(request: HttpRequest) -> Response:
        if request.method == "DELETE":
            calls.clear()
            for book in books.values():
                book.reset()
        now = clock()
        return JSONResponse({service: book.as_json(now) for service, book in books.items()})

    async def call_log(request: HttpRequest) -> Response:
        params = request.query_params
        if unknown := set(params) - {"since", "service", "limit"}:
            raise HTTPException(422, f"unknown: {', '.join(sorted(unknown))}")
        if (service := params.get("service")) is not None and service not in books:
            raise HTTPException(404, f"no service {service!r}; there are {', '.join(books)}")
        since = _since(params.get("since"))
        limit = params.get("limit", str(MAX_CALLS))
        if not limit.isascii() or not limit.isdigit():
            raise HTTPException(422, f"limit: {limit!r} is not a number of calls")
        found = [
            call
            for call in calls
            if call["service"] == (service or call["service"])
            and (since is None or datetime.fromisoformat(call["at"]) >= since)
        ]
        return JSONResponse(found[: int(limit)])

    async def keys(request: HttpRequest) -> Response:
        _, book = book_of(request)
        return JSONResponse({key: count.as_json() for key, count in book.keys.items()})

    async def effects(request: HttpRequest) -> Response:
        _, book = book_of(request)
        return JSONResponse(dict(book.subjects))

    async def problem(_request: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    return Starlette(
        routes=[
            Route("/_control/{service}", control, methods=["POST", "DELETE"]),
            Route("/_stats", stats, methods=["GET", "DELETE"]),
            Route("/_calls", call_log),
            Route("/_keys/{service}", keys),
            Route("/_effects/{service}", effects),
            Route("/{service}/health", health),
            Route("/{service}/{path:path}", serve_call, methods=["GET", "POST"]),
        ],
        exception_handlers={HTTPException: problem},
    )


def listen(port: int = DEFAULT_PORT, host: str = HOST) -> socket.socket:
    """Take a port of an address of this machine; port 0 takes a free one.

    Raises:
        PortTakenError: If another process has it.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise PortTakenError(
            f"port {port} of {host} can't be taken ({error.strerror}); choose another with --port"
        ) from error


def serve(sock: socket.socket, *, latency_s: float = DEFAULT_LATENCY_S) -> None:
    """Serve on `sock` until SIGINT or SIGTERM. `latency_s` are the seconds an answer takes."""
    config = uvicorn.Config(
        create_app(latency_s=latency_s),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[sock])


async def _json_body(request: HttpRequest) -> dict[str, Any]:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BYTES:
            raise HTTPException(413, f"the body is longer than {MAX_BYTES} bytes")
    if not raw:
        return {}
    try:
        body = json.loads(raw)
        # What Python reads and JSON can't say (NaN, half a surrogate pair) could not be answered.
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return body


def _since(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        since = datetime.fromisoformat(value)
    except ValueError as error:
        raise HTTPException(422, f"since: {value!r} is not an ISO 8601 time") from error
    if since.tzinfo is None:
        raise HTTPException(422, f"since: {value!r} has no time zone; write it as ...+00:00")
    return since


def _refused(service: str, fault: Fault) -> Response:
    status = fault.refusal_status
    assert status is not None
    after = fault.sent_retry_after_s
    headers = {} if after is None else {"Retry-After": str(ceil(after))}
    return JSONResponse({"error": f"{service} is not available ({status})"}, status, headers)


def _wrong(nth: int) -> Response:
    if nth % 2:
        return HTMLResponse("<html><body>We will be back soon.</body></html>")
    return JSONResponse({"ok": True})
