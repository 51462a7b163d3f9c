"""Missed ticks: which ticks a schedule missed while it was stopped, and which are run later."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from dagster_tidegate.dagster_api.repository import Repository, tick_tags, tick_times
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.store import missed_ticks
from dagster_tidegate.store.campaigns import CatchUp
from dagster_tidegate.store.missed_ticks import MissedTick, TickOutcome
from dagster_tidegate.store.takeovers import Takeover

# Dagster's scheduler runs once a minute. A tick that it had not evaluated when the schedule was
# taken over is at most this old; otherwise it would not have run anyway.
SCHEDULER_LAG = timedelta(minutes=10)
# The maximum number of missed ticks that are recorded, the newest ones.
MAX_RECORDED = 10_000


def evaluate(
    times: Iterable[datetime], catch_up: CatchUp, max_ticks: int
) -> list[tuple[datetime, TickOutcome | None, str | None]]:
    """Decide which missed ticks are run. Pure.

    Args:
        times: When they were due, the oldest first.
        catch_up: The campaign's policy.
        max_ticks: How many `CatchUp.ALL` runs at most.

    Returns:
        Each tick with its outcome and the reason for it; None if it is to be run.
    """
    newest = deque(times, maxlen=MAX_RECORDED)
    wanted = {CatchUp.NONE: 0, CatchUp.LATEST: 1, CatchUp.ALL: max_ticks}[catch_up]
    skipped = len(newest) - wanted
    reason = f"catch-up is {catch_up}"
    if catch_up is CatchUp.ALL:
        reason += f", at most {max_ticks}"
    return [
        (at, None, None) if place >= skipped else (at, TickOutcome.SKIPPED, reason)
        for place, at in enumerate(newest)
    ]


@dataclass(frozen=True)
class MissedTickPlanner:
    """Records which ticks the schedules of a gate's campaigns missed, and requests their runs."""

    gate: Gate
    repository: Repository

    def record(self, takeover: Takeover, until: datetime) -> None:
        """Record the ticks that a schedule missed, before it is given back.

        Args:
            takeover: Its takeover.
            until: When its own ticks begin again, UTC.
        """
        campaign = self.gate.campaigns.get(takeover.campaign or "")
        schedule = self.repository.schedule(takeover.label)
        if campaign is None or schedule is None:
            return
        since = [
            takeover.taken_at - SCHEDULER_LAG,
            takeover.running_since,
            self.gate.dagster.latest_tick(takeover.label, takeover.name),
        ]
        times = tick_times(schedule, max(time for time in since if time is not None), until)
        ticks = [
            MissedTick(campaign.name, schedule.name, at.astimezone(UTC), outcome, reason)
            for at, outcome, reason in evaluate(
                times, CatchUp(campaign.catch_up), campaign.max_ticks
            )
        ]
        if not ticks:
            return
        with self.gate.store.begin() as conn:
            now = self.gate.store.now(conn)
            if campaign.catch_up != CatchUp.ALL:
                for waiting in missed_ticks.waiting(conn):
                    is_same = (waiting.campaign, waiting.schedule) == (campaign.name, schedule.name)
                    if is_same and waiting.tick_at < ticks[-1].tick_at:
                        missed_ticks.resolve(
                            conn, now, waiting, TickOutcome.SKIPPED, "a later tick was missed too"
                        )
            missed_ticks.record(conn, now, ticks)

    def requests(self, tick: MissedTick) -> Sequence[dg.RunRequest]:
        """Return the runs that a missed tick requests and that Dagster does not have yet.

        If there are none, the tick is resolved: launched, skipped or failed.
        """
        schedule = self.repository.schedule(tick.schedule)
        if schedule is None:
            self._resolve(tick, TickOutcome.SKIPPED, "the schedule is no longer defined")
            return []
        try:
            requests, skip_message = self.repository.evaluate(schedule, tick.tick_at)
        except Exception as error:  # noqa: BLE001 -- an author's schedule may raise anything
            self._resolve(tick, TickOutcome.FAILED, repr(error))
            return []
        if not requests:
            reason = skip_message or "the schedule requested no run"
            self._resolve(tick, TickOutcome.SKIPPED, reason)
            return []
        tags = tick_tags(schedule, tick.tick_at)
        launched = {run.tags.get("dagster/run_key") for run in self.gate.dagster.runs(tags=tags)}
        missing = []
        for request in requests:
            key = f"tidegate/{tick.schedule}/{tick.tick_at.isoformat()}/{request.run_key or ''}"
            if launched.isdisjoint({request.run_key, key}):
                missing.append(
                    request.with_replaced_attrs(
                        run_key=key,
                        job_name=request.job_name or schedule.job_name,
                        tags={**request.tags, **tags},
                    )
                )
        if not missing:
            self._resolve(tick, TickOutcome.LAUNCHED, None)
        return missing

    def _resolve(self, tick: MissedTick, outcome: TickOutcome, reason: str | None) -> None:
        with self.gate.store.begin() as conn:
            now = self.gate.store.now(conn)
            missed_ticks.resolve(conn, now, tick, outcome, reason)
