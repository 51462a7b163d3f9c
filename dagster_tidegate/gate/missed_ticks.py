"""Missed ticks: which ticks a schedule missed while it was stopped, and which are run later."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

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
    times: Iterable[datetime],
    catch_up: CatchUp,
    max_ticks: int,
    window: Callable[[datetime], str | None] = lambda _: None,
) -> list[tuple[datetime, TickOutcome | None, str | None]]:
    """Decide which missed ticks are run. Pure.

    Args:
        times: When they were due, the oldest first.
        catch_up: The campaign's policy.
        max_ticks: How many are run at most.
        window: Returns the time partition that contains a time, for `CatchUp.PARTITIONS`.

    Returns:
        Each tick with its outcome and the reason for it; None if it is to be run.
    """
    newest = deque(times, maxlen=MAX_RECORDED)
    same = {
        CatchUp.NONE: lambda _: None,
        CatchUp.LATEST: lambda _: None,
        CatchUp.PARTITIONS: window,
        CatchUp.ALL: lambda at: at,
    }[catch_up]
    latest = {same(at): at for at in newest}  # a later one replaces an earlier one
    limit = 0 if catch_up is CatchUp.NONE else max_ticks
    wanted = set(list(latest.values())[-limit:]) if limit else set()
    evaluated: list[tuple[datetime, TickOutcome | None, str | None]] = []
    for at in newest:
        reason = f"catch-up is {catch_up}"
        if catch_up is CatchUp.PARTITIONS and latest[same(at)] != at:
            reason += ", and a later tick is of the same partition"
        elif catch_up in (CatchUp.PARTITIONS, CatchUp.ALL):
            reason += f", at most {max_ticks}"
        evaluated.append((at, None, None) if at in wanted else (at, TickOutcome.SKIPPED, reason))
    return evaluated


@dataclass(frozen=True)
class MissedTickPlanner:
    """Records which ticks the schedules of a gate's campaigns missed, and requests their runs."""

    gate: Gate
    repository: Repository

    def record(self, takeover: Takeover, until: datetime) -> None:
        """Record the ticks that a schedule missed, before it is given back.

        Args:
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
        catch_up = CatchUp(campaign.catch_up)
        window = partial(self.repository.window, schedule.job_name)
        ticks = [
            MissedTick(campaign.name, schedule.name, at.astimezone(UTC), outcome, reason)
            for at, outcome, reason in evaluate(times, catch_up, campaign.max_ticks, window)
        ]
        if not ticks:
            return
        with self.gate.store.begin() as conn:
            now = self.gate.store.now(conn)
            for waiting in missed_ticks.waiting(conn):
                is_same = (waiting.campaign, waiting.schedule) == (campaign.name, schedule.name)
                if is_same and _replaced(waiting, ticks, catch_up, window):
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


def _replaced(
    waiting: MissedTick,
    missed: Sequence[MissedTick],
    catch_up: CatchUp,
    window: Callable[[datetime], str | None],
) -> bool:
    """Whether a tick missed in an earlier outage is not to be run, since later ones were missed."""
    later = [tick.tick_at for tick in missed if tick.tick_at > waiting.tick_at]
    if catch_up is CatchUp.PARTITIONS:
        return window(waiting.tick_at) in map(window, later)
    return bool(later) and catch_up is not CatchUp.ALL
