"""Sends what is in the outbox: each alert once, within bounds, and with patience."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from dagster_tidegate.alerts import text
from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.alerts.targets import MAX_TRY_S, Targets
from dagster_tidegate.alerts.text import Text
from dagster_tidegate.store import alerts
from dagster_tidegate.store.alerts import Alert
from dagster_tidegate.store.database import Store

MAX_AT_ONCE = 200
MAX_TRIES = 16
FIRST_WAIT_S = 10.0
MAX_WAIT_S = 900.0
CLAIMED_FOR = timedelta(seconds=3 * MAX_TRY_S)
"""A sender that has not said what became of an alert for so long has died; another sends it."""
MINUTE_S = 60.0


@dataclass(frozen=True)
class Message:
    """What is sent at once: one alert, or many.

    Attributes:
        alerts: The alerts.
        text: What it says.
        kind: What it tells of; a newer version may have raised one that this one has no word for.
    """

    alerts: Sequence[Alert]
    text: Text
    kind: str


def messages(due: Sequence[Alert], room: int) -> Sequence[Message]:
    """Return the messages that tell of alerts: one each, or where that is too many, one of several.

    Args:
        due: The alerts, the oldest first.
        room: How many messages may be sent now.
    """
    found: list[Message] = []
    # Those that some targets have already go to the others alone.
    groups: dict[tuple[str, ...], list[Alert]] = {}
    for alert in due:
        groups.setdefault(tuple(alert.delivered_to or ()), []).append(alert)
    for group in groups.values():
        left = room - len(found)
        if left < 1:
            break
        fits = len(group) <= left
        found += [_single(alert) for alert in (group if fits else group[: left - 1])]
        if not fits:
            rest = group[left - 1 :]
            said = text.several([alert.title for alert in rest]).plain()
            found.append(Message(rest, said, AlertKind.SEVERAL))
    return found


def wait_after(tries: int) -> timedelta | None:
    """Return how long to wait after so many tries; None: it is given up.

    Example:
        >>> [wait_after(tries).total_seconds() for tries in (1, 2, 3, 12)]
        [10.0, 20.0, 40.0, 900.0]
    """
    if tries >= MAX_TRIES:
        return None
    return timedelta(seconds=min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** (tries - 1)))


class Sender:
    """Sends alerts.

    Args:
        store: Has the outbox.
        targets: Where to.
        per_minute: How many messages a minute at most.
    """

    def __init__(self, store: Store, targets: Targets, per_minute: int) -> None:
        self._store, self._targets, self._per_minute = store, targets, per_minute
        self._sent_ticks: deque[float] = deque()

    def send(self, stop: threading.Event) -> None:
        """Send what is due, as far as there is room.

        Args:
            stop: Set: no further message is begun.

        Raises:
            sqlalchemy.exc.OperationalError: If the store can't be reached.
        """
        with self._store.read() as conn:
            due = alerts.due(conn, self._store.now(conn), limit=MAX_AT_ONCE)
        for message in messages(due, self._room()):
            if stop.is_set():
                return
            self._send(message)

    def _send(self, message: Message) -> None:
        with self._store.begin() as conn:
            until = self._store.now(conn) + CLAIMED_FOR
            mine = [alert for alert in message.alerts if alerts.claim(conn, alert, until)]
        if not mine:
            return
        if len(mine) < len(message.alerts):
            [message] = messages(mine, 1)
        self._sent_ticks.append(time.monotonic())
        had = frozenset(mine[0].delivered_to or ())
        errors = self._targets.send(
            message.text, message.kind, to=sorted(self._targets.names - had)
        )
        have = had | {name for name, error in errors.items() if error is None}
        failed = [f"{name}: {error}" for name, error in errors.items() if error is not None]
        with self._store.begin() as conn:
            now = self._store.now(conn)
            for alert in mine:
                wait = wait_after(alert.tries + 1) if failed else None
                alerts.settle(
                    conn,
                    alert,
                    until,
                    delivered_to=have,
                    sent_at=None if failed else now,
                    next_try_at=None if wait is None else now + wait,
                    error="; ".join(failed) or None,
                )

    def _room(self) -> int:
        while self._sent_ticks and self._sent_ticks[0] <= time.monotonic() - MINUTE_S:
            self._sent_ticks.popleft()
        return self._per_minute - len(self._sent_ticks)


def _single(alert: Alert) -> Message:
    return Message([alert], Text(alert.title, alert.body), alert.kind)
