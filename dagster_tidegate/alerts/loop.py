"""Looks at the store and tells people, until it is stopped. It needs neither Dagster nor a gate."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import exc

from dagster_tidegate.alerts import situation as reading
from dagster_tidegate.alerts import text
from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.alerts.rules import Verdict, hold_name, judge
from dagster_tidegate.alerts.sender import Sender, wait_after
from dagster_tidegate.alerts.situation import Seen, Troubles
from dagster_tidegate.alerts.targets import Targets
from dagster_tidegate.control import situation
from dagster_tidegate.holds import HoldSource
from dagster_tidegate.settings import AlertSettings, GeneralSettings, load
from dagster_tidegate.store import alerts
from dagster_tidegate.store.alerts import Cursor
from dagster_tidegate.store.database import Store, why_unreachable
from dagster_tidegate.store.event_reader import EventReader, newest

LOOK_EVERY_S = 5.0
TROUBLE_EVERY_S = 60.0
CURSOR_EVERY = timedelta(seconds=30)
"""The cursor is written so often though nothing happened, as a sign of life."""
MAX_EVENTS = 500
LOST_AFTER_S = 30.0
"""A store that can't be reached for so long is told of."""
NO_STORE = (exc.DBAPIError, exc.TimeoutError)
log = logging.getLogger(__name__)


def run(
    store: Store,
    settings: AlertSettings,
    stop: threading.Event,
    *,
    look_every_s: float = LOOK_EVERY_S,
) -> None:
    """Tell people what happens, until `stop` is set; where there is no target, return at once.

    Several may run at once: each alert is raised and sent by one of them.

    Args:
        store: The store.
        settings: Where alerts are sent to, and what is told.
        stop: Ends it, when the message in hand is sent.
        look_every_s: How often it looks, in seconds.

    Raises:
        SettingsError: If a URL can't be used.
    """
    targets = Targets(settings.urls)
    if not targets.names:
        log.info("TIDEGATE_ALERT_URLS names no target: nobody is told of anything")
        return
    watch = Watch(store, settings, public_url=load(GeneralSettings).public_url)
    sender = Sender(store, targets, settings.per_minute)
    outage = Outage(targets, timedelta(seconds=settings.repeat_after_s))
    mishaps = _Mishaps()
    log.info("alerts are sent to %s", ", ".join(sorted(targets.names)))
    more = True
    while not stop.wait(0 if more else look_every_s):
        more = False
        try:
            try:
                more = watch.look()
            except NO_STORE:
                raise
            except Exception as error:  # noqa: BLE001 -- what was raised before goes out
                mishaps.note("a look for what there is to tell", error)
            sender.send(stop)
            outage.over(store)
        except NO_STORE as error:
            outage.lost(error)
        except Exception as error:  # noqa: BLE001 -- without this thread nobody is told
            mishaps.note("sending alerts", error)


class _Mishaps:
    """Logs errors that nobody thought of, and not at each turn, since they may come at each."""

    def __init__(self) -> None:
        self._logged_ticks: dict[str, float] = {}

    def note(self, what: str, error: Exception) -> None:
        ticks = time.monotonic()
        if ticks - self._logged_ticks.get(what, float("-inf")) >= TROUBLE_EVERY_S:
            self._logged_ticks[what] = ticks
            log.error("%s failed; it is tried again", what, exc_info=error)


