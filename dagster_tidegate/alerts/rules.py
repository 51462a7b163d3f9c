"""Of what people are told, and of what not again. Pure: what was seen goes in, alerts come out.

A trip is told because it happened, everything else because it is so. What is so is told once for as
long as it lasts; what happens again and again is told a bounded number of times, and summed up.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import sha256

from dagster_tidegate.alerts import text
from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.alerts.situation import BURST_WITHIN, Seen
from dagster_tidegate.alerts.text import Text
from dagster_tidegate.holds import Hold, HoldSource, TargetKind, targets_of
from dagster_tidegate.settings import AlertSettings
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store.alerts import Alert, AlertStatus

BURST = 2
"""So many messages of a kind about a thing come at once, within `BURST_WITHIN`."""
TOO_LATE = timedelta(hours=1)
"""What happened longer ago, while nobody looked, is summed up."""
MAX_NAME = 512
_KINDS = frozenset(kind.value for kind in AlertKind)

Topic = tuple[AlertKind, str]
"""What happened, and to what."""


@dataclass(frozen=True)
class Raised:
    """An alert that is to be raised.

    Attributes:
        kind: What happened.
        name: What it is about.
        text: What it says.
        lasts: Whether its cause lasts.
        withheld: How often it happened again, without being told.
    """

    kind: AlertKind
    name: str
    text: Text
    lasts: bool
    withheld: int = 0


@dataclass(frozen=True)
class Ended:
    """An alert whose cause has ended.

    Attributes:
        alert: The alert.
        withdraw: Whether it is not told any more, if it was not yet.
    """

    alert: Alert
    withdraw: bool


@dataclass(frozen=True)
class Verdict:
    """What becomes of the alerts.

    Attributes:
        raised: Those that are new, in order.
        ended: Those whose cause has ended.
        withheld: How often the cause of each is known to have happened again, where that changed.
    """

    raised: tuple[Raised, ...] = ()
    ended: tuple[Ended, ...] = ()
    withheld: tuple[tuple[Alert, int], ...] = ()


def judge(seen: Seen, settings: AlertSettings) -> Verdict:
    """Return what people are to be told of, and what has ended.

    Args:
        seen: What was seen.
        settings: What is told.
    """
    book = _Book(seen, timedelta(seconds=settings.repeat_after_s))
    _trips(book, seen)
    _holds(book, seen, settings)
    _gates(book, seen, settings)
    if seen.trouble is not None:
        _runs(book, seen, settings)
    return book.close()


def bounded(name: str) -> str:
    """Return a name as the store can keep it: a long one ends in its digest."""
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 17]}#{sha256(name.encode()).hexdigest()[:16]}"


def hold_name(hold: Hold) -> str:
    """Return the name under which people are told of a person's hold."""
    return bounded(f"{hold.target.key} by {hold.actor}")


@dataclass
class _Page:
    """What is known of a topic: what the store has of it, and what is added now."""

    stored: list[Alert] = field(default_factory=list)
    raised: list[Raised] = field(default_factory=list)
    live: bool = False
    told: bool = False  # or will be: somebody waits for the end of it
    last_at: datetime | None = None
    again: int = 0  # how often it happened without being told


class _Book:
    """Works out what becomes of the alerts while the rules tell it what they see."""

    def __init__(self, seen: Seen, spacing: timedelta) -> None:
        self._now = seen.situation.now
        self._spacing = spacing
        self._pages: dict[Topic, _Page] = {}
        self._raised: list[tuple[_Page, Raised]] = []
        self._ended: dict[int, Ended] = {}
        for alert in seen.alerts:
            if alert.kind not in _KINDS:
                continue  # of a newer version
            page = self.page((AlertKind(alert.kind), alert.name))
            page.stored.append(alert)
            page.last_at = alert.raised_at
            page.live |= alert.live
            page.again += alert.withheld
            if alert.live:
                page.told = alert.status not in (AlertStatus.WITHDRAWN, AlertStatus.GIVEN_UP)

    def page(self, topic: Topic) -> _Page:
        return self._pages.setdefault(topic, _Page())

    def topics(self, kind: AlertKind) -> list[tuple[str, _Page]]:
        return [(name, page) for (of, name), page in self._pages.items() if of is kind]

    def may_tell(self, page: _Page) -> bool:
        """Whether a topic was not told of too often lately."""
        lately = [each for each in page.stored if each.raised_at > self._now - BURST_WITHIN]
        if len(lately) + len(page.raised) < BURST or page.last_at is None:
            return True
        return self._now - page.last_at >= self._spacing

    def tell(self, topic: Topic, said: Text, *, lasts: bool) -> None:
        page = self.page(topic)
        raised = Raised(topic[0], topic[1], said.plain(), lasts)
        page.raised.append(raised)
        page.live = page.told = lasts
        page.last_at = self._now
        self._raised.append((page, raised))

    def end(self, page: _Page, *, withdraw: bool) -> None:
        page.live = False
        for alert in page.stored:
            if alert.live and alert.id not in self._ended:
                self._ended[alert.id] = Ended(alert, withdraw)

    def so_long_as(
        self, kind: AlertKind, causes: Mapping[str, Callable[[], Text]], *, withdraw: bool = True
    ) -> list[str]:
        """Tell of what is so now, once; end what is so no more, and return its names."""
        over = []
        for name, page in self.topics(kind):
            if page.live and name not in causes:
                self.end(page, withdraw=withdraw)
                if page.told:
                    over.append(name)
        for name, say in causes.items():
            page = self.page((kind, name))
            if not page.live and self.may_tell(page):
                self.tell((kind, name), say(), lasts=True)
        return over

    def close(self) -> Verdict:
        withheld = []
        for page in self._pages.values():
            for alert in page.stored:
                # The newest has the count.
                newest = not page.raised and alert is page.stored[-1]
                count = page.again if newest else 0
                if alert.withheld != count:
                    withheld.append((alert, count))
        raised = []
        for page, each in self._raised:
            newest = page.raised[-1] is each
            # What ended in the same look is told, and does not last.
            lasts = each.lasts and page.live and newest
            raised.append(replace(each, lasts=lasts, withheld=page.again if newest else 0))
        return Verdict(tuple(raised), tuple(self._ended.values()), tuple(withheld))


