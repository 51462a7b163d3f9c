"""What a service answered: the same shape for a response, an exception and a parsed body.

Libraries are known by the names of their attributes, since all of them are optional.
"""

import json
import re
import socket
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any, overload

from dagster_tidegate.breaker.errors import AnswerError
from dagster_tidegate.breaker.verdicts import VerdictKind

MAX_PARSED = 256_000
"""Longer bodies of successful calls are not parsed a second time."""
MAX_READ = 1_000_000
"""Longer bodies are not parsed at all: their first words decide, and the rest of the answer."""
MAX_CAUSES = 8
MAX_ITEMS, MAX_LEVELS, MAX_VALUES = 20, 6, 2000
"""How much of a parsed body is searched."""
_RESPONSE_ATTRIBUTES = ("headers", "json", "read")
# In the order in which they are looked at: the first that has a value is the body.
_BODIES = ("json_body", "body", "http_body", "data", "content", "_content", "_body")
_NO_JSON: Any = object()

# The service was never reached.
NOT_SENT: tuple[type[Exception], ...] = (ConnectionRefusedError, socket.gaierror)
NOT_SENT_NAMES = frozenset(
    {
        "httpx.ConnectError",
        "httpx.ConnectTimeout",
        "httpx.PoolTimeout",
        "requests.exceptions.ConnectTimeout",
        "urllib3.exceptions.NewConnectionError",
        "aiohttp.client_exceptions.ClientConnectorError",
    }
)
# Statuses from 500 that say that the request was not processed, or never reached the service:
# not implemented, unavailable, and Cloudflare's (origin down, unreachable, TLS, DNS).
NOT_DONE = frozenset({501, 503, 521, 523, 525, 526, 530})
MAY_BE_DONE = frozenset({424, 499})
"""Statuses from 400 to 499 of an answer whose second half failed: behind it, or on the way back."""


class Headers(Mapping[str, str]):
    """The headers of an answer; names are case-insensitive."""

    __slots__ = ("_values",)

    def __init__(self, headers: Any = ()) -> None:
        items = headers.items() if hasattr(headers, "items") else headers
        self._values: dict[str, str] = {}
        for name, value in items:
            key, text = str(name).lower(), str(value)
            self._values[key] = f"{self._values[key]}, {text}" if key in self._values else text

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True)
class Answer:
    """What a service answered to one call.

    Attributes:
        status: The HTTP status; None if there is none.
        headers: The headers; names are case-insensitive.
        body: Parsed JSON, text or bytes; None if it is unknown, for example not read yet.
        exception: What the call raised; None if it returned.
        at: When the answer arrived, UTC.

    Example:
        >>> answer = Answer(429, {"Retry-After": "20"}, at=datetime(2026, 3, 1, tzinfo=UTC))
        >>> answer.headers["retry-after"]
        '20'
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=Headers)
    body: Any = None
    exception: Exception | None = None
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        if not isinstance(self.headers, Headers):
            object.__setattr__(self, "headers", Headers(self.headers))

    @overload
    @classmethod
    def of(cls, thing: Exception, at: datetime) -> "Answer": ...

    @overload
    @classmethod
    def of(cls, thing: object, at: datetime) -> "Answer | None": ...

    @classmethod
    def of(cls, thing: object, at: datetime) -> "Answer | None":
        """Return the answer that a call raised or returned.

        A body that was not read yet, as of a stream, is not read.

        Args:
            thing: An exception, a response of requests, httpx, aiohttp or urllib, a parsed JSON
                object, or an answer.
            at: When it arrived, UTC.

        Returns:
            None for a returned value that is not an answer.
        """
        if isinstance(thing, Answer):
            return thing
        if isinstance(thing, Exception):
            return _of_exception(thing, at)
        if type(thing) is dict:
            return cls(body=thing, at=at)
        return _of_response(thing, at) if is_answer_type(type(thing)) else None

    @property
    def json(self) -> Any:
        """The parsed body; None if there is none, or if it is not a JSON object or array."""
        return self._parsed if isinstance(self._parsed, dict | list) else None

    @cached_property
    def _parsed(self) -> Any:
        if not isinstance(self.body, str | bytes):
            return self.body
        if len(self.body) > MAX_READ:
            return None
        try:
            return json.loads(
                self.body.lstrip("\ufeff") if isinstance(self.body, str) else self.body
            )
        except RecursionError:
            return None
        except ValueError:
            return _NO_JSON

    @cached_property
    def outline(self) -> Any:
        """The outer part of the parsed body, which is searched for codes, words and times."""
        return None if self.json is None else outline(self.json)

    @cached_property
    def text(self) -> str:
        """The body as text; of one that is longer than `MAX_READ`, its beginning."""
        if self.body is None:
            return ""
        if isinstance(self.body, bytes):
            return self.body[:MAX_READ].decode("utf-8", "replace")
        if isinstance(self.body, str):
            return self.body[:MAX_READ]
        try:
            return json.dumps(self.body, default=str)
        except (RecursionError, TypeError, ValueError):  # nested too deeply, or within itself
            return json.dumps(outline(self.body), default=repr, skipkeys=True)

    @property
    def media_type(self) -> str:
        """The media type of the body, in lower case, without parameters; "" if unknown."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def is_cut_off(self) -> bool:
        """Whether the body claims to be JSON and is not."""
        media_type = self.media_type
        if media_type != "application/json" and not media_type.endswith("+json"):
            return False
        if not isinstance(self.body, str | bytes) or not self.body.strip():
            return False
        if len(self.body) > MAX_PARSED:
            end = self.body[-100:].strip()[-1:]
            return end not in (b"}", b"]", b'"', "}", "]", '"')
        return self._parsed is _NO_JSON


