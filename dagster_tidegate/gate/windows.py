"""Holds services in their maintenance windows."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from dagster_tidegate.breaker.calendar import check_timezone
from dagster_tidegate.breaker.policy import MAX_DURATION_S
from dagster_tidegate.dagster_api import cron
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.store import windows
from dagster_tidegate.store.windows import PlannedWindow
from dagster_tidegate.text import utc


class Occurrence(NamedTuple):
    """One time of a window, UTC."""

    starts_at: datetime
    ends_at: datetime


def spans(
    expression: str, timezone: str, length: timedelta, now: datetime
) -> tuple[Occurrence | None, Occurrence]:
    """Return the time of a window that `now` is in, and the next one that begins later. Pure.

    A window of two hours lasts two hours, also where summer time begins or ends in it. Of several
    times that `now` is in, the latest counts.

    Args:
        expression: When it begins, as a cron expression.
    """
    current = None
    for at in cron.times(expression, timezone, now - length):
        span = Occurrence(at, at + length)
        if at > now:
            return current, span
        if now < span.ends_at:
            current = span
    raise ValueError(f"{expression!r} has no time after {now}")


def hold_in_windows(gate: Gate, stored: Sequence[PlannedWindow], now: datetime) -> list[str]:
    """Place the holds of the windows that have begun, and store when the others begin.

    Args:
        stored: The windows of all code locations, as the store has them.

    Returns:
        What was done, for people.
    """
    if not gate.enabled:
        return []
    declared = [
        (gate.location, service, window.cron, window.timezone, window.duration_s, window.reason)
        for service, policy in gate.policies.items()
        for window in policy.windows
    ]
    locations = (gate.location, windows.BY_HAND)
    if {(*w.key, w.reason) for w in stored if w.location == gate.location} != set(declared):
        with gate.store.begin() as conn:
            windows.save(conn, gate.location, [planned(now, *each) for each in declared])
            stored = windows.read(conn, locations)
    done = []
    for window in stored:
        if window.starts_at > now or window.location not in locations:
            continue
        length = timedelta(seconds=window.duration_s)
        current, following = spans(window.cron, window.timezone, length, now)
        begun = window if current is None else windows.at(window, *current)
        with gate.store.begin() as conn:
            placed = windows.begin(conn, now, begun, windows.at(window, *following))
        if placed:
            until = utc(begun.ends_at)
            done.append(f"maintenance of {window.service} until {until}: {window.reason}")
    return done


def planned(
    now: datetime,
    location: str,
    service: str,
    expression: str,
    timezone: str,
    duration_s: int,
    reason: str,
) -> PlannedWindow:
    """Return a window at the time that it is in, or at its next time. Pure.

    Args:
        expression: When it begins, as a cron expression.

    Raises:
        ValueError: If it has no time or lasts too long, or the time zone does not exist.
    """
    if duration_s > MAX_DURATION_S:
        raise ValueError(f"a window lasts at most {MAX_DURATION_S // 86400} days")
    cron.check_cron(expression)
    check_timezone(timezone)
    current, following = spans(expression, timezone, timedelta(seconds=duration_s), now)
    span = current or following
    return PlannedWindow(location, service, expression, timezone, duration_s, reason, *span)
