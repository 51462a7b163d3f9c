"""The pages of records: what failed or is in doubt, grouped by what the service said."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.why import why
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import records, run_problems, runs
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.records import ErrorGroup, FoundRecord, RecordState, Selection
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.web.pages.rendering import without_command

TROUBLE = (RecordState.SUSPECT, RecordState.FAILED, RecordState.IN_DOUBT)
RUNS = 10
RECORDS = 50
MAX_GROUPS = 8


@dataclass(frozen=True)
class Trouble:
    """A campaign run with records that need a look.

    Attributes:
        groups: Its records in one of the states of `TROUBLE`, by what the service said.
        more: How many groups are not shown.
        owners: Who may control its campaign.
        busy: Why its records can't be tried again now; empty if they can.
    """

    run: CampaignRun
    groups: Sequence[ErrorGroup]
    more: int
    owners: Collection[str]
    busy: str

    @property
    def count(self) -> int:
        """How many records failed."""
        return sum(g.count for g in self.groups if g.state is not RecordState.IN_DOUBT)


@dataclass(frozen=True)
class RecordsPage:
    """A page of campaign runs with records that need a look."""

    runs: Sequence[Trouble]
    next_before: int | None


@dataclass(frozen=True)
class RecordsOfRun:
    """A page of the records of a campaign run.

    Attributes:
        counts: How many records have each state.
        next_after: The op and key after which the next page starts; None on the last one.
    """

    trouble: Trouble
    counts: Mapping[RecordState, int]
    rows: Sequence[FoundRecord]
    next_after: tuple[str, str] | None


def records_page(
    conn: Connection, situation: Situation, *, text: str = "", before: int | None = None
) -> RecordsPage:
    """Return campaign runs with records that need a look, the most recently created first.

    Those in doubt come first of all, on the first page.
    """
    now = situation.now
    failed = run_problems.with_failed_records(conn, text=text, before=before, limit=RUNS + 1)
    listed = list(failed[:RUNS])
    if before is None:
        cut_off = run_problems.in_doubt(conn, now)
        ids = {each.id for each in listed}
        interrupted = [runs.get(conn, each.campaign_run) for each in cut_off]
        listed[:0] = [
            run
            for run in interrupted
            if run is not None and run.id not in ids and text.lower() in run.name.lower()
        ]
    troubles = [_trouble(conn, situation, run) for run in listed]
    return RecordsPage(
        runs=[each for each in troubles if each.groups],
        next_before=failed[RUNS - 1].id if len(failed) > RUNS else None,
    )


def records_of_run(
    conn: Connection,
    situation: Situation,
    run: CampaignRun,
    *,
    states: Sequence[RecordState] = (),
    text: str = "",
    said: str = "",
    keys: Sequence[str] = (),
    after: tuple[str, str] | None = None,
) -> RecordsOfRun:
    """Return a page of the records of a campaign run, by op and key."""
    now = situation.now
    selection = Selection(states, text or None, keys, None, said or None)
    rows = records.read(conn, now, run, selection, after=after, limit=RECORDS + 1)
    counts: dict[RecordState, int] = {}
    for group in records.summary(conn, now, run, Selection()):
        counts[group.state] = counts.get(group.state, 0) + group.count
    last = rows[RECORDS - 1] if len(rows) > RECORDS else None
    return RecordsOfRun(
        trouble=_trouble(conn, situation, run),
        counts=counts,
        rows=rows[:RECORDS],
        next_after=None if last is None else (last.op, last.key),
    )


def _trouble(conn: Connection, situation: Situation, run: CampaignRun) -> Trouble:
    groups = records.summary(conn, situation.now, run, Selection(TROUBLE))
    campaign = situation.campaigns.get(run.campaign)
    answer = why(situation, Target(TargetKind.CAMPAIGN_RUN, run.name), run)
    busy = ""
    if campaign is None:
        busy = "no code location defines their campaign"
    elif answer.paused:
        busy = without_command(answer.summary).removeprefix("paused: ")
    elif run.status in (RunStatus.PENDING, RunStatus.PROCESSING):
        busy = f"the campaign run is {run.status}"
    return Trouble(
        run=run,
        groups=groups[:MAX_GROUPS],
        more=max(0, len(groups) - MAX_GROUPS),
        owners=() if campaign is None else campaign.spec.owners,
        busy=busy,
    )