class Watch:
    """Looks at the store, and raises alerts.

    Args:
        store: The store.
        settings: What is told.
        public_url: Where people reach the pages, or None.
    """

    def __init__(
        self, store: Store, settings: AlertSettings, *, public_url: str | None = None
    ) -> None:
        self._store, self._settings, self._public_url = store, settings, public_url
        self._reader = EventReader()
        self._troubles = Troubles()
        self._trouble_due = 0.0

    def look(self) -> bool:
        """Raise what there is to tell, and return whether there are more events to look at.

        Raises:
            sqlalchemy.exc.OperationalError: If the store can't be reached.
        """
        with self._store.read() as conn:
            now = self._store.now(conn)
            cursor = alerts.read_cursor(conn)
            # What happened before anybody looked for the first time is not told.
            after = newest(conn) if cursor is None else cursor.event
            # Before the situation, which is then as new as the events at least.
            events = self._reader.read(conn, after=after, limit=MAX_EVENTS)
            seen = Seen(
                situation=situation.read(conn, now),
                events=events,
                alerts=reading.recent_alerts(conn, now, self._settings),
                defined_at=reading.defined_at(conn),
            )
            if time.monotonic() >= self._trouble_due:
                trouble = self._troubles.read(conn, now, self._settings)
                seen = replace(seen, trouble=trouble)
            if seen.trouble is not None or _hold_is_gone(seen):
                since = now - timedelta(seconds=self._settings.resume_within_s)
                seen = replace(seen, released=reading.released(conn, now, since))
        verdict = judge(seen, self._settings)
        last = events[-1].id if events else after
        fresh = cursor is not None and cursor.event == last and now - cursor.at < CURSOR_EVERY
        if verdict != Verdict() or not fresh:
            self._write(verdict, cursor, last)
        if seen.trouble is not None:
            self._trouble_due = time.monotonic() + TROUBLE_EVERY_S
        return len(events) == MAX_EVENTS

    def _write(self, verdict: Verdict, cursor: Cursor | None, last: int) -> None:
        with self._store.begin() as conn:
            now = self._store.now(conn)
            if not alerts.move_cursor(conn, now, seen=cursor, event=last):
                return  # another has looked since, and raises what there is
            for ended in verdict.ended:
                alerts.end(conn, now, ended.alert.id, withdraw=ended.withdraw)
            for alert, count in verdict.withheld:
                alerts.withhold(conn, alert.id, count)
            for raised in verdict.raised:
                said = raised.text.linked(self._public_url)
                alerts.raise_alert(
                    conn,
                    now,
                    kind=raised.kind,
                    name=raised.name,
                    title=said.title,
                    body=said.body,
                    lasts=raised.lasts,
                    withheld=raised.withheld,
                )


class Outage:
    """Tells of a store that can't be reached, for which there is no outbox.

    Args:
        targets: Where to.
        spacing: The next outage is told so long after the one before, at the earliest.
        ticks: A clock that never jumps, in seconds.
    """

    def __init__(
        self,
        targets: Targets,
        spacing: timedelta,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._targets, self._spacing, self._ticks = targets, spacing, ticks
        self._since: datetime | None = None
        self._have: frozenset[str] = frozenset()
        self._tries = 0
        self._next_try: float | None = None
        self._told_ticks = float("-inf")

    def lost(self, error: Exception) -> None:
        """Take note that the store could not be reached, and tell of it when it is time.

        Args:
            error: Why it could not.
        """
        ticks = self._ticks()
        if self._since is None:
            self._since = datetime.now(UTC)
            again = self._told_ticks + self._spacing.total_seconds()
            self._next_try = max(ticks + LOST_AFTER_S, again)
            log.warning("alerts wait for the store: %s", why_unreachable(error))
        if self._next_try is None or ticks < self._next_try:
            return
        said = text.store_lost(self._since).plain()
        to = sorted(self._targets.names - self._have)
        errors = self._targets.send(said, AlertKind.STORE_LOST, to=to)
        self._have |= {name for name, why in errors.items() if why is None}
        self._tries += 1
        self._told_ticks = self._ticks()
        wait = wait_after(self._tries) if any(errors.values()) else None
        self._next_try = None if wait is None else self._told_ticks + wait.total_seconds()

    def over(self, store: Store) -> None:
        """Take note that the store is there; where its loss was told, tell of that too.

        Raises:
            sqlalchemy.exc.OperationalError: If it can't be reached after all.
        """
        if self._since is None:
            return
        if self._have:
            with store.begin() as conn:
                now = store.now(conn)
                said = text.store_back(self._since, now).plain()
                alerts.raise_alert(
                    conn,
                    now,
                    kind=AlertKind.STORE_BACK,
                    name="store",
                    title=said.title,
                    body=said.body,
                    lasts=False,
                )
        self._since, self._have = None, frozenset()
        self._tries, self._next_try = 0, None


def _hold_is_gone(seen: Seen) -> bool:
    """Whether a hold is over that people were told of."""
    there = {hold_name(hold) for hold in seen.situation.holds if hold.source is HoldSource.OPERATOR}
    return any(
        alert.live and alert.kind == AlertKind.OPERATOR_HOLD and alert.name not in there
        for alert in seen.alerts
    )
