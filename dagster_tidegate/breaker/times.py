"""When a service may be called again, by the headers and the body of its answer."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from math import ceil
from typing import Any

from dagster_tidegate.breaker.answers import Answer

log = logging.getLogger(__name__)

ABSURD_S = 30 * 86400.0
MAX_NUMBER = 1e19
"""No service counts in less than nanoseconds since 1970."""
MAX_TEXT = 200
"""So much of a value is read."""
CLOCKS_DIFFER_S = 60.0
_EPOCH_FROM = 1_000_000_000  # a larger number is a point in time: seconds since 1970
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
_QUOTA = re.compile(r"rate-?limit|quota|requests-left|calls-(left|remaining)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(
    r"(\d+(?:\.\d+)?)\s*(ms|millisec\w*|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)"
    r"(?![a-z])",
    re.IGNORECASE,
)
_DURATION = rf"(?:{_PART.pattern}[\s,]*(?:and\s+)?)+"
_CLOCK = r"(?:(?:\d+\.)?\d{1,2}:\d{2}:\d{2})"
_DATE = (
    r"(?:\d{4}-\d{2}-\d{2}(?:(?:T|\s+at\s+|\s+)\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?)?"
    r"(?:\s*(?:Z|UTC|GMT|[+-]\d{2}:?\d{2}))?)"
)
_PROSE = re.compile(
    rf"(?:again|retry|replenish\w*|resets?|available|wait|access|back)\b[^.;\d]{{0,24}}"
    rf"(?P<time>{_DATE}|{_CLOCK}|{_DURATION})",
    re.IGNORECASE,
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
    quotas = list(_quotas(answer))
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


def time_in_prose(text: str, at: datetime) -> datetime | None:
    """Return the time that a message names: "try again in 20s", "access on 2026-12-01"."""
    match = _PROSE.search(text[:4000])
    if match is None:
        return None
    seconds = _seconds(match["time"].strip(" ,"), at)
    return None if seconds is None or seconds > ABSURD_S else at + timedelta(seconds=seconds)


def seconds_of(value: object, at: datetime, *, unit_s: float = 1.0) -> float | None:
    """Parse a time: a number of seconds, a duration ("6m0s"), a date, or seconds since 1970.

    Args:
        value: A number or a text.
        at: The time, UTC, that dates are compared with.
        unit_s: What a bare number counts, in seconds.

    Returns:
        Seconds from `at`, rounded up, 0 for a time in the past; None for an empty value, and for
        what is no time or more than 30 days away, which is logged once.

    Example:
        >>> seconds_of("292.05", datetime.now(UTC))
        293.0
    """
    try:
        text = str(value)[:MAX_TEXT].strip().strip('"')
    except ValueError:  # Python refuses to print integers of thousands of digits
        text = "a huge number"
    if re.fullmatch(r"[\d.]+(\s*,\s*[\d.]+)+", text):  # sent twice: by the service and its gateway
        text = max(text.split(","), key=lambda number: len(number.strip())).strip()
    if not text:
        return None
    seconds = _seconds(text, at, unit_s)
    if seconds is None or seconds > ABSURD_S:
        _refuse(text[:80])
        return None
    return seconds


def _seconds(text: str, at: datetime, unit_s: float = 1.0) -> float | None:
    if text.isascii() and re.fullmatch(r"\d+(\.\d*)?|\.\d+", text):
        number = float(text)
        if number > MAX_NUMBER:
            return None
        if number * unit_s > ABSURD_S and number >= _EPOCH_FROM:
            while number > 100 * _EPOCH_FROM:  # milliseconds, or microseconds
                number /= 1000
            return max(0.0, number - at.timestamp())
        return float(ceil(number * unit_s))
    if re.fullmatch(_CLOCK, text):
        days, _, clock = text.rpartition(".")
        hours, minutes, seconds = map(int, clock.split(":"))
        return int(days or 0) * 86400.0 + hours * 3600 + minutes * 60 + seconds
    iso = re.fullmatch(r"P(?:(\d+)D)?(?:T(?=\d)((?:\d+H)?(?:\d+M)?(?:\d+(?:\.\d+)?S)?))?", text)
    if iso is not None and (iso[1] or iso[2]):  # ISO 8601: "PT1M30S"
        text = f"{iso[1] or 0}d {iso[2] or ''}".strip()
    if re.fullmatch(_DURATION, text, re.IGNORECASE):
        parts = _PART.findall(text)
        units = [
            ("ms" if unit.lower().startswith(("ms", "milli")) else unit[0].lower())
            for _, unit in parts
        ]
        amounts = zip(parts, units, strict=True)
        return float(ceil(sum(float(amount) * _UNITS[unit] for (amount, _), unit in amounts)))
    date = _date(text)
    return None if date is None else max(0.0, (date - at).total_seconds())


def _date(text: str) -> datetime | None:
    iso = re.sub(r"\s+AT\s+", "T", text.upper())
    iso = re.sub(r"\s*(?:UTC|GMT)$", "+00:00", iso)
    for parse, form in ((datetime.fromisoformat, iso), (parsedate_to_datetime, text)):
        try:
            date = parse(form)
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError, IndexError):
            continue
    return None


def _retry_after(answer: Answer) -> Iterator[float | None]:
    at = _service_time(answer)
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


def _quotas(answer: Answer) -> Iterator[tuple[float | None, float | None]]:
    """Yield what each quota has left, and the seconds to its reset."""
    at = _service_time(answer)
    for name, value in answer.headers.items():
        if _QUOTA.search(name) is None:
            continue
        if "=" in value and "policy" not in name:
            yield from _combined(value, at)
        elif "reset" in name:
            twins = [name.replace("reset", word) for word in ("remaining", "left")]
            twins += [twin.removesuffix("-after").removesuffix("son") for twin in twins]
            left = next((answer.headers[twin] for twin in twins if twin in answer.headers), "")
            in_ms = name.endswith(("-ms", "-milliseconds"))
            yield _number(left), seconds_of(value, at, unit_s=0.001 if in_ms else 1.0)
        elif "remaining" in name or name.endswith("-left"):
            yield _number(value), None


def _combined(value: str, at: datetime) -> Iterator[tuple[float | None, float | None]]:
    """Parse the `RateLimit` field of the IETF drafts, in the old form and the new one."""
    # "limit=10, remaining=0, reset=5" is one quota; '"minute";r=0;t=45, "day";r=9;t=60' are two.
    quotas = re.split(r',\s*(?=")', value) if '"' in value else [value]
    for quota in quotas:
        fields = {
            name.lower(): number
            for name, number in re.findall(r"([a-z_]+)\s*=\s*\"?([\d.]+)", quota, re.IGNORECASE)
        }
        left = fields.get("r", fields.get("remaining", ""))
        reset = fields.get("t", fields.get("reset", fields.get("resets", "")))
        if left or reset:
            yield _number(left), seconds_of(reset, at)


def _number(text: str) -> float | None:
    """Return a number; None for an empty value, which means no limit."""
    try:
        return float(text.partition(",")[0].partition(";")[0])
    except ValueError:
        return None


def _service_time(answer: Answer) -> datetime:
    """Return the time of the answer by the service's own clock, if that differs much."""
    date = _date(answer.headers.get("date", "")) if answer.headers.get("date") else None
    if date is None or abs((date - answer.at).total_seconds()) < CLOCKS_DIFFER_S:
        return answer.at
    return date


def _latest(answer: Answer, seconds: Any) -> datetime | None:
    latest = max((value for value in seconds if value is not None), default=None)
    return None if latest is None else answer.at + timedelta(seconds=latest)


@lru_cache(maxsize=1024)
def _refuse(value: str) -> None:
    """Log a value that is refused, once."""
    log.warning("ignoring %r: neither seconds nor a date within 30 days", value)
