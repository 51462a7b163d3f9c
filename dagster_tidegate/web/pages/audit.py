"""The page of the audit log."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from dagster_tidegate.store import history
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.history import Event

PAGE = 50
SINCE = (
    ("", "any time"),
    ("3600", "the last hour"),
    ("86400", "the last day"),
    ("604800", "the last week"),
)


@dataclass(frozen=True)
class History:
    """A page of events, the newest first; `next_before` is where the next page starts."""

    rows: Sequence[Event]
    next_before: int | None


def history_page(
    conn: Connection,
    now: datetime,
    *,
    name: str = "",
    kind: str = "",
    actor: str = "",
    within_s: int | None = None,
    before: int | None = None,
) -> History:
    """Return a page of events.

    Args:
        within_s: Only those of the last so many seconds.
    """
    events = history.read(
        conn,
        name=name or None,
        kinds=[kind] if kind else (),
        actor=actor or None,
        since=None if within_s is None else now - timedelta(seconds=within_s),
        before=before,
        limit=PAGE + 1,
    )[::-1]
    return History(events[:PAGE], events[PAGE - 1].id if len(events) > PAGE else None)


def differences(event: Event) -> list[tuple[str, Any, Any]]:
    """Return what an event changed: the name, and the values before and after."""
    before, after = event.before or {}, event.after or {}
    names = dict.fromkeys([*before, *after])
    return [
        (name, before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    ]
