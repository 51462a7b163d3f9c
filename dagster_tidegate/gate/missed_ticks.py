"""Schedule ticks that were missed while a schedule was stopped: which, and what becomes of them."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from dagster_tidegate.dagster_api.instance import Repository, evaluate, tick_tags, tick_times
from dagster_tidegate.gate.observe import Gate
from dagster_tidegate.plugin.campaign import Campaign, CatchUp
from dagster_tidegate.store import missed_ticks
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.missed_ticks import MissedTick, TickOutcome
from dagster_tidegate.store.takeovers import Takeover

# Dagster's scheduler looks once a minute; a tick that it had not yet seen when the schedule was
# taken over is at most so old, or else it would not have run at that time anyway.
SCHEDULER_LAG = timedelta(minutes=10)
# Of a schedule that was stopped for very long, the newest so many are written down.
MAX_RECORDED = 10_000


def judge(
    times: Iterable[datetime], catch_up: CatchUp, most: int
) -> list[tuple[datetime, TickOutcome | None, str | None]]:
    """Decide what becomes of missed ticks. Pure.

    Args:
        times: When they were due, the oldest first.
        catch_up: What the campaign wants.
        most: How many are run at most, with `CatchUp.ALL`.

    Returns:
        Each tick with its outcome and the reason for it; None where it is to be run.
    """
    newest = deque(times, maxlen=MAX_RECORDED)
    wanted = {CatchUp.NONE: 0, CatchUp.LATEST: 1, CatchUp.ALL: most}[catch_up]
    first_run = len(newest) - wanted
    reason = f"catch-up is {catch_up}" + (f", at most {most}" if catch_up is CatchUp.ALL else "")
    return [
        (at, None, None) if place >= first_run else (at, TickOutcome.SKIPPED, reason)
        for place, at in enumerate(newest)
    ]


@dataclass(frozen=True)
class MissedTickPlanner:
    """Writes down which ticks the schedules of some campaigns missed, and runs them later.

    Args:
        gate: What the gate works with.
        repository: The repository of the campaigns.
        campaigns: The campaigns, by name.
    """

    gate: Gate
    repository: Repository
    campaigns: Mapping[str, Campaign]

    def record(self, takeover: Takeover, until: datetime) -> None:
        """Write down the ticks that a schedule missed, before it is given back.

        Args:
            takeover: Its takeover.
            until: From when on it has its ticks again, UTC.
        """
        campaign = self.campaigns.get(takeover.campaign or "")
        definition = self.repository.definition
        if campaign is None or not definition.has_schedule_def(takeover.label):
            return
        since = [takeover.taken_at - SCHEDULER_LAG]
        if takeover.running_since is not None:
            since.append(takeover.running_since)
        latest = self.gate.dagster.latest_tick(takeover.label, takeover.name)
        if latest is not None:
            since.append(latest)
        times = tick_times(definition.get_schedule_def(takeover.label), max(since), until)
        judged = judge(times, campaign.catch_up, campaign.most_ticks)
        with self.gate.store.begin() as conn:
            now = self.gate.store.now(conn)
            if judged and campaign.catch_up is not CatchUp.ALL:
                for older in missed_ticks.waiting(conn):
                    of_this = (older.campaign, older.schedule) == (campaign.name, takeover.label)
                    if of_this and older.tick_at < judged[-1][0]:
                        missed_ticks.settle(
                            conn, now, older, TickOutcome.SKIPPED, "a later tick was missed too"
                        )
            missed_ticks.record(
                conn,
                now,
                [
                    MissedTick(campaign.name, takeover.label, at.astimezone(UTC), outcome, reason)
                    for at, outcome, reason in judged
                ],
            )

    def requests(self, tick: MissedTick, instance: dg.DagsterInstance) -> Sequence[dg.RunRequest]:
        """Return the runs that a missed tick asks for and that Dagster does not have yet.

        A tick of which Dagster has all runs, or that asks for none, is settled.

        Args:
            tick: The tick.
            instance: The Dagster instance.
        """
        definition = self.repository.definition
        if not definition.has_schedule_def(tick.schedule):
            self._settle(tick, TickOutcome.SKIPPED, "the schedule is not in the code any more")
            return []
        schedule = definition.get_schedule_def(tick.schedule)
        try:
            wanted, skip_message = evaluate(schedule, tick.tick_at, instance, definition)
        except Exception as error:  # noqa: BLE001 -- an author's schedule may raise anything
            self._settle(tick, TickOutcome.FAILED, repr(error))
            return []
        if not wanted:
            self._settle(tick, TickOutcome.SKIPPED, skip_message or "the schedule asked for no run")
            return []
        tags = tick_tags(schedule, tick.tick_at)
        there = {run.tags.get("dagster/run_key") for run in self.gate.dagster.runs(tags=tags)}
        missing = []
        for request in wanted:
            key = f"tidegate/{tick.schedule}/{tick.tick_at.isoformat()}/{request.run_key or ''}"
            if request.run_key not in there and key not in there:
                missing.append(
                    request.with_replaced_attrs(
                        run_key=key,
                        job_name=request.job_name or schedule.job_name,
                        tags={**request.tags, **tags},
                    )
                )
        if not missing:
            self._settle(tick, TickOutcome.LAUNCHED, None)
        return missing

    def _settle(self, tick: MissedTick, outcome: TickOutcome, reason: str | None) -> None:
        store: Store = self.gate.store
        with store.begin() as conn:
            missed_ticks.settle(conn, store.now(conn), tick, outcome, reason)
