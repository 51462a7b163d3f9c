"""What the API answers when it refuses or fails: RFC 9457 problem details with stable codes."""

import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match

from dagster_tidegate.store.database import UNREACHABLE, DataError
from dagster_tidegate.store.schema import SchemaError

MEDIA_TYPE = "application/problem+json"
TYPE = "urn:tidegate:problem:"
RETRY_AFTER_S = 5
MAX_ERRORS = 20
MAX_INPUT = 200

log = logging.getLogger(__name__)


class Code(StrEnum):
    """What went wrong. A code never changes its meaning; `CODES` has the status and title."""

    NOT_PAUSABLE = "not_pausable"
    SECRET_IN_URL = "secret_in_url"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    CROSS_SITE = "cross_site"
    READ_ONLY = "read_only"
    NOT_FOUND = "not_found"
    SERVICE_NOT_FOUND = "service_not_found"
    CAMPAIGN_NOT_FOUND = "campaign_not_found"
    CAMPAIGN_RUN_NOT_FOUND = "campaign_run_not_found"
    HOLD_NOT_FOUND = "hold_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    TOO_SLOW = "too_slow"
    HELD = "held"
    UNDER_WAY = "under_way"
    TRANSITION_NOT_ALLOWED = "transition_not_allowed"
    HELD_BY_BREAKER = "held_by_breaker"
    CAMPAIGN_RUN_EXISTS = "campaign_run_exists"
    CHANGED_MEANWHILE = "changed_meanwhile"
    IDEMPOTENCY_KEY_IN_USE = "idempotency_key_in_use"
    TOO_LARGE = "too_large"
    UNKNOWN_HOST = "unknown_host"
    INVALID = "invalid"
    NOT_LAUNCHABLE = "not_launchable"
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
    TOO_MANY_REQUESTS = "too_many_requests"
    INTERNAL = "internal"
    STORE_UNAVAILABLE = "store_unavailable"
    DAGSTER_UNAVAILABLE = "dagster_unavailable"
    TOO_MANY_STREAMS = "too_many_streams"


CODES: Mapping[Code, tuple[int, str]] = {
    Code.NOT_PAUSABLE: (400, "It has ended, and can't be paused"),
    Code.SECRET_IN_URL: (400, "A secret is in the URL"),
    Code.UNAUTHENTICATED: (401, "Say who you are"),
    Code.FORBIDDEN: (403, "You may not do this"),
    Code.CROSS_SITE: (403, "The request comes from another site"),
    Code.READ_ONLY: (403, "This server changes nothing"),
    Code.NOT_FOUND: (404, "There is nothing at this path"),
    Code.SERVICE_NOT_FOUND: (404, "There is no such service"),
    Code.CAMPAIGN_NOT_FOUND: (404, "There is no such campaign"),
    Code.CAMPAIGN_RUN_NOT_FOUND: (404, "There is no such campaign run"),
    Code.HOLD_NOT_FOUND: (404, "There is no such hold"),
    Code.METHOD_NOT_ALLOWED: (405, "The path has no such method"),
    Code.TOO_SLOW: (408, "The request did not come to its end in time"),
    Code.HELD: (409, "It is paused"),
    Code.UNDER_WAY: (409, "It is under way already"),
    Code.TRANSITION_NOT_ALLOWED: (409, "Its status does not allow this"),
    Code.HELD_BY_BREAKER: (409, "A breaker holds it"),
    Code.CAMPAIGN_RUN_EXISTS: (409, "The campaign run is there already"),
    Code.CHANGED_MEANWHILE: (409, "Somebody else changed it at the same moment"),
    Code.IDEMPOTENCY_KEY_IN_USE: (409, "The first request with this key is under way"),
    Code.TOO_LARGE: (413, "The request is too large"),
    Code.UNKNOWN_HOST: (421, "The server has another name"),
    Code.INVALID: (422, "The request is not valid"),
    Code.NOT_LAUNCHABLE: (422, "The code has no such run"),
    Code.IDEMPOTENCY_KEY_REUSED: (422, "The key belongs to another request"),
    Code.TOO_MANY_REQUESTS: (429, "Too many requests"),
    Code.INTERNAL: (500, "Something went wrong here"),
    Code.STORE_UNAVAILABLE: (503, "The store can't be reached"),
    Code.DAGSTER_UNAVAILABLE: (503, "Dagster can't be reached"),
    Code.TOO_MANY_STREAMS: (503, "Too many event streams"),
}
"""The HTTP status of each code, and a title for people."""
COMMON = (
    Code.SECRET_IN_URL,
    Code.UNAUTHENTICATED,
    Code.FORBIDDEN,
    Code.CROSS_SITE,
    Code.READ_ONLY,
    Code.TOO_SLOW,
    Code.TOO_LARGE,
    Code.UNKNOWN_HOST,
    Code.INVALID,
    Code.TOO_MANY_REQUESTS,
    Code.INTERNAL,
    Code.STORE_UNAVAILABLE,
)
"""What every operation may answer."""


