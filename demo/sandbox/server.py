"""The sandbox's HTTP server.

| request | what it does |
|---|---|
| `GET /{service}/health` | 200, or as the service's fault dictates |
| `POST /_control/{service}` | starts a `Fault` |
| `DELETE /_control/{service}` | ends it |
| `GET /_stats` | counters per service; `DELETE` resets them |
| `GET /_calls?since=&service=&limit=` | the last calls, oldest first |
| `GET /_keys/{service}` | arrivals, effects and repeats per idempotency key |
| `GET /_effects/{service}` | how often each subject took effect |
| anything else | the services; see `answers` |
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
from demo.sandbox.call_log import MAX_CALLS, CallLog
from demo.sandbox.faults import Episode, Fault, Mode, explain

HOST = "127.0.0.1"
DEFAULT_PORT = 8765
DEFAULT_LATENCY_S = 0.003
MAX_BYTES = 1_000_000
KEY_HEADER = "Idempotency-Key"
MAX_KEY = 255


class PortTakenError(Exception):
    """The port of the sandbox is in use."""


def create_app(
    *,
    latency_s: float = DEFAULT_LATENCY_S,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Starlette:
    """Return the sandbox as an ASGI app with its state in memory.

    Args:
        latency_s: Latency of every response, in seconds.
        clock: Returns the current time, UTC.
    """
    logs = {service: CallLog() for service in SERVICES}
    calls: deque[dict[str, Any]] = deque(maxlen=MAX_CALLS)

    def log_of(request: HttpRequest) -> tuple[str, CallLog]:
        service = request.path_params["service"]
        if service not in logs:
            raise HTTPException(404, f"no service {service!r}; there are {', '.join(logs)}")
        return service, logs[service]

    async def health(request: HttpRequest) -> Response:
        service, log = log_of(request)
        log.health_calls += 1
        live = log.active_episode(clock())
        if live is not None and live.fault.breaks_health and live.fault.affects(log.health_calls):
            await asyncio.sleep(live.fault.delay_s)
            if refusal := _refusal(service, live, clock()):
                return refusal
        return JSONResponse({"service": service, "status": "ok"})

    async def serve_call(request: HttpRequest) -> Response:
        service, log = log_of(request)
        body = await _json_body(request)
        now = clock()
        path = request.path_params["path"]
        key = request.headers.get(KEY_HEADER)
        if key is not None and not 0 < len(key) <= MAX_KEY:
            raise HTTPException(400, f"{KEY_HEADER}: 1 to {MAX_KEY} characters")
        said = json.dumps([key, dict(request.query_params), body], ensure_ascii=False)
        episode = log.arrive(now, key, said)
        fault = None if episode is None else episode.fault
        log.failures_served += fault is not None
        refusal = None if episode is None else _refusal(service, episode, now)
        if refusal is None or (fault is not None and fault.takes_effect):
            answered = answer(service, Request(request.method, path, request.query_params, body))
            if answered.status < 400:
                log.take_effect(key, answered.subject)
            if refusal is not None:
                response: Response = refusal
            elif fault is not None and fault.mode is Mode.WRONG:
                response = _wrong(log.calls)
            else:
                response = JSONResponse(answered.body, answered.status)
        else:
            response = refusal
        live = log.active_episode(now)
        response.headers.update({} if live is None else live.limit_headers(now))
        log.by_status[response.status_code] += 1
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
        service, log = log_of(request)
        now = clock()
        if request.method == "DELETE":
            return JSONResponse({"service": service, "healed": log.heal(now)})
        try:
            fault = Fault.model_validate(await _json_body(request))
        except ValidationError as error:
            raise HTTPException(422, explain(error)) from error
        log.place(now, fault)
        return JSONResponse({"service": service, **log.as_json(now)["fault"]})

    async def stats(request: HttpRequest) -> Response:
        if request.method == "DELETE":
            calls.clear()
            for log in logs.values():
                log.reset()
        now = clock()
        return JSONResponse({service: log.as_json(now) for service, log in logs.items()})

    async def call_log(request: HttpRequest) -> Response:
        params = request.query_params
        if unknown := set(params) - {"since", "service", "limit"}:
            raise HTTPException(422, f"unknown: {', '.join(sorted(unknown))}")
        if (service := params.get("service")) is not None and service not in logs:
            raise HTTPException(404, f"no service {service!r}; there are {', '.join(logs)}")
        since = _since(params.get("since"))
        limit = params.get("limit", str(MAX_CALLS))
        if not limit.isascii() or not limit.isdigit():
            raise HTTPException(422, f"limit: {limit!r} is not a number of calls")
        matching = [
            call
            for call in calls
            if call["service"] == (service or call["service"])
            and (since is None or datetime.fromisoformat(call["at"]) >= since)
        ]
        return JSONResponse(matching[: int(limit)])

    async def keys(request: HttpRequest) -> Response:
        _, log = log_of(request)
        return JSONResponse({key: count.as_json() for key, count in log.keys.items()})

    async def effects(request: HttpRequest) -> Response:
        _, log = log_of(request)
        return JSONResponse(dict(log.subjects))

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
    """Bind a port; 0 picks a free one.

    Raises:
        PortTakenError: If it is in use.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise PortTakenError(
            f"port {port} of {host} is not available ({error.strerror}); choose another with --port"
        ) from error


def serve(sock: socket.socket, *, latency_s: float = DEFAULT_LATENCY_S) -> None:
    """Serve on `sock` until SIGINT or SIGTERM."""
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
            raise HTTPException(413, f"the body exceeds {MAX_BYTES} bytes")
    if not raw:
        return {}
    try:
        body = json.loads(raw)
        # Python parses what JSON can't represent (NaN, lone surrogates) and could not echo it.
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


def _refusal(service: str, episode: Episode, now: datetime) -> Response | None:
    """Return the response of a fault, or None if the service itself responds."""
    fault, after = episode.fault, episode.retry_after_s(now)
    headers = {} if after is None else {"Retry-After": str(ceil(after))}
    played = fault.answered(service)
    if played is not None:
        headers |= played.headers
        if isinstance(played.body, str):
            return Response(played.body, played.status, headers)
        return JSONResponse(played.body, played.status, headers)
    status = fault.refusal_status
    if status is None:
        return None
    return JSONResponse({"error": f"{service} is not available ({status})"}, status, headers)


def _wrong(nth: int) -> Response:
    if nth % 2:
        return HTMLResponse("<html><body>We will be back soon.</body></html>")
    return JSONResponse({"ok": True})
