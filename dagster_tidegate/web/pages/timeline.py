"""The timeline: breakers, holds, campaigns and runs on one time axis. Drawn as SVG."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.spans import joined
from dagster_tidegate.holds import Hold, HoldSource, TargetKind, targets_of
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import history, holds, outages, runs
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.history import Event
from dagster_tidegate.text import length, plural, words
from dagster_tidegate.web.pages.rendering import TONES

SPANS: Mapping[str, tuple[timedelta, timedelta, str]] = {
    "hour": (timedelta(hours=1), timedelta(minutes=10), "%H:%M"),
    "day": (timedelta(days=1), timedelta(hours=3), "%H:%M"),
    "week": (timedelta(days=7), timedelta(days=1), "%a %d"),
}
"""The length of each span, the distance between its ticks, and how a tick is labelled."""
MAX_EVENTS = 5000
MAX_ATTEMPTS = 1000
MAX_ROWS = 40
FEW = 12
"""Up to so many services are shown even if nothing happened to them."""
MIN_WIDTH = 0.4
"""How wide a bar is at least, in percent, so that a short outage can be seen and clicked."""


@dataclass(frozen=True)
class Bar:
    """A span on the time axis.

    Attributes:
        x: Where it starts, in percent of the axis.
        text: What it is, for a tooltip and a screen reader.
        path: The page that it leads to, and its query.
        outage: The id of a change in the outage that it is a part of, for its report.
    """

    x: float
    width: float
    tone: str
    text: str
    path: str
    query: Mapping[str, str]
    lane: int = 0
    outage: int | None = None


@dataclass(frozen=True)
class Row:
    """A line of the timeline."""

    name: str
    path: str
    bars: Sequence[Bar]
    lanes: int = 1


@dataclass(frozen=True)
class Timeline:
    """The timeline of a span.

    Attributes:
        ticks: Where the labels of the axis are, in percent.
        calm: How many services are left out because nothing happened to them.
        story: What happened, in words, the latest first.
        previous, next: The ends of the spans before and after it; None for none.
        cut: Whether there was too much to show all of it.
    """

    span: str
    start: datetime
    end: datetime
    ticks: Sequence[tuple[float, str]]
    services: Sequence[Row]
    campaigns: Sequence[Row]
    quiet: int
    calm: int
    story: Sequence[Bar]
    previous: datetime
    next: datetime | None
    cut: bool


def timeline(
    conn: Connection, situation: Situation, *, span: str = "hour", end: datetime | None = None
) -> Timeline:
    """Return the timeline of an hour, a day or a week that ends at a time (UTC); None: now."""
    size, step, form = SPANS[span]
    now = situation.now
    end = now if end is None or end > now else end
    axis = Axis(end - size, end)
    changes = history.read(conn, kinds=[EventKind.SERVICE], since=axis.start, limit=MAX_EVENTS)
    placed = [
        *holds.ended_since(conn, now, axis.start),
        *(hold for hold in situation.holds if hold.placed_at < end),
    ]
    attempts = runs.attempts_between(conn, axis.start, end, limit=MAX_ATTEMPTS)
    before = outages.open_at(conn, axis.start)
    by_name: dict[str, list[Event]] = {}
    for event in changes:
        by_name.setdefault(event.name, []).append(event)

    services = []
    for name in sorted(situation.services | by_name.keys()):
        breaker = situation.breakers.get(name)
        state = None if breaker is None else breaker.state
        bars = [
            *_states(axis, name, by_name.get(name, []), state, now, before.get(name)),
            *(_hold(axis, hold, now) for hold in placed if _of_people(hold, name)),
        ]
        services.append(Row(name, f"/services/{name}", _inside(bars)))

    campaigns = []
    worked: dict[str, list[Bar]] = {}
    for run, attempt in attempts:
        ended = attempt.ended_at
        outcome = attempt.outcome or "processing"
        took = length((ended or now) - attempt.started_at)
        text = f"{run.name}, attempt {attempt.number}: {outcome}, {took}"
        tone = TONES.get(outcome, "plain")
        bar = axis.bar(attempt.started_at, ended or now, tone, text, f"/runs/{run.id}")
        worked.setdefault(run.campaign, []).append(bar)
    for name, campaign in situation.campaigns.items():
        # A service that has an alternative pauses nothing alone.
        pausing = [each for each in campaign.services if campaign.spec.blocked_by([each])]
        targets = targets_of(services=pausing, campaign=name)
        paused = joined(
            (h.placed_at, h.released_at or now, _why(h)) for h in placed if h.target in targets
        )
        bars = [
            axis.bar(
                begin,
                finish,
                "held",
                f"{name} paused for {length(finish - begin)}: {'; '.join(reasons)}",
                "/history",
                {"name": name},
            )
            for begin, finish, reasons in paused
        ]
        # A short one is drawn over a long one of the same time, and not under it.
        worked_on = sorted(_inside(worked.pop(name, [])), key=lambda bar: -bar.width)
        if bars := _inside(bars) + [replace(each, lane=1) for each in worked_on]:
            campaigns.append(Row(name, f"/campaigns/{name}", bars, lanes=2))
    campaigns.sort(key=lambda row: (-sum(b.width for b in row.bars if b.lane == 0), row.name))
    troubled = [row for row in services if row.bars]
    shown = services if len(services) <= FEW else troubled
    story = [bar for row in troubled for bar in row.bars]
    return Timeline(
        span=span,
        start=axis.start,
        end=end,
        ticks=ticks(axis, step, form),
        services=shown[:MAX_ROWS],
        campaigns=campaigns[:MAX_ROWS],
        quiet=len(situation.campaigns) - len(campaigns),
        calm=len(services) - len(shown),
        story=_with_one_report_each(sorted(story, key=lambda bar: -bar.x)[:MAX_ROWS]),
        previous=end - size,
        next=None if end >= now else min(now, end + size),
        cut=len(changes) == MAX_EVENTS or len(attempts) == MAX_ATTEMPTS,
    )


@dataclass(frozen=True)
class Axis:
    """A span of time, drawn from 0 to 100 percent."""

    start: datetime
    end: datetime

    def at(self, time: datetime) -> float:
        """Return where a time is, in percent; outside times are at the edge."""
        share = (time - self.start) / (self.end - self.start)
        return round(100 * min(1.0, max(0.0, share)), 3)

    def bar(
        self,
        begin: datetime,
        finish: datetime,
        tone: str,
        text: str,
        path: str,
        query: Mapping[str, str] | None = None,
    ) -> Bar:
        """Return a bar from a time to a time; one that is outside has no width."""
        if finish < self.start or begin > self.end:
            return Bar(0, 0, tone, text, path, query or {})
        x = self.at(begin)
        width = max(MIN_WIDTH, self.at(finish) - x)
        return Bar(min(x, 100 - width), round(width, 3), tone, text, path, query or {})


def _inside(bars: Iterable[Bar]) -> list[Bar]:
    return [bar for bar in bars if bar.width]


def _states(
    axis: Axis,
    name: str,
    changes: Sequence[Event],
    state: BreakerState | None,
    now: datetime,
    before: Event | None,
) -> list[Bar]:
    """The times at which a breaker was not closed, from its events or its state.

    Args:
        before: Its latest change before the axis, if it was not closed then.
    """
    moves = [e for e in changes if e.to_status in set(BreakerState)]
    first = moves[0].from_status if moves else state
    begin, current, reason, cause = axis.start, first, "", None
    outage = moves[0].id if moves else None
    if before is not None:
        outage, reason, cause = before.id, before.reason or "", _cause(before)
    bars = []
    for event in [*moves, None]:
        finish = now if event is None else event.at
        if current in (BreakerState.OPEN, BreakerState.HALF_OPEN):
            form = "%T" if begin.date() == now.date() else "%d %b %T"
            if event is None:
                time = f"since {begin:{form}}" if begin > axis.start else "since before"
                time = f"{time}, {length(finish - begin)}"
            elif begin > axis.start:
                time = f"from {begin:{form}} for {length(finish - begin)}"
            else:
                time = f"until {finish:{form}}"
            why = f" ({reason})" if reason else ""
            status = cause or current if current == BreakerState.OPEN else current
            text = f"{name} {words(status)} {time}{why}"
            query = {"name": name, "kind": "service"}
            bar = axis.bar(begin, finish, TONES[str(status)], text, "/history", query)
            bars.append(replace(bar, outage=outage))
        if event is not None:
            outage = event.id if event.opened else outage
            begin, current, cause = event.at, event.to_status, _cause(event)
            reason = event.reason or reason
    return bars


def _cause(event: Event) -> str | None:
    """Why a breaker is open, where the service is not unwell: it throttles, or it denies."""
    cause = (event.after or {}).get("cause")
    return cause if cause in (VerdictKind.THROTTLED, VerdictKind.DENIED) else None


def _with_one_report_each(story: Iterable[Bar]) -> Sequence[Bar]:
    """Only the latest bar of an outage leads to its report."""
    linked: set[int] = set()
    bars = []
    for bar in story:
        is_first = bar.outage is not None and bar.outage not in linked
        bars.append(bar if is_first else replace(bar, outage=None))
        linked |= {bar.outage} if bar.outage is not None else set()
    return bars


def _of_people(hold: Hold, service: str) -> bool:
    target = hold.target
    is_of = target.kind is TargetKind.SERVICE and target.name == service
    return is_of and hold.source is not HoldSource.BREAKER


def _hold(axis: Axis, hold: Hold, now: datetime) -> Bar:
    finish = hold.released_at or now
    text = (
        f"{hold.target} held by {hold.actor} for {length(finish - hold.placed_at)}: {hold.reason}"
    )
    query = {"name": hold.target.name}
    return axis.bar(hold.placed_at, finish, "held", text, "/history", query)


def _why(hold: Hold) -> str:
    return f"{hold.target.name or 'everything'} ({hold.reason})"


def ticks(axis: Axis, step: timedelta, form: str) -> list[tuple[float, str]]:
    """Return the labels of an axis: where each is, in percent, and its text."""
    first = datetime.fromtimestamp(
        -(-axis.start.timestamp() // step.total_seconds()) * step.total_seconds(), axis.start.tzinfo
    )
    labels = []
    while first <= axis.end:
        labels.append((axis.at(first), f"{first:{form}}"))
        first += step
    return labels


def described(view: Timeline) -> str:
    """Return the timeline in one sentence, for a screen reader."""
    troubled = [row.name for row in view.services if any(bar.tone == "bad" for bar in row.bars)]
    if not troubled:
        return "No service was down."
    verb = "was" if len(troubled) == 1 else "were"
    return f"{plural(len(troubled), 'service')} {verb} down: {', '.join(troubled)}."
