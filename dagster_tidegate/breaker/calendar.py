"""Time zones, and the periods of their calendars: hours, days and months."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

PERIODS = ("hour", "day", "month")


def check_timezone(name: str) -> str:
    """Return the name of a time zone.

    Raises:
        ValueError: If there is none of this name.
    """
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is not a time zone: use a name such as UTC") from error
    return name


def period(per: str, timezone: str, now: float) -> tuple[float, float]:
    """Return the beginning and the end of the period that a time is in.

    Times are seconds since 1970. A day of 23 or 25 hours is one day.

    Args:
        per: One of `PERIODS`.
    """
    zone = ZoneInfo(timezone)
    at = datetime.fromtimestamp(now, UTC)
    local = at.astimezone(zone)
    if per == "hour":
        # In time zones whose offset is no whole hour, too; none changes it by part of one
        # and in the middle of an hour.
        start = at - timedelta(
            minutes=local.minute, seconds=local.second, microseconds=local.microsecond
        )
        return start.timestamp(), (start + timedelta(hours=1)).timestamp()
    first = local.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None, fold=0)
    if per == "month":
        first = first.replace(day=1)
        after = (first + timedelta(days=32)).replace(day=1)
    else:
        after = first + timedelta(days=1)
    begins, ends = (each.replace(tzinfo=zone).timestamp() for each in (first, after))
    return min(begins, now), max(ends, now + 1)