class Problem(Exception):
    """Ends a request with problem details.

    Args:
        code: What went wrong.
        detail: The same for people: what, where, and what would be right.
        headers: More headers of the answer.
        extensions: More members of the problem, as JSON can hold them.

    Example:
        >>> Problem(Code.HELD, "outreach is paused", holds=[]).status
        409
    """

    def __init__(
        self,
        code: Code,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **extensions: Any,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status, self.title = CODES[code]
        self.detail = detail
        self.headers = dict(headers or {})
        self.extensions = extensions

    def response(self) -> JSONResponse:
        """Return the answer."""
        body = {
            "type": f"{TYPE}{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            **self.extensions,
        }
        return JSONResponse(
            jsonable_encoder(body),
            self.status,
            headers=self.headers,
            media_type=MEDIA_TYPE,
        )


class ProblemDetails(BaseModel):
    """A problem as RFC 9457 has it; some codes have more members, see docs/api.md."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="A URI that ends with the code.", examples=[f"{TYPE}held"])
    title: str = Field(description="What the code means.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What went wrong here, and what would be right.")
    code: Code = Field(description="What went wrong, for programs.")


def responses(*codes: Code) -> dict[int | str, dict[str, Any]]:
    """Return what the OpenAPI document says of the problems of an operation.

    Args:
        codes: The problems that it may answer with, besides the `COMMON` ones.
    """
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys((*codes, *COMMON)):
        by_status.setdefault(CODES[code][0], []).append(f"`{code}`: {CODES[code][1]}.")
    schema = {"$ref": f"#/components/schemas/{ProblemDetails.__name__}"}
    return {
        status: {
            "description": " ".join(found),
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status, found in sorted(by_status.items())
    }


def install(app: FastAPI) -> None:
    """Make an app answer with problem details whatever goes wrong in it."""
    handlers: dict[type[Exception], Any] = {
        Problem: _problem,
        RequestValidationError: _invalid,
        HTTPException: _http,
        SchemaError: _schema,
        DataError: _data,
        **dict.fromkeys(UNREACHABLE, _unreachable),
        Exception: _unexpected,
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)


def _problem(_request: Request, error: Problem) -> JSONResponse:
    return error.response()


def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
    errors = [
        {"where": ".".join(map(str, each["loc"])), "what": _what(each)[:MAX_INPUT]}
        for each in error.errors()[:MAX_ERRORS]
    ]
    detail = "; ".join(f"{each['where']}: {each['what']}" for each in errors)
    return Problem(Code.INVALID, detail, errors=errors).response()


def _what(found: Mapping[str, Any]) -> str:
    return str(found["msg"]).removeprefix("Value error, ")  # pydantic's word for a ValueError


def _data(_request: Request, error: DataError) -> JSONResponse:
    log.warning("the database refuses a value: %s", error.orig)
    return Problem(Code.INVALID, "the database can't keep a value of this request").response()


def _http(request: Request, error: HTTPException) -> JSONResponse:
    headers = error.headers or {}
    if error.status_code == CODES[Code.METHOD_NOT_ALLOWED][0]:
        allowed = ", ".join(_allowed(request))
        detail = f"{request.method} is not allowed here: use {allowed}"
        return Problem(Code.METHOD_NOT_ALLOWED, detail, headers={"Allow": allowed}).response()
    if error.status_code == CODES[Code.TOO_LARGE][0]:
        return Problem(Code.TOO_LARGE, str(error.detail), headers=headers).response()
    if error.status_code == CODES[Code.NOT_FOUND][0]:
        detail = "there is nothing at this path: see /api/v1/openapi.json for those there are"
        return Problem(Code.NOT_FOUND, detail).response()
    if error.status_code < 500:  # a body that can't be read
        return Problem(Code.INVALID, str(error.detail)).response()
    return _unexpected(request, error)


def _allowed(request: Request) -> list[str]:
    """The methods of a path. Starlette tells only those of the first route that has the path."""
    return [
        method
        for method in ("GET", "POST")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


def _schema(_request: Request, error: SchemaError) -> JSONResponse:
    log.error("%s", error)
    detail = "this version can't work with the store's schema: run 'tidegate store upgrade'"
    return Problem(Code.STORE_UNAVAILABLE, detail, headers=later()).response()


def unreachable(error: Exception) -> Problem:
    """Return the problem that the store can't be reached; why goes to the log."""
    # What the driver says may have the address of the database: it is for the log alone.
    log.error("the store can't be reached: %s", error)
    detail = "the store can't be reached: try again"
    return Problem(Code.STORE_UNAVAILABLE, detail, headers=later())


def _unreachable(_request: Request, error: Exception) -> JSONResponse:
    return unreachable(error).response()


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("%s failed", request.scope.get("route", "a request"), exc_info=error)
    detail = "the request failed for a reason that is in the log of the server"
    return Problem(Code.INTERNAL, detail).response()


def later() -> dict[str, str]:
    """Return the header that says when to try again."""
    return {"Retry-After": str(RETRY_AFTER_S)}
