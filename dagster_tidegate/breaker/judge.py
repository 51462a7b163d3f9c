"""The verdict on an answer: machine codes first, then headers, then the status, prose last."""

import json
import ssl
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, cast

from dagster_tidegate.breaker.answers import (
    Answer,
    class_names,
    html_headings,
)
from dagster_tidegate.breaker.codes_and_words import known_code, phrase_in, prose_of
from dagster_tidegate.breaker.errors import AnswerError
from dagster_tidegate.breaker.excerpts import excerpt
from dagster_tidegate.breaker.hidden_errors import error_within
from dagster_tidegate.breaker.profiles import USED_UP, Profile, code_of, load
from dagster_tidegate.breaker.time_texts import time_in_prose
from dagster_tidegate.breaker.times import capped, times_of
from dagster_tidegate.breaker.verdicts import Scope, Verdict, VerdictKind

if TYPE_CHECKING:
    from dagster_tidegate.breaker.policy import ServicePolicy

Judge = Callable[[Answer], Verdict]
"""Decides what an answer means."""

DEFAULT_CAP_S = 7 * 86400.0
SUCCESS = Verdict(VerdictKind.SUCCESS)

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
SERVICES_ERRORS: tuple[type[Exception], ...] = (
    ssl.SSLError,
    json.JSONDecodeError,
    UnicodeDecodeError,
)
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
_OLD_FAILURES = (408, 425, 429)
_RECORDS = frozenset({VerdictKind.PENDING, VerdictKind.REJECTED, VerdictKind.IGNORED})
# Services use these for many things: what a message says is more than what the status says.
_VAGUE = frozenset({400, 403, 409, 422, 429})
_UNFINISHED = frozenset({"pending", "processing", "in_progress", "running", "result_pending"})


def judge(
    answer: Answer,
    profile: Profile,
    *,
    failure_statuses: Collection[int] = (),
    cap_s: float = DEFAULT_CAP_S,
) -> Verdict:
    """Decide what an answer means.

    Args:
        profile: What is known about the service's answers.
        failure_statuses: Statuses that are a failure of this service, unless a code in the body
            says more.
        cap_s: Longer waits are cut to this, in seconds.

    Example:
        >>> judge(Answer(402), load("generic")).kind
        <VerdictKind.DENIED: 'denied'>
    """
    error = answer.exception
    if isinstance(error, AnswerError):
        verdict = error.verdict_at(answer.at)
    elif answer.status is None and error is not None:
        verdict = _by_code(answer, profile, None) or _of_exception(error)
    else:
        verdict = _of_answer(answer, profile, failure_statuses)
        if verdict.kind is VerdictKind.SUCCESS and error is not None:
            # It could not be read: cut off, of another type, or not what was asked for.
            verdict = Verdict(VerdictKind.FAILURE, reason=type(error).__name__)
        if verdict is SUCCESS:
            return verdict
    until = capped(verdict.until, answer.at, cap_s)
    said = verdict.answer or (None if answer.body is None else excerpt(answer) or None)
    return replace(verdict, until=until, answer=said)


def judge_for(policy: "ServicePolicy") -> Judge:
    """Return the judge of a policy: its own, that of its profile, or of exceptions alone.

    Raises:
        ValueError: If the profile or the judge can't be loaded; it says why.
    """
    if policy.judge is not None:
        return cast(Judge, function_of(policy.judge, "judge"))
    if policy.profile is None:
        return partial(judge_exception, failure_statuses=policy.failure_statuses)
    return partial(
        judge,
        profile=load(policy.profile),
        failure_statuses=frozenset(policy.failure_statuses),
        cap_s=policy.retry_after_cap_s,
    )


def judge_exception(answer: Answer, *, failure_statuses: Collection[int] = ()) -> Verdict:
    """Decide by the exception alone; whatever a call returns is a success.

    A failure: connection errors, timeouts, statuses from 500, below 400, 408, 425, 429 and
    `failure_statuses`, and exceptions of an unknown kind. Ignored: other statuses (the service
    works, and the request was wrong), and errors of the caller's own program or machine.

    Example:
        >>> judge_exception(Answer(exception=KeyError("email"))).kind
        <VerdictKind.IGNORED: 'ignored'>
    """
    error, status = answer.exception, answer.status
    if error is None:
        return SUCCESS
    if isinstance(error, AnswerError):
        return error.verdict_at(answer.at)
    if status is None:
        return _of_exception(error)
    failed = not 400 <= status < 500 or status in _OLD_FAILURES or status in failure_statuses
    kind = VerdictKind.FAILURE if failed else VerdictKind.IGNORED
    until = times_of(answer).until(retry_after_first=True) if failed else None
    return Verdict(kind, capped(until, answer.at, DEFAULT_CAP_S), reason=str(status))


def every_error(answer: Answer) -> Verdict:
    """Count every exception as a failure, as pybreaker does."""
    if answer.exception is None:
        return SUCCESS
    reason = type(answer.exception).__name__ if answer.status is None else str(answer.status)
    return Verdict(VerdictKind.FAILURE, reason=reason)


