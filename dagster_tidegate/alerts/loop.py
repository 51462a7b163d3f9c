"""Raises and sends alerts until it is stopped. It needs neither Dagster nor a gate."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.alerts.rules import AlertChanges, NewAlert, evaluate
from dagster_tidegate.alerts.sender import Sender, wait_after
from dagster_tidegate.alerts.snapshot import MAX_EVENTS, SnapshotReader
from dagster_tidegate.alerts.targets import Targets
from dagster_tidegate.alerts.text import Text
from dagster_tidegate.settings import AlertSettings, GeneralSettings, load
from dagster_tidegate.store import alerts
from dagster_tidegate.store.alerts import Cursor
from dagster_tidegate.store.database import DATABASE_ERRORS, Connection, Store, why_unreachable
from dagster_tidegate.text import length, utc

CHECK_INTERVAL_S = 5.0
CURSOR_INTERVAL = timedelta(seconds=30)
"""The cursor is written at least this often, as a heartbeat of the sender."""
OUTAGE_AFTER_S = 30.0
"""How long the store may be unreachable before an alert is sent."""
LOG_INTERVAL_S = 60.0
log = logging.getLogger(__name__)


def run(
    store: Store,
    settings: AlertSettings,
    stop: threading.Event,
    *,
    check_interval_s: float = CHECK_INTERVAL_S,
) -> None:
    """Raise and send alerts until `stop` is set. Returns at once if no targets are configured.

    Several may run at once: each alert is raised and sent by one of them.

    Args:
        stop: Stops it as soon as the current message is sent.

    Raises:
        SettingsError: If a target's URL is invalid.
    """
    targets = Targets(settings.urls)
    if not targets.names:
        log.info("No alert targets are configured; set TIDEGATE_ALERT_URLS to send alerts.")
        return
    monitor = Monitor(store, settings)
    sender = Sender(store, targets, settings.per_minute)
    spacing = timedelta(seconds=settings.repeat_after_s)
    outage = StoreOutage(targets, spacing)
    errors = _ErrorLog()
    log.info("Alerts are sent to %s.", ", ".join(sorted(targets.names)))
    more = True
    while not stop.wait(0 if more else check_interval_s):
        more = False
        try:
            try:
                more = monitor.check()
            except DATABASE_ERRORS:
                raise
            except Exception as error:  # noqa: BLE001 -- alerts raised earlier are still sent
                errors.log("checking for alerts", error)
            sender.send(stop)
            outage.recovered(store)
        except DATABASE_ERRORS as error:
            outage.failed(error)
        except Exception as error:  # noqa: BLE001 -- the loop must survive
            errors.log("sending alerts", error)


class Monitor:
    """Checks the store and raises alerts."""

    def __init__(self, store: Store, settings: AlertSettings) -> None:
        self._store, self._settings = store, settings
        self._reader = SnapshotReader(settings)

    def check(self) -> bool:
        """Raise and end alerts, and return whether there are more events to read.

        Raises:
            sqlalchemy.exc.OperationalError: If the store can't be reached.
        """
        with self._store.read() as conn:
            now = self._store.now(conn)
            cursor = alerts.read_cursor(conn)
            # Events from before the first check ever raise no alerts.
            snapshot = self._reader.read(conn, now, after=None if cursor is None else cursor.event)
        changes = evaluate(snapshot, self._settings, pages=load(GeneralSettings).page_url(""))
        is_current = (
            cursor is not None
            and cursor.event == snapshot.last_event
            and now - cursor.at < CURSOR_INTERVAL
        )
        if changes != AlertChanges() or not is_current:
            self._write(changes, cursor, snapshot.last_event)
        return len(snapshot.events) == MAX_EVENTS

    def _write(self, changes: AlertChanges, cursor: Cursor | None, last_event: int) -> None:
        with self._store.begin() as conn:
            now = self._store.now(conn)
            if not alerts.move_cursor(conn, now, before=cursor, event=last_event):
                return  # another sender has checked since, and raises the alerts
            for ended in changes.ended:
                alerts.end(conn, now, ended.alert.id, withdraw=ended.withdraw)
            for alert, count in changes.withheld:
                alerts.withhold(conn, alert.id, count)
            for alert in changes.raised:
                _raise(conn, now, alert)


class StoreOutage:
    """Sends an alert while the store, and so the outbox, can't be reached.

    Args:
        spacing: The minimum time between two such alerts.
        ticks: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        targets: Targets,
        spacing: timedelta,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._targets, self._spacing, self._ticks = targets, spacing, ticks
        self._sent_ticks = float("-inf")
        self._reset()

    def _reset(self) -> None:
        self._since: datetime | None = None
        self._delivered: frozenset[str] = frozenset()
        self._tries = 0
        self._next_try: float | None = None

    def failed(self, error: Exception) -> None:
        """Record that the store could not be reached, and send or retry the alert if it is due."""
        if self._since is None:
            self._since = datetime.now(UTC)
            repeat_at = self._sent_ticks + self._spacing.total_seconds()
            self._next_try = max(self._ticks() + OUTAGE_AFTER_S, repeat_at)
            log.warning("Alerts are delayed; the store is unreachable: %s", why_unreachable(error))
        if self._next_try is None or self._ticks() < self._next_try:
            return
        text = Text(
            "Tidegate's store is unreachable",
            f"The store has been unreachable since {utc(self._since)}.\n"
            "Until it recovers, each process has its own breakers, nothing is paused or resumed "
            "across the fleet, and runs wait before they take their next record.\n"
            "Details: tidegate doctor",
        )
        to = sorted(self._targets.names - self._delivered)
        lost = AlertKind.STORE_LOST
        errors = self._targets.send(linked(text, lost), lost, to=to)
        self._delivered |= {name for name, error in errors.items() if error is None}
        self._tries += 1
        self._sent_ticks = self._ticks()
        wait = wait_after(self._tries) if any(errors.values()) else None
        self._next_try = None if wait is None else self._sent_ticks + wait.total_seconds()

    def recovered(self, store: Store) -> None:
        """Record that the store can be reached, and raise an alert if one was sent.

        Raises:
            sqlalchemy.exc.OperationalError: If it can't be reached after all.
        """
        if self._since is None:
            return
        if self._delivered:
            with store.begin() as conn:
                now = store.now(conn)
                text = Text(
                    "Tidegate's store is reachable again",
                    f"The store was unreachable from {utc(self._since)} for "
                    f"{length(now - self._since)}.",
                )
                _raise(conn, now, NewAlert(AlertKind.STORE_BACK, "store", text, lasts=False))
        self._reset()


def linked(text: Text, kind: AlertKind) -> Text:
    """Return a text with its runbook, and a link to the web UI if its public URL is set."""
    general = load(GeneralSettings)
    return text.linked(kind, general.public_url, general.page_url(""))


def _raise(conn: Connection, now: datetime, alert: NewAlert) -> None:
    text = linked(alert.text, alert.kind)
    alerts.raise_alert(
        conn,
        now,
        kind=alert.kind,
        name=alert.name,
        title=text.title,
        body=text.body,
        lasts=alert.lasts,
        withheld=alert.withheld,
    )


class _ErrorLog:
    """Logs unexpected errors, each kind at most once a minute."""

    def __init__(self) -> None:
        self._logged_ticks: dict[str, float] = {}

    def log(self, activity: str, error: Exception) -> None:
        ticks = time.monotonic()
        if ticks - self._logged_ticks.get(activity, float("-inf")) >= LOG_INTERVAL_S:
            self._logged_ticks[activity] = ticks
            log.error("Error while %s; will retry.", activity, exc_info=error)
