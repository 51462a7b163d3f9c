"""Cron expressions, with Dagster's own reading of them, so that windows and schedules agree."""

from collections.abc import Iterator
from datetime import UTC, datetime

from dagster._utils.schedules import cron_string_iterator, is_valid_cron_string


def check_cron(cron: str) -> str:
    """Return a cron expression that has times.

    Raises:
        ValueError: If it has none.

    Example:
        >>> check_cron("0 25 * * *")
        Traceback (most recent call last):
        ...
        ValueError: '0 25 * * *' is not a cron expression: use five fields, such as 0 2 * * SUN
    """
    try:
        if is_valid_cron_string(cron):
            next(times(cron, "UTC", datetime(2000, 1, 1, tzinfo=UTC)))
            return cron
    except (ValueError, StopIteration):  # such as 30 February
        pass
    raise ValueError(f"{cron!r} is not a cron expression: use five fields, such as 0 2 * * SUN")


def times(cron: str, timezone: str, since: datetime) -> Iterator[datetime]:
    """Yield the times of a cron expression from `since` on (UTC), each later than the one before.

    A local time that a change to summer time skips is the end of the gap; one that a change to
    winter time repeats is its second occurrence.
    """
    last = None
    for at in cron_string_iterator(since.timestamp(), cron, timezone):
        time = at.astimezone(UTC)
        if time >= since and (last is None or time > last):
            yield time
            last = time
