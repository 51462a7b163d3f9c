"""The ways in which each service refuses, as the real ones answer them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

DAY_LEFT_S = 15_733.0


class PlayedAnswer(BaseModel):
    """An answer that a service gives whatever it is asked.

    Attributes:
        body: An object or array is sent as JSON, a string as it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: int = Field(ge=200, le=599)
    headers: dict[str, str] = {}
    body: dict[str, Any] | list[Any] | str = ""


def _played(status: int, body: Any = "", **headers: str) -> PlayedAnswer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return PlayedAnswer(status=status, headers=names, body=body)


def _openai(status: int, kind: str, code: str) -> PlayedAnswer:
    return _played(status, {"error": {"type": kind, "code": code, "message": "..."}})


def _perplexity(status: int, kind: str) -> PlayedAnswer:
    return _played(status, {"error": {"type": kind, "message": "...", "code": status}})


def _millionverifier(error: str) -> PlayedAnswer:
    return _played(200, {"error": error, "result": "error"})


def _instantly(status: int, error: str) -> PlayedAnswer:
    return _played(status, {"statusCode": status, "error": error, "message": "..."})


_PAGE = "<html><head><title>We will be back soon</title></head></html>"
_TOO_MANY = _played(429, {"error": "Too many requests"})
# Case: what any service answers, and what the services do that answer in a way of their own.
_CASES: dict[str, tuple[PlayedAnswer, dict[str, PlayedAnswer]]] = {
    "no-credits": (
        _played(402, {"error": "Payment Required"}),
        {
            "apollo": _played(422, {"error": "You have insufficient credits."}),
            "millionverifier": _millionverifier("Insufficient credits"),
            "perplexity": _perplexity(401, "insufficient_quota"),
            "openai": _openai(429, "insufficient_quota", "insufficient_quota"),
            "instantly": _instantly(402, "Payment Required"),
        },
    ),
    "day-used": (
        _TOO_MANY,
        {
            "apollo": _played(
                429,
                {"message": "..."},
                x_24_hour_requests_left="0",
                x_rate_limit_24_hour="600",
            )
        },
    ),
    "dead-key": (
        _played(401, {"error": "Unauthorized"}),
        {
            "apollo": _played(401, "Invalid access credentials.", content_type="text/plain"),
            "millionverifier": _millionverifier("Apikey not found"),
            "perplexity": _perplexity(401, "invalid_api_key"),
            "openai": _openai(401, "invalid_request_error", "invalid_api_key"),
            "instantly": _instantly(401, "Unauthorized"),
        },
    ),
    "no-plan": (
        _played(403, {"error": "Forbidden"}),
        {
            "apollo": _played(403, {"error": "...", "error_code": "API_INACCESSIBLE"}),
            "openai": _openai(403, "invalid_request_error", "unsupported_country_region_territory"),
            "instantly": _instantly(402, "Payment Required"),
        },
    ),
    "rate-limited": (
        _TOO_MANY,
        {
            "apollo": _played(429, {"message": "..."}, x_minute_requests_left="0"),
            "perplexity": _perplexity(429, "rate_limit_error"),
            "openai": _openai(429, "requests", "rate_limit_exceeded"),
            "instantly": _instantly(429, "Too Many Requests"),
        },
    ),
    "maintenance": (_played(503, {"title": "maintenance", "status": 503}), {}),
    "pending": (
        _played(404, {"status": "result_pending"}),
        {"millionverifier": _played(200, {"error": "", "result": "unknown"})},
    ),
    "invalid": (
        _played(422, {"error": "invalid record"}),
        {
            "millionverifier": _millionverifier("Invalid email"),
            "openai": _openai(400, "invalid_request_error", "context_length_exceeded"),
            "perplexity": _perplexity(400, "bad_request"),
            "instantly": _instantly(400, "Bad Request"),
        },
    ),
    "internal-error": (
        _played(500, {"error": "Internal error"}),
        {"millionverifier": _millionverifier("Internal error")},
    ),
    "overloaded": (
        _played(503, {"error": "overloaded"}),
        {"openai": _openai(503, "server_error", "server_is_overloaded")},
    ),
    "page": (_played(200, _PAGE, content_type="text/html"), {}),
    "redirect": (_played(302, "", location="/maintenance"), {}),
    "cut-off": (_played(200, '{"person": {"id":', content_type="application/json"), {}),
    "one-record": (
        _played(500, {"error": "Internal error"}),
        {"millionverifier": _millionverifier("Internal error")},
    ),
}
CASES = tuple(_CASES)
# Cases that end by themselves, and after how many seconds if nothing else is said.
ENDING = {"day-used": DAY_LEFT_S, "rate-limited": 5.0, "maintenance": 120.0}


def played(case: str, service: str) -> PlayedAnswer:
    """Return what a service answers in one of the `CASES`."""
    common, own = _CASES[case]
    return own.get(service, common)
