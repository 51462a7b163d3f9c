"""When a service may be called again, by the headers and the body of its answer."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from dagster_tidegate.breaker.answers import Answer
from dagster_tidegate.breaker.quotas import quotas_of
from dagster_tidegate.breaker.time_texts import seconds_of, service_time

_RETRY_AFTER = ("retry-after", "x-retry-after", "x-ratelimit-retry-after")
_RETRY_AFTER_MS = ("retry-after-ms", "x-ms-retry-after-ms", "x-retry-after-ms")
_BODY_KEYS = frozenset(
    [
        "retryafter",
        "retryafterseconds",
        "retryafters",
        "retryaftersec",
        "retryafterms",
        "retryaftermilliseconds",
        "retryin",
        "retryinseconds",
        "retrydelay",
        "retryat",
        "resetsat",
        "resetat",
        "resettime",
        "resets",
        "resetsin",
        "resetsinseconds",
        "resetinseconds",
        "resetin",
        "ratelimitreset",
        "xratelimitreset",
        "waitseconds",
        "nextavailableat",
        "availableat",
        "cooldownseconds",
        "tryagainin",
        "tryagainafter",
        "tryagainat",
        "wait",
        "waittime",
        "waitfor",
        "secondsuntilreset",
        "resetafter",
        "resetafterseconds",
        "estimatedtime",
    ]
)


@dataclass(frozen=True)
class Times:
    """When a service may be called again.

    Attributes:
        retry_at: What it asks for (`Retry-After` and its kin, and fields of the body).
        reset_at: When the last quota of those that are used up is full again.
        used_up: A quota has nothing left.
    """

    retry_at: datetime | None
    reset_at: datetime | None
    used_up: bool

    def until(self, *, retry_after_first: bool) -> datetime | None:
        """Return the latest time that applies.

        Args:
            retry_after_first: Whether `Retry-After` alone decides where there is one.
        """
        if retry_after_first and self.retry_at is not None:
            return self.retry_at
        times = [at for at in (self.retry_at, self.reset_at) if at is not None]
        return max(times, default=None)


def times_of(answer: Answer) -> Times:
    """Return when the service may be called again, by the headers and the JSON body."""
    retry_at = _latest(answer, _retry_after(answer))
    quotas = [(quota.left, quota.reset_s) for quota in quotas_of(answer)]
    spent = [reset for left, reset in quotas if left is not None and left <= 0]
    reset_at = _latest(answer, [reset for reset in spent if reset is not None])
    if reset_at is None and retry_at is None:
        # Resets without a number of calls that are left.
        reset_at = _latest(answer, [reset for left, reset in quotas if left is None and reset])
    return Times(retry_at, reset_at, bool(spent))


def capped(until: datetime | None, at: datetime, cap_s: float) -> datetime | None:
    """Return `until`, at most `cap_s` seconds after `at`; None if it is not after `at`."""
    if until is None or until <= at:
        return None
    return min(until, at + timedelta(seconds=cap_s))


def _retry_after(answer: Answer) -> Iterator[float | None]:
    at = service_time(answer)
    for name in _RETRY_AFTER:
        yield seconds_of(answer.headers.get(name, ""), at)
    for name in _RETRY_AFTER_MS:
        yield seconds_of(answer.headers.get(name, ""), at, unit_s=0.001)
    for key, value in _fields(answer.outline):
        in_ms = key.endswith(("ms", "milliseconds"))
        yield seconds_of(value, at, unit_s=0.001 if in_ms else 1.0)


def _fields(node: Any, depth: int = 0) -> Iterator[tuple[str, object]]:
    """Yield the fields of a body that name a time."""
    if depth > 4:
        return
    if isinstance(node, list):
        for item in node:
            yield from _fields(item, depth + 1)
    elif isinstance(node, dict):
        for key, value in node.items():
            name = re.sub(r"[^a-z]", "", str(key).lower())
            if name in _BODY_KEYS and isinstance(value, int | float | str):
                if not isinstance(value, bool):
                    yield name, value
            elif isinstance(value, dict | list):
                yield from _fields(value, depth + 1)


def _latest(answer: Answer, seconds: Any) -> datetime | None:
    latest = max((value for value in seconds if value is not None), default=None)
    return None if latest is None else answer.at + timedelta(seconds=latest)
