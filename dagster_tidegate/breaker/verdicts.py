"""The verdict on a call, by its exception; and Retry-After. Pure, except for one log line."""

import json
import logging
import ssl
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

log = logging.getLogger(__name__)


class VerdictKind(StrEnum):
    """What a guarded call says: the first five about its service, the rest about its record."""

    SUCCESS = "success"
    SLOW = "slow"  # succeeded, but took too long
    FAILURE = "failure"  # the service is unwell
    THROTTLED = "throttled"  # it is healthy, and must not be called before a time
    DENIED = "denied"  # it refuses this client until a person repairs something
    PENDING = "pending"  # no answer yet for this record
    REJECTED = "rejected"  # the record's own fault
    IGNORED = "ignored"  # the caller's own error


class Scope(StrEnum):
    """What a verdict is about."""

    SERVICE = "service"
    ENDPOINT = "endpoint"  # the part of the service that was called
    RECORD = "record"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one call to a service says.

    Attributes:
        until: Not to be called again before, UTC; of `throttled` and `pending`, None if unknown.
        reason: A short name, for people: "503", "insufficient_quota".
        answer: What the service said, shortened and with its secrets masked; None without a body.
    """

    kind: VerdictKind
    until: datetime | None = None
    scope: Scope = Scope.SERVICE
    reason: str = ""
    answer: str | None = None


Classify = Callable[[Exception], VerdictKind]
"""Returns the verdict on an exception."""

# Mistakes of the caller and errors of this machine; a service can't cause them.
CALLERS_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    NotImplementedError,
    ReferenceError,
    RecursionError,
    StopAsyncIteration,
    StopIteration,
    SyntaxError,
    TypeError,
    ValueError,
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
# Subclasses of the above that a service does cause.
SERVICES_ERRORS: tuple[type[Exception], ...] = (ssl.SSLError, json.JSONDecodeError)
# By name, because these libraries are optional.
CALLERS_ERROR_NAMES = frozenset(
    {
        "httpx.LocalProtocolError",
        "httpx.StreamError",
        "httpx.UnsupportedProtocol",
        "httpx.InvalidURL",
        "httpx.CookieConflict",
    }
)
RETRY_AFTER_ABSURD_S = 30 * 86400.0


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an exception carries, or None.

    Knows the exceptions of httpx, requests, aiohttp, urllib and of most SDKs: `status_code`,
    `status`, `code`, or those of `response`.
    """
    for thing in (error, getattr(error, "response", None)):
        for attribute in ("status_code", "status", "code"):
            status = getattr(thing, attribute, None)
            if type(status) is int and 100 <= status <= 599:
                return status
    return None


def default_verdict(error: Exception, failure_statuses: Collection[int] = ()) -> VerdictKind:
    """Return the default verdict on an exception.

    Args:
        error: The exception of the guarded call.
        failure_statuses: HTTP statuses that count as a failure besides 500 to 599.

    Returns:
        `FAILURE` for connection errors, timeouts, those statuses, and exceptions of an unknown
        kind; `IGNORED` for other statuses (the service works, and the request was wrong) and for
        errors of the caller's own program or machine.

    Example:
        >>> default_verdict(ConnectionResetError())
        <VerdictKind.FAILURE: 'failure'>
        >>> default_verdict(KeyError("email"))
        <VerdictKind.IGNORED: 'ignored'>
    """
    status = status_of(error)
    if status is not None:
        failed = not 400 <= status < 500 or status in (408, 425, 429) or status in failure_statuses
        return VerdictKind.FAILURE if failed else VerdictKind.IGNORED
    if isinstance(error, SERVICES_ERRORS):
        return VerdictKind.FAILURE
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__}
    if isinstance(error, CALLERS_ERRORS) or names & CALLERS_ERROR_NAMES:
        return VerdictKind.IGNORED
    return VerdictKind.FAILURE


def every_error(_error: Exception) -> VerdictKind:
    """Return `FAILURE` for every exception, as pybreaker does."""
    return VerdictKind.FAILURE


def label(error: BaseException) -> str:
    """Return a short name of a failure, for people: its HTTP status, or else its type.

    Example:
        >>> label(TimeoutError("after 10 s"))
        'TimeoutError'
    """
    status = status_of(error)
    return type(error).__name__ if status is None else str(status)


def retry_after(error: BaseException, now: datetime, cap_s: float) -> float | None:
    """Return the Retry-After of an error in seconds, or None if it has none or an invalid one.

    Args:
        error: The exception of the guarded call, with `response.headers` or `headers`.
        now: The time, UTC; a date in the header is compared with it.
        cap_s: Longer times are cut to this, in seconds.
    """
    for thing in (getattr(error, "response", None), error):
        headers: Any = getattr(thing, "headers", None)
        value = headers.get("Retry-After") if hasattr(headers, "get") else None
        if value is not None:
            return parse_retry_after(str(value), now, cap_s)
    return None


def parse_retry_after(value: str, now: datetime, cap_s: float) -> float | None:
    """Parse the value of a Retry-After header (RFC 9110, section 10.2.3).

    Args:
        value: Seconds, or an HTTP date.
        cap_s: Longer times are cut to this, in seconds.

    Returns:
        Seconds from `now`; None for an invalid value, which is logged.

    Example:
        >>> parse_retry_after("120", datetime.now(UTC), cap_s=60.0)
        60.0
    """
    value = value.strip()
    seconds: float | None = None
    if value.isascii() and value.isdigit():
        seconds = float(value) if len(value) < 12 else float("inf")
    else:
        try:
            at = parsedate_to_datetime(value)
        except ValueError:
            pass
        else:
            # A date in the past means: now.
            seconds = max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())
    if seconds is None or seconds > RETRY_AFTER_ABSURD_S:
        log.warning("ignoring Retry-After %.80r: neither seconds nor a date within 30 days", value)
        return None
    return min(seconds, cap_s)
