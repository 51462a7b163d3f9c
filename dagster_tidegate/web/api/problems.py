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
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.routing import Match

from dagster_tidegate.control.operations import (
    ChangedMeanwhileError,
    NotDeniedError,
    NotPausableError,
    UnderWayError,
)
from dagster_tidegate.control.records import HeldError, NoRecordsError
from dagster_tidegate.dagster_api import LaunchError, UnreachableError
from dagster_tidegate.store.database import UNREACHABLE, DataError
from dagster_tidegate.store.holds import NotYourHoldError
from dagster_tidegate.store.runs import MoveNotAllowedError
from dagster_tidegate.store.schema import SchemaError
from dagster_tidegate.text import shown
from dagster_tidegate.web.access.limits import TooManyError

MEDIA_TYPE = "application/problem+json"
TYPE = "urn:tidegate:problem:"
RETRY_AFTER_S = 5
MAX_ERRORS = 20
MAX_INPUT = 200

log = logging.getLogger(__name__)


class Code(StrEnum):
    """Every problem, with its HTTP status and its meaning, which never changes."""

    status: int
    summary: str

    def __new__(cls, code: str, status: int, summary: str) -> "Code":
        """Make a member with its status and summary."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.status = status
        member.summary = summary
        return member

    NOT_PAUSABLE = "not_pausable", 400, "It has ended and can't be paused"
    SECRET_IN_URL = "secret_in_url", 400, "A secret is in the URL"
    UNAUTHENTICATED = "unauthenticated", 401, "Authentication required"
    FORBIDDEN = "forbidden", 403, "Not allowed"
    CROSS_SITE = "cross_site", 403, "The request comes from another site"
    READ_ONLY = "read_only", 403, "This server is read-only"
    NOT_FOUND = "not_found", 404, "No such path"
    SERVICE_NOT_FOUND = "service_not_found", 404, "No such service"
    CAMPAIGN_NOT_FOUND = "campaign_not_found", 404, "No such campaign"
    CAMPAIGN_RUN_NOT_FOUND = "campaign_run_not_found", 404, "No such campaign run"
    NO_RECORDS = "no_records", 404, "No such records"
    HOLD_NOT_FOUND = "hold_not_found", 404, "No such hold"
    OUTAGE_NOT_FOUND = "outage_not_found", 404, "No such outage"
    METHOD_NOT_ALLOWED = "method_not_allowed", 405, "Method not allowed"
    TOO_SLOW = "too_slow", 408, "The request did not arrive in time"
    HELD = "held", 409, "It is paused"
    UNDER_WAY = "under_way", 409, "It is in flight already"
    TRANSITION_NOT_ALLOWED = "transition_not_allowed", 409, "Its status does not allow this"
    HELD_BY_BREAKER = "held_by_breaker", 409, "A breaker holds it"
    NOT_DENIED = "not_denied", 409, "The service does not refuse this client"
    CAMPAIGN_RUN_EXISTS = "campaign_run_exists", 409, "The campaign run exists already"
    CHANGED_MEANWHILE = "changed_meanwhile", 409, "Someone else changed it at the same moment"
    IDEMPOTENCY_KEY_IN_USE = (
        "idempotency_key_in_use",
        409,
        "The first request with this key is in flight",
    )
    TOO_LARGE = "too_large", 413, "The request is too large"
    UNKNOWN_HOST = "unknown_host", 421, "The Host header names another server"
    INVALID = "invalid", 422, "Validation failed"
    NOT_LAUNCHABLE = "not_launchable", 422, "The run can't be launched"
    IDEMPOTENCY_KEY_REUSED = (
        "idempotency_key_reused",
        422,
        "The key was used for another request",
    )
    TOO_MANY_REQUESTS = "too_many_requests", 429, "Too many requests"
    INTERNAL = "internal", 500, "Internal server error"
    STORE_UNAVAILABLE = "store_unavailable", 503, "The store is unavailable"
    DAGSTER_UNAVAILABLE = "dagster_unavailable", 503, "Dagster is unavailable"
    TOO_MANY_STREAMS = "too_many_streams", 503, "Too many event streams"


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
"""Problems that every operation may answer with."""
REFUSALS: Mapping[type[Exception], Code] = {
    HeldError: Code.HELD,
    NoRecordsError: Code.NO_RECORDS,
    ChangedMeanwhileError: Code.CHANGED_MEANWHILE,
    LaunchError: Code.NOT_LAUNCHABLE,
    MoveNotAllowedError: Code.TRANSITION_NOT_ALLOWED,
    NotDeniedError: Code.NOT_DENIED,
    NotPausableError: Code.NOT_PAUSABLE,
    NotYourHoldError: Code.HELD_BY_BREAKER,
    UnderWayError: Code.UNDER_WAY,
    UnreachableError: Code.DAGSTER_UNAVAILABLE,
}
"""What operations raise when they refuse; nothing has changed then."""


class Problem(Exception):
    """Ends a request with problem details.

    Args:
        detail: What was wrong with this request, and what would be right.
        extensions: Additional members of the problem, as JSON.

    Example:
        >>> Problem(Code.HELD, "outreach is paused", holds=[]).code.status
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
        self.detail = detail
        self.headers = dict(headers or {})
        self.extensions = extensions

    def response(self) -> JSONResponse:
        """Return the answer."""
        body = {
            "type": f"{TYPE}{self.code}",
            "title": self.code.summary,
            "status": self.code.status,
            "detail": self.detail,
            "code": self.code,
            **self.extensions,
        }
        return JSONResponse(
            jsonable_encoder(body),
            self.code.status,
            headers=self.headers,
            media_type=MEDIA_TYPE,
        )


