"""Reads what the rules look at from the store."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dagster_tidegate.control import situation
from dagster_tidegate.control.situation import CampaignSituation, Situation
from dagster_tidegate.holds import Hold, TargetKind
from dagster_tidegate.settings import AlertSettings
from dagster_tidegate.store import alerts, campaigns, holds, run_problems
from dagster_tidegate.store.alerts import Alert
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.event_reader import EventReader, newest
from dagster_tidegate.store.history import Event
from dagster_tidegate.store.run_problems import EndedAttempt, FailedRecords, InDoubt, PausedRuns

BURST_WITHIN = timedelta(hours=1)
"""The period within which `rules.BURST` messages about a topic are sent without delay."""
WITHHELD_MAX_AGE = timedelta(days=7)
"""Messages withheld longer ago, while no sender was running, are dropped."""
PROBLEMS_EVERY_S = 60.0
MAX_EVENTS = 500
MAX_LEDGERS = 20


@dataclass(frozen=True)
class RunProblems:
    """Problems of campaign runs. Reading them is slow, so it is done once a minute.

    Attributes:
        failed_records: Campaign runs that have ended with failed records.
        failed: Reasons of the campaign runs that failed in the attempt after a pause, by name.
        paused: Runs that paused long ago and have no hold of their own, by campaign.
    """

    in_doubt: Sequence[InDoubt] = ()
    failed_records: Sequence[FailedRecords] = ()
    failed: Mapping[str, str | None] = field(default_factory=dict)
    paused: Mapping[str, PausedRuns] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """The input of the rules.

    Attributes:
        events: The events since the previous snapshot, the oldest first.
        last_event: Id of the last event up to this snapshot.
        alerts: The live and recent alerts, the oldest first.
        problems: Problems of campaign runs; None if they were not read this time.
        ended_holds: The holds that ended recently, the latest last.
        defined_at: When each code location last reported a change of its campaigns (UTC).
    """

    situation: Situation
    events: Sequence[Event] = ()
    last_event: int = 0
    alerts: Sequence[Alert] = ()
    problems: RunProblems | None = None
    ended_holds: Sequence[Hold] = ()
    defined_at: Mapping[str, datetime] = field(default_factory=dict)

    def campaigns_of(self, service: str) -> Sequence[CampaignSituation]:
        """Return the campaigns that need a service."""
        return [each for each in self.situation.campaigns.values() if service in each.services]

    def campaigns_under(self, hold: Hold) -> Sequence[CampaignSituation]:
        """Return the campaigns that a live hold covers as a whole."""
        if hold.target.kind is TargetKind.CAMPAIGN_RUN:
            return ()
        return self.situation.campaigns_by_hold.get(hold.id, ())


class SnapshotReader:
    """Reads snapshots; keep one for as long as you read."""

    def __init__(self, settings: AlertSettings) -> None:
        self._settings = settings
        self._events = EventReader()
        self._problems_due_ticks = float("-inf")
        # Records in doubt of attempts that have ended, which no longer change.
        self._in_doubt: dict[EndedAttempt, int] = {}

    def read(self, conn: Connection, now: datetime, *, after: int | None) -> Snapshot:
        """Read a snapshot.

        Args:
            after: Id of the last event that was read; None skips all past events.
        """
        after = newest(conn) if after is None else after
        # Events first: the situation is then at least as recent.
        events = self._events.read(conn, after=after, limit=MAX_EVENTS)
        spacing = timedelta(seconds=self._settings.repeat_after_s)
        resume_since = now - timedelta(seconds=self._settings.resume_within_s)
        return Snapshot(
            situation=situation.read(conn, now),
            events=events,
            last_event=events[-1].id if events else after,
            alerts=alerts.recent(
                conn,
                now - max(BURST_WITHIN, spacing),
                withheld_since=now - WITHHELD_MAX_AGE,
            ),
            problems=self._read_problems(conn, now, resume_since),
            ended_holds=holds.ended_since(conn, now, resume_since),
            defined_at=campaigns.defined_at(conn),
        )

    def _read_problems(
        self, conn: Connection, now: datetime, resume_since: datetime
    ) -> RunProblems | None:
        if time.monotonic() < self._problems_due_ticks:
            return None
        problems = RunProblems(
            in_doubt=self._read_in_doubt(conn, now),
            failed_records=run_problems.failed_records(conn, now),
            failed=run_problems.failed_after_pause(conn, now),
            paused=run_problems.paused_without_hold(conn, now, before=resume_since),
        )
        self._problems_due_ticks = time.monotonic() + PROBLEMS_EVERY_S
        return problems

    def _read_in_doubt(self, conn: Connection, now: datetime) -> Sequence[InDoubt]:
        before = now - timedelta(seconds=self._settings.in_doubt_after_s)
        attempts = run_problems.ended_attempts(conn, now, before=before)
        # Each count reads a whole ledger, so that only some are counted at a time.
        uncounted = [attempt for attempt in attempts if attempt not in self._in_doubt]
        counts = {each: self._in_doubt[each] for each in attempts if each in self._in_doubt}
        for attempt in uncounted[:MAX_LEDGERS]:
            counts[attempt] = run_problems.records_in_doubt(conn, attempt.campaign_run)
        self._in_doubt = counts
        return [
            InDoubt(attempt.campaign_run, attempt.name, records, attempt.ended_at)
            for attempt, records in counts.items()
            if records
        ]
