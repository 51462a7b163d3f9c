"""Holds services in their maintenance windows."""

from datetime import datetime, timedelta
from typing import NamedTuple

from dagster_tidegate.dagster_api import cron
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.store import windows
from dagster_tidegate.store.windows import PlannedWindow
from dagster_tidegate.text import utc


class Span(NamedTuple):
    """One time of a window, UTC."""

    starts_at: datetime
    ends_at: datetime


def spans(
    expression: str, timezone: str, length: timedelta, now: datetime
) -> tuple[Span | None, Span]:
    """Return the time of a window that `now` is in, and the next one that begins later. Pure.

    A window of two hours lasts two hours, also where summer time begins or ends in it. Of several
    times that `now` is in, the latest counts.

    Args:
        expression: When it begins, as a cron expression.
    """
    current = None
    for at in cron.times(expression, timezone, now - length):
        span = Span(at, at + length)
        if at > now:
            return current, span
        if now < span.ends_at:
            current = span
    raise ValueError(f"{expression!r} has no time after {now}")


def hold_in_windows(gate: Gate, *, new_code: bool) -> list[str]:
    """Place the holds of the windows that have begun, and store when the others begin.

    Args:
        new_code: Whether the windows may have gone from the code.

    Returns:
        What was done, for people.
    """
    declared = [
        (gate.location, service, window.cron, window.timezone, window.duration_s, window.reason)
        for service, policy in gate.policies.items()
        for window in policy.windows
    ]
    if not gate.enabled or not (declared or new_code):
        return []
    with gate.store.read() as conn:
        now = gate.store.now(conn)
        stored = windows.read(conn, gate.location)
    if {(*window.key, window.reason) for window in stored} != set(declared):
        with gate.store.begin() as conn:
            windows.save(conn, gate.location, [_planned(now, *each) for each in declared])
            stored = windows.read(conn, gate.location)
    done = []
    for window in stored:
        if window.starts_at > now:
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


def _planned(
    now: datetime,
    location: str,
    service: str,
    expression: str,
    timezone: str,
    duration_s: int,
    reason: str,
) -> PlannedWindow:
    current, following = spans(expression, timezone, timedelta(seconds=duration_s), now)
    span = current or following
    return PlannedWindow(location, service, expression, timezone, duration_s, reason, *span)