def outline(body: Any) -> Any:
    """Return a copy of the outer part of a parsed body.

    Of each array the first 20 items, six levels deep, 2000 values in all, the outermost first.

    Example:
        >>> outline({"error": {"code": "no_credits"}, "items": [0] * 1_000_000})["items"]
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    """
    root: list[Any] = []
    left: deque[tuple[int, Any, Any]] = deque([(0, [body], root)])
    count = 0
    while left:
        depth, value, copy = left.popleft()
        items = enumerate(value[:MAX_ITEMS]) if isinstance(value, list) else value.items()
        for key, inner in islice(items, MAX_VALUES - count):
            count += 1
            if is_huge(key):
                continue
            kept = None if is_huge(inner) else inner
            if isinstance(inner, dict | list):
                kept = {} if isinstance(inner, dict) else []
                if depth < MAX_LEVELS:
                    left.append((depth + 1, inner, kept))
            if isinstance(copy, list):
                copy.append(kept)
            else:
                copy[key] = kept
    return root[0]


def is_huge(value: Any) -> bool:
    """Return whether a value is an integer that Python may refuse to print."""
    return isinstance(value, int) and value.bit_length() > 1000


@lru_cache(maxsize=1024)
def is_answer_type(kind: type) -> bool:
    """Return whether values of a type can be answers. Cheap: remembered by type.

    Example:
        >>> is_answer_type(dict), is_answer_type(str)
        (True, False)
    """
    if kind is dict or issubclass(kind, Answer):
        return True
    return any(
        cls.__name__.endswith("Response") and any(hasattr(kind, a) for a in _RESPONSE_ATTRIBUTES)
        for cls in kind.__mro__
    )


