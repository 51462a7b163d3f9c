"""An outage on a time axis: the breaker, and the campaigns that it paused. Pure.

Markdown draws it with characters, the page as SVG.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dagster_tidegate.control.report_models import OutageReport
from dagster_tidegate.control.spans import joined
from dagster_tidegate.statuses import BreakerState

MAX_CAMPAIGNS = 10
"""How many campaigns are drawn."""


@dataclass(frozen=True)
class Span:
    """A time in which a breaker was not closed, or runs of a campaign were paused.

    Attributes:
        state: The state of the breaker; None: runs were paused.
        reason: Why the breaker changed to it.
    """

    begin: datetime
    end: datetime
    state: BreakerState | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Lane:
    """A line of the picture.

    Attributes:
        name: The service, or a campaign.
        spans: The oldest first; they do not overlap.
    """

    name: str
    spans: Sequence[Span]


@dataclass(frozen=True)
class Drawing:
    """What there is to draw of an outage, with a margin before and after it."""

    start: datetime
    end: datetime
    service: Lane
    campaigns: Sequence[Lane]


def drawing(report: OutageReport) -> Drawing:
    """Return what there is to draw of an outage."""
    end = max(filter(None, (report.closed_at or report.at, report.last_resumed_at)))
    margin = max(timedelta(seconds=1), (end - report.opened_at) / 20)
    lanes = []
    for campaign in report.campaigns[:MAX_CAMPAIGNS]:
        pauses = [
            (run.paused_at, run.resumed_at or report.at, run.run)
            for run in report.runs
            if run.run.startswith(f"{campaign.campaign}/")
        ]
        spans = [Span(begin, end) for begin, end, _ in joined(pauses)]
        lanes.append(Lane(campaign.campaign, spans))
    return Drawing(
        start=report.opened_at - margin,
        end=end + margin,
        service=Lane(report.service, [*_states(report)]),
        campaigns=lanes,
    )


def _states(report: OutageReport) -> Iterator[Span]:
    ends = [*(change.at for change in report.timeline[1:]), report.closed_at or report.at]
    for change, end in zip(report.timeline, ends, strict=True):
        if change.state is not BreakerState.CLOSED:
            yield Span(change.at, end, change.state, change.reason)
