"""Sends the alerts in the outbox, with a rate limit and retries."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.alerts.targets import TIMEOUT_S, Targets
from dagster_tidegate.alerts.text import Text, digest
from dagster_tidegate.store import alerts
from dagster_tidegate.store.alerts import Alert
from dagster_tidegate.store.database import Store

BATCH_SIZE = 200
MAX_TRIES = 16
FIRST_WAIT_S = 10.0
MAX_WAIT_S = 900.0
CLAIM_LASTS = timedelta(seconds=3 * TIMEOUT_S)
"""After this, a sender that has not recorded a result is presumed dead, and another one sends."""
MINUTE_S = 60.0


@dataclass(frozen=True)
class Message:
    """One message about one or several alerts.

    Attributes:
        kind: Its kind; a newer version may have raised one that this version does not know.
    """

    alerts: Sequence[Alert]
    text: Text
    kind: str


def messages(due: Sequence[Alert], limit: int) -> Sequence[Message]:
    """Return one message per alert; if these exceed the limit, the last is about several alerts."""
    result: list[Message] = []
    # Alerts share a message only if the same targets already have them.
    groups: dict[tuple[str, ...], list[Alert]] = {}
    for alert in due:
        groups.setdefault(tuple(alert.delivered_to or ()), []).append(alert)
    for group in groups.values():
        left = limit - len(result)
        if left < 1:
            break
        singles = group if len(group) <= left else group[: left - 1]
        rest = group[len(singles) :]
        result += [Message([each], Text(each.title, each.body), each.kind) for each in singles]
        if rest:
            text = digest([alert.title for alert in rest]).plain()
            result.append(Message(rest, text, AlertKind.SEVERAL))
    return result


def wait_after(tries: int) -> timedelta | None:
    """Return how long to wait after so many tries; None means to give up.

    Example:
        >>> [wait_after(tries).total_seconds() for tries in (1, 2, 3, 12)]
        [10.0, 20.0, 40.0, 900.0]
    """
    if tries >= MAX_TRIES:
        return None
    return timedelta(seconds=min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** (tries - 1)))


class Sender:
    """Sends alerts, at most `per_minute` messages a minute."""

    def __init__(self, store: Store, targets: Targets, per_minute: int) -> None:
        self._store, self._targets, self._per_minute = store, targets, per_minute
        self._sent_ticks: deque[float] = deque()

    def send(self, stop: threading.Event) -> None:
        """Send the alerts that are due, as far as the rate limit allows.

        Args:
            stop: No further message is sent once it is set.

        Raises:
            sqlalchemy.exc.OperationalError: If the store can't be reached.
        """
        with self._store.read() as conn:
            due = alerts.due(conn, self._store.now(conn), limit=BATCH_SIZE)
        for message in messages(due, self._allowance()):
            if stop.is_set():
                return
            self._send(message)

    def _send(self, message: Message) -> None:
        with self._store.begin() as conn:
            until = self._store.now(conn) + CLAIM_LASTS
            claimed = [alert for alert in message.alerts if alerts.claim(conn, alert, until)]
        if not claimed:
            return
        if len(claimed) < len(message.alerts):
            [message] = messages(claimed, 1)
        self._sent_ticks.append(time.monotonic())
        delivered = frozenset(claimed[0].delivered_to or ())
        errors = self._targets.send(
            message.text, message.kind, to=sorted(self._targets.names - delivered)
        )
        delivered |= {name for name, error in errors.items() if error is None}
        failures = [f"{name}: {error}" for name, error in errors.items() if error is not None]
        with self._store.begin() as conn:
            now = self._store.now(conn)
            for alert in claimed:
                wait = wait_after(alert.tries + 1) if failures else None
                alerts.finish(
                    conn,
                    alert,
                    until,
                    delivered_to=delivered,
                    sent_at=None if failures else now,
                    next_try_at=None if wait is None else now + wait,
                    error="; ".join(failures) or None,
                )

    def _allowance(self) -> int:
        """How many messages the rate limit allows now."""
        while self._sent_ticks and self._sent_ticks[0] <= time.monotonic() - MINUTE_S:
            self._sent_ticks.popleft()
        return self._per_minute - len(self._sent_ticks)
