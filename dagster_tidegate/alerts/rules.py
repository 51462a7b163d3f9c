"""Decides which alerts to raise, to end and to withhold. Pure: a snapshot in, changes out.

A trip is an event: each one is sent, or counted in a later message. Everything else is a condition:
it is sent once for as long as it lasts. Messages about the same topic are limited in number.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from urllib.parse import quote

from dagster_tidegate.alerts.conditions import (
    CONDITIONS,
    MAX_NAME,
    NEED_PROBLEMS,
    operator_hold_name,
)
from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.alerts.snapshot import BURST_WITHIN, Snapshot
from dagster_tidegate.alerts.text import Text, affected
from dagster_tidegate.holds import Hold, SystemActor
from dagster_tidegate.settings import AlertSettings
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store.alerts import Alert, AlertStatus
from dagster_tidegate.text import bounded, length, utc, words

BURST = 2
"""How many messages about a topic are sent without delay, within `BURST_WITHIN`."""
MAX_TRIP_AGE = timedelta(hours=1)
"""Earlier trips, from while no sender was running, share one message."""
_KINDS = frozenset(kind.value for kind in AlertKind)


@dataclass
class NewAlert:
    """An alert to raise.

    Attributes:
        withheld: How often its cause has occurred again without a message.
    """

    kind: AlertKind
    name: str
    text: Text
    lasts: bool
    withheld: int = 0


@dataclass(frozen=True)
class EndedAlert:
    """An alert whose cause has ended.

    Attributes:
        withdraw: Whether to drop its message if nobody has tried to send it yet.
    """

    alert: Alert
    withdraw: bool


@dataclass(frozen=True)
class AlertChanges:
    """What to change in the store.

    Attributes:
        withheld: Alerts with a new value of `withheld`.
    """

    raised: tuple[NewAlert, ...] = ()
    ended: tuple[EndedAlert, ...] = ()
    withheld: tuple[tuple[Alert, int], ...] = ()


def evaluate(
    snapshot: Snapshot, settings: AlertSettings, *, pages: str | None = None
) -> AlertChanges:
    """Return the changes to the alerts that a snapshot calls for.

    Args:
        pages: The public URL of Tidegate's pages, for links to reports.
    """
    state = AlertState(snapshot, timedelta(seconds=settings.repeat_after_s))
    _update_breakers(state, snapshot, pages)
    for kind, find in CONDITIONS.items():
        if kind in NEED_PROBLEMS and snapshot.problems is None:
            continue
        causes = {bounded(name, MAX_NAME): text for name, text in find(snapshot, settings)}
        # A hold that was released before its message was sent is still reported.
        is_hold = kind is AlertKind.OPERATOR_HOLD
        ended = state.update(kind, causes, withdraw=not is_hold)
        if kind is AlertKind.DENIED:
            _report_repaired(state, snapshot, ended, pages)
        if is_hold:
            holds = {operator_hold_name(hold): hold for hold in snapshot.ended_holds}
            for name in ended:
                topic = state.topic(AlertKind.HOLD_RELEASED, name)
                state.raise_alert(topic, _hold_released(name, holds.get(name)), lasts=False)
    return state.changes()


@dataclass
class Topic:
    """The alerts of one kind about one thing.

    Attributes:
        stored: The alerts that the store has, the oldest first.
        live: Whether the cause of the latest alert lasts.
        announced: Whether its message was sent or will be, so that its end is worth a message.
        raised_at: When the latest alert was raised (UTC).
        withheld: How often the cause has occurred since without a message.
    """

    kind: AlertKind
    name: str
    stored: list[Alert] = field(default_factory=list)
    raised: list[NewAlert] = field(default_factory=list)
    live: bool = False
    announced: bool = False
    raised_at: datetime | None = None
    withheld: int = 0

    def add(self, alert: Alert) -> None:
        """Add the next alert of the store."""
        self.stored.append(alert)
        self.raised_at = alert.raised_at
        self.withheld += alert.withheld
        if alert.live:
            self.live = True
            self.announced = alert.status not in (AlertStatus.WITHDRAWN, AlertStatus.GIVEN_UP)


class AlertState:
    """The topics of a snapshot, and how they change."""

    def __init__(self, snapshot: Snapshot, spacing: timedelta) -> None:
        self._now, self._spacing = snapshot.situation.now, spacing
        self._topics: dict[tuple[AlertKind, str], Topic] = {}
        self._raised: list[NewAlert] = []
        self._ended: dict[int, EndedAlert] = {}
        for alert in snapshot.alerts:
            if alert.kind in _KINDS:  # a newer version may have others
                self.topic(AlertKind(alert.kind), alert.name).add(alert)

    def topic(self, kind: AlertKind, name: str) -> Topic:
        """Return a topic; it may have no alerts yet."""
        return self._topics.setdefault((kind, name), Topic(kind, name))

    def topics(self, kind: AlertKind) -> list[Topic]:
        """Return the topics of a kind."""
        return [topic for topic in self._topics.values() if topic.kind is kind]

    def may_send(self, topic: Topic) -> bool:
        """Return whether the rate limit allows another message about a topic now."""
        since = self._now - BURST_WITHIN
        recent = sum(alert.raised_at > since for alert in topic.stored) + len(topic.raised)
        if recent < BURST or topic.raised_at is None:
            return True
        return self._now - topic.raised_at >= self._spacing

    def raise_alert(self, topic: Topic, text: Text, *, lasts: bool) -> None:
        """Raise an alert about a topic."""
        alert = NewAlert(topic.kind, topic.name, text.plain(), lasts)
        topic.raised.append(alert)
        topic.live = topic.announced = lasts
        topic.raised_at = self._now
        self._raised.append(alert)

    def end(self, topic: Topic, *, withdraw: bool) -> None:
        """End the live alert of a topic."""
        topic.live = False
        if topic.raised:
            topic.raised[-1].lasts = False
        for alert in topic.stored:
            if alert.live:
                self._ended.setdefault(alert.id, EndedAlert(alert, withdraw))

    def update(self, kind: AlertKind, causes: Mapping[str, Text], *, withdraw: bool) -> list[str]:
        """End the alerts whose cause is gone, and raise those that are new.

        Returns:
            The names of the ended alerts whose message was sent or will be.
        """
        ended = [t for t in self.topics(kind) if t.live and t.name not in causes]
        for topic in ended:
            self.end(topic, withdraw=withdraw)
        for name, text in causes.items():
            topic = self.topic(kind, name)
            if not topic.live and self.may_send(topic):
                self.raise_alert(topic, text, lasts=True)
        return [topic.name for topic in ended if topic.announced]

    def changes(self) -> AlertChanges:
        """Return what to change in the store. The latest alert of a topic carries its count."""
        withheld = []
        for topic in self._topics.values():
            if topic.raised:
                topic.raised[-1].withheld = topic.withheld
            for alert in topic.stored:
                is_latest = not topic.raised and alert is topic.stored[-1]
                count = topic.withheld if is_latest else 0
                if alert.withheld != count:
                    withheld.append((alert, count))
        return AlertChanges(tuple(self._raised), tuple(self._ended.values()), tuple(withheld))


def _update_breakers(state: AlertState, snapshot: Snapshot, pages: str | None) -> None:
    for event in snapshot.events:
        if not (event.opened or event.closed):
            continue
        topic = state.topic(AlertKind.TRIP, event.name)
        if event.closed:
            if topic.live:
                state.end(topic, withdraw=False)
                if topic.announced:
                    text = _recovery(
                        snapshot, event.name, event.at, topic.raised_at, pages, outage=event.id
                    )
                    recovery = state.topic(AlertKind.RECOVERY, event.name)
                    state.raise_alert(recovery, text, lasts=False)
        elif not topic.live and not _is_denied(snapshot, event.name):  # an alert of its own
            is_recent = event.at > snapshot.situation.now - MAX_TRIP_AGE
            if is_recent and not topic.withheld and state.may_send(topic):
                text = _trip(snapshot, event.name, event.at, event.reason)
                state.raise_alert(topic, text, lasts=True)
            else:
                topic.withheld += 1
    for topic in state.topics(AlertKind.TRIP):
        if topic.withheld and not topic.live and state.may_send(topic):
            text = _trips(snapshot, topic.name, topic.withheld, topic.raised_at)
            topic.withheld = 0
            state.raise_alert(topic, text, lasts=_is_open(snapshot, topic.name))


def _report_repaired(
    state: AlertState, snapshot: Snapshot, services: Sequence[str], pages: str | None
) -> None:
    for service in services:
        recovery = state.topic(AlertKind.RECOVERY, service)
        if not recovery.raised and not _is_open(snapshot, service):
            denied = state.topic(AlertKind.DENIED, service)
            breaker = snapshot.situation.breakers[service]
            text = _recovery(snapshot, service, breaker.changed_at, denied.raised_at, pages)
            state.raise_alert(recovery, text, lasts=False)


def _is_denied(snapshot: Snapshot, service: str) -> bool:
    breaker = snapshot.situation.breakers.get(service)
    return breaker is not None and breaker.is_denied


def _is_open(snapshot: Snapshot, service: str) -> bool:
    breaker = snapshot.situation.breakers.get(service)
    return breaker is not None and breaker.state is not BreakerState.CLOSED


def _trip(snapshot: Snapshot, service: str, at: datetime, reason: str | None) -> Text:
    breaker = snapshot.situation.breakers.get(service)
    until = None if breaker is None else breaker.throttled_until
    is_down = "is down" if until is None else f"is throttled until {utc(until)}"
    return Text(
        f"{service} {is_down}: {reason or 'its breaker opened'}",
        f"The breaker of {service} opened at {utc(at)}: {reason or 'by hand'}.\n"
        f"{_breaker_status(snapshot, service)}"
        f"{affected(snapshot.campaigns_of(service))}\n"
        f"They resume automatically when {service} recovers.\n"
        f"Details: tidegate why {shlex.quote(service)}",
    )


def _trips(snapshot: Snapshot, service: str, times: int, since: datetime | None) -> Text:
    """Summarize trips that had no message of their own."""
    if since is None:
        often = "once" if times == 1 else f"{times} times"
        period = ""
    else:
        often = "once more" if times == 1 else f"{times} more times"
        period = f" since the message of {utc(since)}"
    is_open = _is_open(snapshot, service)
    campaigns = f"{affected(snapshot.campaigns_of(service))}\n" if is_open else ""
    return Text(
        f"{service} went down {often} and is {'down' if is_open else 'up'} now",
        f"The breaker of {service} opened {often}{period}.\n"
        f"{_breaker_status(snapshot, service)}"
        f"{campaigns}"
        f"Details: tidegate history {shlex.quote(service)}",
    )


def _recovery(
    snapshot: Snapshot,
    service: str,
    at: datetime,
    alerted_at: datetime | None,
    pages: str | None,
    *,
    outage: int | None = None,
) -> Text:
    """Report a recovery; `outage` is the id of the event that ended the outage, if known."""
    lasted = "" if alerted_at is None else f", {length(at - alerted_at)} after the alert"
    options = f"--outage {outage}" if outage else f"--service {shlex.quote(service)} --limit 1"
    report = f"tidegate report {options}"
    if pages is not None:
        report = f"{pages}/outages{f'/{outage}' if outage else f'?service={quote(service)}'}"
    return Text(
        f"{service} has recovered",
        f"The breaker of {service} closed at {utc(at)}{lasted}.\n"
        f"{affected(snapshot.campaigns_of(service))}\n"
        "Their paused runs resume in a ramp, one run first.\n"
        f"Report: {report}",
    )


def _hold_released(name: str, hold: Hold | None) -> Text:
    """Report the end of an operator's hold; of one that ended long ago only the name is known."""
    if hold is None or hold.released_at is None:
        kind, _, rest = name.partition(" ")
        subject = f"{words(kind)} {rest}"
        return Text(f"Hold ended: {subject}", f"This hold has ended: {subject}.")
    expired = hold.released_by == SystemActor.EXPIRY
    event = "expired" if expired else f"was released by {hold.released_by}"
    return Text(
        f"The hold of {hold.actor} on {hold.target} {'expired' if expired else 'was released'}",
        f"The hold of {hold.actor} on {hold.target} ({hold.reason}) {event} at "
        f"{utc(hold.released_at)}.\n"
        "Anything that no other hold covers resumes.",
    )


def _breaker_status(snapshot: Snapshot, service: str) -> str:
    breaker = snapshot.situation.breakers.get(service)
    if breaker is None:
        return ""
    if breaker.state is BreakerState.OPEN and breaker.open_until is not None:
        return f"The service is probed at {utc(breaker.open_until)} at the earliest.\n"
    state = words(breaker.state)
    return f"The breaker has been {state} since {utc(breaker.changed_at)}.\n"