def may_have_arrived(error: BaseException | None) -> bool:
    """Return whether a call that raised may have taken effect at the service.

    False if the service was never reached, or answered that it did nothing: most statuses from 400
    to 499, 501 and 503, and everything that is judged `throttled`, `denied`, `pending` or
    `rejected`. True otherwise: after a timeout, or a 200 that could not be read.

    Example:
        >>> may_have_arrived(TimeoutError()), may_have_arrived(ConnectionRefusedError())
        (True, False)
    """
    for cause in causes(error):
        if isinstance(cause, AnswerError) and cause.verdict.kind is not VerdictKind.FAILURE:
            return cause.response_status in (502, 504, 520, 522, 524)  # a gateway gave up waiting
        status = status_of(cause)
        if status is not None:
            done = status < 400 or status >= 500 or status in MAY_BE_DONE
            return done and status not in NOT_DONE
        if isinstance(cause, NOT_SENT) or class_names(cause) & NOT_SENT_NAMES:
            return False
    return True


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that it was raised from, or wraps as requests and urllib do."""
    for _ in range(MAX_CAUSES):
        if error is None:
            return
        yield error
        args = _attribute(error, "args")
        first = args[:1] if isinstance(args, tuple) else ()
        wrapped = (error.__cause__, _attribute(error, "reason"), *first)
        error = next((inner for inner in wrapped if isinstance(inner, BaseException)), None)


def class_names(error: BaseException) -> set[str]:
    """Return the qualified names of the classes of an exception."""
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__)
    return {name.replace("httpx2.", "httpx.", 1) for name in names}


def status_of(thing: object) -> int | None:
    """Return the HTTP status that an exception or response carries, or None.

    Knows those of httpx, requests, aiohttp, urllib and of most SDKs.
    """
    if isinstance(thing, AnswerError):
        return thing.response_status
    for holder in (thing, *_responses(thing)):
        if isinstance(holder, dict):
            metadata = holder.get("ResponseMetadata")  # botocore
            candidates = [metadata.get("HTTPStatusCode")] if isinstance(metadata, dict) else []
        else:
            names = ("status_code", "status", "http_status", "code")
            candidates = [_attribute(holder, name) for name in names]
        for status in candidates:
            if isinstance(status, int) and not isinstance(status, bool) and 100 <= status <= 599:
                return int(status)
    return None


def _responses(thing: object) -> Iterator[object]:
    for name in ("response", "resp"):
        response = _attribute(thing, name)
        if response is not None:
            yield response


def _of_exception(error: Exception, at: datetime) -> Answer:
    for cause in causes(error):
        if isinstance(cause, AnswerError):
            response = None if cause.response is None else Answer.of(cause.response, at)
            if response is None:
                return Answer(exception=cause, at=at)
            return Answer(response.status, response.headers, response.body, cause, at)
        status = status_of(cause)
        if status is not None and isinstance(cause, Exception):
            holders = [*_responses(cause), cause]
            body = _body(holders)
            return Answer(status, _headers(holders), body or _code(cause) or body, error, at)
    # An SDK's error event within a stream has a code, and no status.
    return Answer(body=_code(error), exception=error, at=at)


def _code(error: BaseException) -> dict[str, Any] | None:
    """Return the machine code that an exception of an SDK carries without a body."""
    code, kind = _attribute(error, "code"), _attribute(error, "type")
    fields = {"code": code, "type": kind}
    return {name: value for name, value in fields.items() if isinstance(value, str)} or None


def _of_response(response: object, at: datetime) -> Answer | None:
    status = status_of(response)
    if status is None or _attribute(response, "headers") is None:
        return None
    return Answer(status, _headers([response]), _body([response]), None, at)


def _headers(holders: list[object]) -> Headers:
    for holder in holders:
        if isinstance(holder, dict):
            metadata = holder.get("ResponseMetadata")
            headers = metadata.get("HTTPHeaders") if isinstance(metadata, dict) else holder
        else:
            headers = _attribute(holder, "headers")
        if headers is not None and hasattr(headers, "items") and len(headers):
            return Headers(headers)
    return Headers()


def _body(holders: list[object]) -> Any:
    """Return the first body that is there; no property is touched that would read it."""
    empty = None
    for holder in holders:
        if isinstance(holder, dict) and "Error" in holder:
            return holder
        state = _attribute(holder, "__dict__") or {}
        for name in _BODIES:
            value = state.get(name)
            if isinstance(value, bytes | bytearray | str | dict | list):
                if value:
                    return bytes(value) if isinstance(value, bytearray) else value
                empty = value
    return empty


def _attribute(thing: object, name: str) -> Any:
    try:
        return getattr(thing, name, None)
    except Exception:  # noqa: BLE001 -- a property of the library's own, which may do anything
        return None


_HTML_HEADING = re.compile(r"<(title|h1)[^<>]{0,200}>(.{0,300}?)</\1", re.IGNORECASE | re.DOTALL)


def html_headings(text: str) -> str:
    """Return the title and first headings of an HTML page."""
    return " ".join(heading[1].strip() for heading in _HTML_HEADING.findall(text[:20_000]))
