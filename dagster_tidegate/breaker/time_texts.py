"""Times in the headers and messages of a service: durations, dates, and numbers of seconds."""

import logging
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from math import ceil, isfinite

from dagster_tidegate.breaker.answers import Answer

log = logging.getLogger(__name__)

ABSURD_S = 30 * 86400.0
MAX_NUMBER = 1e19
"""No service counts in less than nanoseconds since 1970."""
MAX_TEXT = 200
"""So much of a value is read."""
CLOCKS_DIFFER_S = 60.0
_EPOCH_FROM = 1_000_000_000  # a larger number is a point in time: seconds since 1970
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
        return float(days or 0) * 86400.0 + hours * 3600 + minutes * 60 + seconds
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
        total = sum(float(amount) * _UNITS[unit] for (amount, _), unit in amounts)
        return float(ceil(total)) if isfinite(total) else None
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


def service_time(answer: Answer) -> datetime:
    """Return the time of the answer by the service's own clock, if that differs much."""
    date = _date(answer.headers.get("date", "")[:MAX_TEXT])
    if date is None or abs((date - answer.at).total_seconds()) < CLOCKS_DIFFER_S:
        return answer.at
    return date


@lru_cache(maxsize=1024)
def _refuse(value: str) -> None:
    """Log a value that is refused, once."""
    log.warning("ignoring %r: neither seconds nor a date within 30 days", value)