def function_of(path: str, what: str) -> Callable[..., Any]:
    """Import a function that a policy names as `package.module:function`.

    Raises:
        ValueError: If there is none.
    """
    try:
        function = resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what} {path!r} can't be imported: {error}") from error
    if not callable(function):
        raise ValueError(f"{what} {path!r} is {function!r}: it must be a function")
    return function


def _of_exception(error: Exception) -> Verdict:
    reason = type(error).__name__
    if not isinstance(error, SERVICES_ERRORS) and (
        isinstance(error, CALLERS_ERRORS) or class_names(error) & CALLERS_ERROR_NAMES
    ):
        return Verdict(VerdictKind.IGNORED, scope=Scope.RECORD, reason=reason)
    return Verdict(VerdictKind.FAILURE, reason=reason)


def _of_answer(answer: Answer, profile: Profile, failure_statuses: Collection[int]) -> Verdict:
    status = 200 if answer.status is None else answer.status
    for rule in profile.rules:
        if rule.matches(answer, status):
            return _verdict(answer, profile, rule.verdict, rule.reason or str(status), rule.scope)
    succeeded = 200 <= status < 300
    if succeeded:
        if answer.is_cut_off:
            return Verdict(VerdictKind.FAILURE, reason=f"{status}, not JSON")
        inner = error_within(answer, profile)
        if inner is None:
            return _of_success(answer, profile, status)
        status = inner or status
    verdict = _by_code(answer, profile, status)
    if verdict is not None:
        return verdict
    if status in failure_statuses:
        return Verdict(VerdictKind.FAILURE, times_of(answer).retry_at, reason=str(status))
    times = times_of(answer)
    asks_to_wait = times.retry_at is not None and times.retry_at > answer.at
    used_up = times.used_up and status in (403, 429, 503)
    if used_up or (asks_to_wait and (status in (403, 429) or status >= 500)):
        return _verdict(answer, profile, VerdictKind.THROTTLED, str(status))
    if succeeded or status in _VAGUE:
        phrase = phrase_in(prose_of(answer), profile, status)
        if phrase is not None:
            words, kind = phrase
            return _verdict(answer, profile, kind, words)
    if 200 <= status < 300:  # an error that is unknown, in an answer that pretends to be none
        return _verdict(answer, profile, VerdictKind.REJECTED, f"error in a {status}")
    return _verdict(answer, profile, profile.of_status(status), str(status))


def _by_code(answer: Answer, profile: Profile, status: int | None) -> Verdict | None:
    known = known_code(answer, profile)
    if known is None:
        return None
    code, kind = known
    if kind == VerdictKind.THROTTLED and status in (401, 402) and "quota" in code.lower():
        kind = USED_UP
    return _verdict(answer, profile, kind, code)


def _verdict(
    answer: Answer,
    profile: Profile,
    kind: VerdictKind | str,
    reason: str,
    scope: Scope | None = None,
) -> Verdict:
    until = None
    if kind not in (VerdictKind.DENIED, VerdictKind.REJECTED, VerdictKind.SUCCESS):
        times = times_of(answer)
        until = times.until(retry_after_first=profile.retry_after_first)
        if kind in (VerdictKind.THROTTLED, USED_UP) and until is None:
            until = time_in_prose(prose_of(answer), answer.at)
    if kind == USED_UP:
        waits = until is not None and until > answer.at
        kind = VerdictKind.THROTTLED if waits else VerdictKind.DENIED
    kind = VerdictKind(kind)
    if kind is VerdictKind.SUCCESS:
        return SUCCESS
    if scope is None:
        if kind in _RECORDS:
            scope = Scope.RECORD
        elif code_of(reason) in profile.endpoint_codes:
            scope = Scope.ENDPOINT
        elif kind is VerdictKind.THROTTLED:
            scope = profile.throttled_scope
        else:
            scope = Scope.SERVICE
    return Verdict(kind, until, scope, reason)


def _of_success(answer: Answer, profile: Profile, status: int) -> Verdict:
    """Decide on a 2xx whose body names no error."""
    if status == 202:
        named = answer.json.get("status") if isinstance(answer.json, dict) else None
        waits = times_of(answer).retry_at is not None
        if waits or (isinstance(named, str) and code_of(named) in _UNFINISHED):
            return _verdict(answer, profile, VerdictKind.PENDING, "202")
    if answer.media_type.endswith("html") and isinstance(answer.body, str | bytes):
        title = html_headings(answer.text).lower()
        if profile.json_only or any(phrase in title for phrase in profile.unwell_titles):
            return Verdict(VerdictKind.FAILURE, reason=f"{status}, an HTML page")
    is_empty = isinstance(answer.body, str | bytes) and not answer.body.strip()
    if profile.json_only and is_empty and answer.media_type.endswith("json"):
        return Verdict(VerdictKind.FAILURE, reason=f"{status}, empty")
    return SUCCESS