def _trips(book: _Book, seen: Seen) -> None:
    now = seen.situation.now
    for event in seen.events:
        if not (event.opened or event.closed):
            continue
        topic = (AlertKind.TRIP, event.name)
        page = book.page(topic)
        if event.closed:
            if page.live:
                told_at = page.last_at if page.told else None
                book.end(page, withdraw=False)
                if page.told:
                    said = text.recovery(seen.situation, event.name, event.at, told_at)
                    book.tell((AlertKind.RECOVERY, event.name), said, lasts=False)
        elif not page.live:
            if page.again == 0 and event.at > now - TOO_LATE and book.may_tell(page):
                said = text.trip(seen.situation, event.name, event.at, event.reason)
                book.tell(topic, said, lasts=True)
            else:
                page.again += 1  # with those before it, where it is time for them
    for name, page in book.topics(AlertKind.TRIP):
        if page.again and not page.live and book.may_tell(page):
            circuit = seen.situation.circuits.get(name)
            is_open = circuit is not None and circuit.state is not BreakerState.CLOSED
            said = text.trips(seen.situation, name, page.again, page.last_at)
            page.again = 0
            book.tell((AlertKind.TRIP, name), said, lasts=is_open)


def _holds(book: _Book, seen: Seen, settings: AlertSettings) -> None:
    situation = seen.situation
    by_people = {
        hold_name(hold): hold for hold in situation.holds if hold.source is HoldSource.OPERATOR
    }
    released = {hold_name(hold): hold for hold in reversed(seen.released)}
    over = book.so_long_as(
        AlertKind.OPERATOR_HOLD,
        {name: _of(text.operator_hold, situation, hold) for name, hold in by_people.items()},
        withdraw=False,
    )
    for name in over:
        book.tell(
            (AlertKind.HOLD_RELEASED, name),
            text.hold_released(name, released.get(name)),
            lasts=False,
        )
    expiring, old = {}, {}
    for hold in situation.holds:
        name = bounded(f"{hold.target.key}, hold {hold.id}")
        if hold.expires_at is not None:
            ahead = timedelta(seconds=settings.hold_expires_within_s)
            ahead = min(ahead, (hold.expires_at - hold.placed_at) / 4)
            if hold.expires_at - ahead <= situation.now:
                expiring[name] = _of(text.hold_expires, situation, hold)
        if situation.now - hold.placed_at > timedelta(seconds=settings.hold_older_than_s):
            old[name] = _of(text.hold_old, situation, hold)
    book.so_long_as(AlertKind.HOLD_EXPIRES, expiring)
    book.so_long_as(AlertKind.HOLD_OLD, old)


def _gates(book: _Book, seen: Seen, settings: AlertSettings) -> None:
    since = seen.situation.now - timedelta(seconds=settings.gate_stale_after_s)
    causes = {}
    for gate in seen.situation.stale_gates():
        # One that never did its work is given the same time, from when it was heard of.
        last = gate.last or seen.defined_at.get(gate.location, seen.situation.now)
        if last <= since:
            causes[bounded(gate.location)] = _of(text.gate_stale, gate)
    book.so_long_as(AlertKind.GATE_STALE, causes)


def _runs(book: _Book, seen: Seen, settings: AlertSettings) -> None:
    assert seen.trouble is not None  # the caller looked
    book.so_long_as(
        AlertKind.IN_DOUBT,
        {
            bounded(each.run): _of(text.in_doubt, each.run, each.records, each.since)
            for each in seen.trouble.in_doubt
        },
    )
    causes = {
        bounded(run): _of(text.failed_after_pause, run, reason)
        for run, reason in seen.trouble.failed.items()
    }
    for campaign in _stuck(seen, settings):
        found = seen.trouble.waiting[campaign]
        causes[campaign] = _of(text.does_not_resume, campaign, found.runs, found.since)
    book.so_long_as(AlertKind.RESUME_FAILED, causes)


def _stuck(seen: Seen, settings: AlertSettings) -> Iterator[str]:
    """The campaigns that do not resume though nothing holds them or is at work before them."""
    situation, trouble = seen.situation, seen.trouble
    assert trouble is not None  # the caller looked
    before = situation.now - timedelta(seconds=settings.resume_within_s)
    stale = {gate.location for gate in situation.stale_gates()}
    just_released = {
        hold.target for hold in seen.released if hold.released_at and hold.released_at > before
    }
    released_runs = {
        target.name.partition("/")[0]
        for target in just_released
        if target.kind is TargetKind.CAMPAIGN_RUN
    }
    for name, waiting in trouble.waiting.items():
        campaign = situation.campaigns.get(name)
        if campaign is None or campaign.holds or campaign.spec.location in stale:
            continue
        targets = targets_of(services=campaign.services, campaign=name)
        if waiting.moved_at > before or name in released_runs or targets & just_released:
            continue
        # The ramp of a service may let one run in at a time, of whichever campaign.
        busy = any(
            other.runs.get(RunStatus.PROCESSING)
            for other in situation.campaigns.values()
            if other is campaign or other.services & campaign.services
        )
        if not busy:
            yield name


def _of(say: Callable[..., Text], *facts: object) -> Callable[[], Text]:
    return lambda: say(*facts)