class ProblemDetails(BaseModel):
    """A problem (RFC 9457); some codes have additional members, see docs/api.md."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="A URI that ends with the code.", examples=[f"{TYPE}held"])
    title: str = Field(description="What the code means.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What was wrong with this request, and what would be right.")
    code: Code = Field(description="The problem, for programs.")


def responses(*codes: Code) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of an operation: the given problems and the `COMMON` ones."""
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys((*codes, *COMMON)):
        by_status.setdefault(code.status, []).append(f"`{code}`: {code.summary}.")
    schema = {"$ref": f"#/components/schemas/{ProblemDetails.__name__}"}
    return {
        status: {"description": " ".join(titles), "content": {MEDIA_TYPE: {"schema": schema}}}
        for status, titles in sorted(by_status.items())
    }


def problem_of(connection: HTTPConnection, error: Exception) -> Problem:
    """Return the answer to a request that an exception ended; the reasons are for the log."""
    match error:
        case Problem():
            return error
        case TooManyError():
            headers = {"Retry-After": str(error.retry_after_s)}
            return Problem(Code.TOO_MANY_REQUESTS, str(error), headers=headers)
        case RequestValidationError():
            return _invalid(connection, error)
        case HTTPException():
            return _http(connection, error)
        case SchemaError():
            log.error("%s", error)
            detail = "the schema of the store has another version: run 'tidegate store upgrade'"
            return Problem(Code.STORE_UNAVAILABLE, detail, headers=later())
        case DataError():
            log.warning("the database refused a value: %s", error.orig)
            return Problem(Code.INVALID, "the database can't store a value of this request")
    if isinstance(error, UNREACHABLE):
        # The driver's message may contain the address of the database: it is for the log only.
        log.error("the store is unreachable: %s", error)
        detail = "the store is unreachable: try again"
        return Problem(Code.STORE_UNAVAILABLE, detail, headers=later())
    for kind in type(error).__mro__:
        if (code := REFUSALS.get(kind)) is not None:
            return Problem(code, str(error), headers=later() if code.status == 503 else None)
    return _unexpected(connection, error)


def later() -> dict[str, str]:
    """Return the header that says when to try again."""
    return {"Retry-After": str(RETRY_AFTER_S)}


def install(app: FastAPI) -> None:
    """Make an app answer every error with problem details."""

    def answer(request: Request, error: Exception) -> JSONResponse:
        return problem_of(request, error).response()

    # Starlette raises again what only the handler of `Exception` has answered.
    named = (Problem, RequestValidationError, HTTPException, SchemaError, DataError)
    for kind in (*named, *UNREACHABLE, *REFUSALS, Exception):
        app.add_exception_handler(kind, answer)


def _invalid(connection: HTTPConnection, error: RequestValidationError) -> Problem:
    sent = connection.headers.get("content-type", "")
    if "json" not in sent and any(each["loc"] == ("body",) for each in error.errors()):
        has = f"the content type {shown(sent)}" if sent else "no content type"
        fix = "send JSON, with the header 'Content-Type: application/json'"
        return Problem(Code.INVALID, f"the request has {has}: {fix}")
    errors = [
        {
            "where": ".".join(map(str, each["loc"])),
            "what": str(each["msg"]).removeprefix("Value error, ")[:MAX_INPUT],
        }
        for each in error.errors()[:MAX_ERRORS]
    ]
    detail = "; ".join(f"{each['where']}: {each['what']}" for each in errors)
    return Problem(Code.INVALID, detail, errors=errors)


def _http(connection: HTTPConnection, error: HTTPException) -> Problem:
    detail = str(error.detail)
    if error.status_code == Code.METHOD_NOT_ALLOWED.status:
        allowed = ", ".join(_allowed_methods(connection))
        detail = f"{connection.scope['method']} is not allowed here: use {allowed}"
        return Problem(Code.METHOD_NOT_ALLOWED, detail, headers={"Allow": allowed})
    if error.status_code == Code.TOO_LARGE.status:
        return Problem(Code.TOO_LARGE, detail, headers=error.headers)
    if error.status_code == Code.NOT_FOUND.status:
        return Problem(Code.NOT_FOUND, "no such path: see /api/v1/openapi.json for all paths")
    if error.status_code < 500:  # an unreadable body
        return Problem(Code.INVALID, detail)
    return _unexpected(connection, error)


def _allowed_methods(connection: HTTPConnection) -> list[str]:
    """Return the methods of all routes with this path; Starlette has those of the first only."""
    return [
        method
        for method in ("GET", "POST", "PUT", "DELETE")
        if any(
            route.matches({**connection.scope, "method": method})[0] is Match.FULL
            for route in connection.app.routes
        )
    ]


def _unexpected(connection: HTTPConnection, error: Exception) -> Problem:
    log.error("%s failed", connection.scope.get("route", "a request"), exc_info=error)
    return Problem(Code.INTERNAL, "the request failed; the log of the server has the reason")
