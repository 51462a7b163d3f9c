"""The pages of campaigns and campaign runs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from dagster_tidegate.control.situation import CampaignSituation, Situation
from dagster_tidegate.control.why import Explanation, why, why_waiting
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import UNFINISHED, CampaignStatus, RunStatus
from dagster_tidegate.store import campaign_stats, campaigns, history, records, run_details, runs
from dagster_tidegate.store.campaign_stats import CampaignStats
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.history import Event
from dagster_tidegate.store.ledger import Progress
from dagster_tidegate.store.records import ErrorGroup, RecordState, Selection
from dagster_tidegate.store.run_details import ListedRun, LoopProgress
from dagster_tidegate.store.runs import AttemptRow, CampaignRun

PAGE = 25
EVENTS = 15


@dataclass(frozen=True, kw_only=True)
class OpBar(Progress):
    """Progress of an op in all unfinished runs of a campaign."""

    op: str


@dataclass(frozen=True)
class CampaignRow:
    """A campaign in a list.

    Attributes:
        why: Why it is paused, and when it resumes; empty if it is not.
        held_by_people: Whether there is a hold on it to release.
    """

    situation: CampaignSituation
    why: str
    held_by_people: bool
    bars: Sequence[OpBar]


@dataclass(frozen=True)
class Campaigns:
    """A page of the list of campaigns.

    Attributes:
        matching: How many there are; None if they were not counted.
        next_after: The name after which the next page starts; None on the last one.
    """

    rows: Sequence[CampaignRow]
    matching: int | None
    next_after: str | None


@dataclass(frozen=True)
class CampaignPage:
    """A campaign and a page of its runs.

    Attributes:
        whys: Why each of them waits or has ended, by its id.
    """

    campaign: CampaignRow
    answer: Explanation
    stats: CampaignStats
    runs: Sequence[ListedRun]
    whys: Mapping[int, str | None]
    next_before: int | None


@dataclass(frozen=True)
class RunPage:
    """Everything about a campaign run.

    Attributes:
        owners: Who may control its campaign.
        defined: Whether a code location defines its campaign.
        groups: Its records by state and by what the service said.
    """

    run: CampaignRun
    progress: Sequence[LoopProgress]
    attempts: Sequence[AttemptRow]
    answer: Explanation
    owners: Collection[str]
    defined: bool
    held_by_people: bool
    groups: Mapping[RecordState, Sequence[ErrorGroup]]
    events: Sequence[Event] = field(default_factory=tuple)

    @property
    def unfinished(self) -> bool:
        """Whether it can be paused and cancelled."""
        return self.run.status in UNFINISHED

    @property
    def can_start(self) -> bool:
        """Whether it can be started."""
        return not self.unfinished or self.run.waits_for_start


def names(
    conn: Connection, *, text: str, after: str, status: str, service: str
) -> Sequence[str] | None:
    """Return the names of a page's campaigns, and one more; None if a filter needs all of them."""
    if status or service:
        return None
    return campaigns.names(conn, text=text, after=after, limit=PAGE + 1)


def campaigns_page(
    conn: Connection,
    situation: Situation,
    *,
    text: str = "",
    after: str = "",
    status: CampaignStatus | None = None,
    service: str = "",
) -> Campaigns:
    """Return a page of the campaigns by name; `situation` has at least those of the page."""
    rows = [
        each
        for name, each in sorted(situation.campaigns.items())
        if name > after
        and text.lower() in name.lower()
        and status in (None, each.status)
        and (not service or service in each.services)
    ]
    listed = rows[:PAGE]
    bars = _bars(conn, situation, [each.spec.name for each in listed])
    is_filtered = status is not None or bool(service)
    return Campaigns(
        rows=[_campaign(situation, each, bars.get(each.spec.name, ())) for each in listed],
        matching=None if is_filtered else campaigns.count(conn, text=text),
        next_after=listed[-1].spec.name if len(rows) > PAGE else None,
    )


def campaign_page(
    conn: Connection,
    situation: Situation,
    campaign: CampaignSituation,
    *,
    text: str = "",
    status: RunStatus | None = None,
    before: int | None = None,
) -> CampaignPage:
    """Return a campaign and a page of its runs, the most recently created first."""
    name, now = campaign.spec.name, situation.now
    newest = runs.newest(
        conn,
        campaign=name,
        statuses=() if status is None else (status,),
        text=text,
        before=before,
        limit=PAGE + 1,
    )
    bars = _bars(conn, situation, [name])
    return CampaignPage(
        campaign=_campaign(situation, campaign, bars.get(name, ())),
        answer=why(situation, Target(TargetKind.CAMPAIGN, name)),
        stats=campaign_stats.read(conn, now, name),
        runs=run_details.with_progress(conn, now, newest[:PAGE]),
        whys={run.id: why_waiting(situation, run) for run in newest[:PAGE]},
        next_before=newest[PAGE - 1].id if len(newest) > PAGE else None,
    )


def run_page(conn: Connection, situation: Situation, run: CampaignRun) -> RunPage:
    """Return everything about a campaign run."""
    target = Target(TargetKind.CAMPAIGN_RUN, run.name)
    campaign = situation.campaigns.get(run.campaign)
    groups: dict[RecordState, list[ErrorGroup]] = {}
    for group in records.summary(conn, situation.now, run, Selection()):
        groups.setdefault(group.state, []).append(group)
    [listed] = run_details.with_progress(conn, situation.now, [run])
    return RunPage(
        run=run,
        progress=listed.progress,
        attempts=runs.attempts(conn, run.id),
        answer=why(situation, target, run),
        owners=() if campaign is None else campaign.spec.owners,
        defined=campaign is not None,
        held_by_people=_held_by_people(situation, target),
        groups=groups,
        events=history.read(conn, name=run.name, limit=EVENTS)[::-1],
    )


def _campaign(
    situation: Situation, campaign: CampaignSituation, bars: Sequence[OpBar]
) -> CampaignRow:
    target = Target(TargetKind.CAMPAIGN, campaign.spec.name)
    return CampaignRow(
        situation=campaign,
        why=why(situation, target).summary if campaign.holds else "",
        held_by_people=_held_by_people(situation, target),
        bars=bars,
    )


def _held_by_people(situation: Situation, target: Target) -> bool:
    return any(
        hold.target == target and hold.source is not HoldSource.BREAKER for hold in situation.holds
    )


def _bars(
    conn: Connection, situation: Situation, campaigns: Sequence[str]
) -> Mapping[str, Sequence[OpBar]]:
    bars: dict[str, list[OpBar]] = {}
    for each in campaign_stats.op_progress(conn, situation.now, campaigns):
        bars.setdefault(each.campaign, []).append(
            OpBar(
                op=each.op,
                done=each.done,
                failed=each.failed,
                total=each.total or None,
                rate=each.records_per_second or None,
            )
        )
    return bars
