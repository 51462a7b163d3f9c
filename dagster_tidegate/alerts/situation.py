"""What the rules look at, read from the store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from dagster_tidegate.control.situation import Situation
from dagster_tidegate.holds import Hold, SystemActor, TargetKind, run_name
from dagster_tidegate.settings import AlertSettings
from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import alerts, holds
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.alerts import Alert
from dagster_tidegate.store.history import Event

WITHIN = timedelta(hours=24)
"""Campaign runs that ended longer ago are not looked at."""
BURST_WITHIN = timedelta(hours=1)
"""So many messages of a kind about a thing come at once, within this time: `rules.BURST`."""
MEMORY = timedelta(days=7)
"""What was withheld longer ago, while no sender was at work, is not told any more."""
MAX_LEDGERS = 20
MAX_HOLDS = 1000


@dataclass(frozen=True)
class InDoubt:
    """Records of a campaign run that may or may not have reached their service.

    Attributes:
        run: Name of the campaign run.
        records: How many.
        since: Since when (UTC).
    """

    run: str
    records: int
    since: datetime


@dataclass(frozen=True)
class Waiting:
    """Paused runs of a campaign that have no hold of their own.

    Attributes:
        runs: How many.
        since: When the first of them paused (UTC).
        moved_at: When a run of the campaign last changed its status (UTC).
    """

    runs: int
    since: datetime
    moved_at: datetime


@dataclass(frozen=True)
class Trouble:
    """What went wrong with campaign runs; looked for now and then, since it takes longer.

    Attributes:
        in_doubt: Records that are in doubt, by campaign run.
        failed: Campaign runs that failed in the attempt after a pause, and why.
        waiting: Paused runs, by campaign.
    """

    in_doubt: Sequence[InDoubt] = ()
    failed: Mapping[str, str | None] = field(default_factory=dict)
    waiting: Mapping[str, Waiting] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """All that the rules look at.

    Attributes:
        situation: What the store says of the fleet.
        events: What happened since the last time, the oldest first.
        alerts: The alerts that last or are recent, the oldest first.
        trouble: What went wrong with campaign runs; None where that was not looked for.
        released: The holds that were released lately, where that matters.
        defined_at: When a code location last told of a change of its campaigns (UTC).
    """

    situation: Situation
    events: Sequence[Event] = ()
    alerts: Sequence[Alert] = ()
    trouble: Trouble | None = None
    released: Sequence[Hold] = ()
    defined_at: Mapping[str, datetime] = field(default_factory=dict)


def recent_alerts(conn: sa.Connection, now: datetime, settings: AlertSettings) -> Sequence[Alert]:
    """Return the alerts that the rules look at, the oldest first.

    Args:
        conn: A connection of the store.
        now: The database's time, UTC.
        settings: How often what is told.
    """
    spacing = max(BURST_WITHIN, timedelta(seconds=settings.repeat_after_s))
    return alerts.recent(conn, now - spacing, withheld_since=now - MEMORY)


def defined_at(conn: sa.Connection) -> Mapping[str, datetime]:
    """Return when each code location last told of a change of its campaigns (UTC)."""
    c = t.campaigns.c
    rows = conn.execute(
        sa.select(c.location, sa.func.max(c.seen_at).label("at")).group_by("location")
    )
    return {row.location: row.at for row in rows}


def released(conn: sa.Connection, now: datetime, since: datetime) -> Sequence[Hold]:
    """Return the holds that are over since, the latest first; so many at most.

    The gate writes down that a hold expired. One that it has not seen yet is over all the same.

    Args:
        conn: A connection of the store.
        now: The database's time, UTC.
        since: The earliest end (UTC).
    """
    h = t.holds.c
    at = sa.func.coalesce(h.released_at, h.expires_at)
    found = sa.select(t.holds).where(at >= since, at <= now).order_by(at.desc()).limit(MAX_HOLDS)

    ended = [holds.from_row(row._mapping) for row in conn.execute(found)]
    return [
        hold
        if hold.released_at is not None
        else replace(hold, released_at=hold.expires_at, released_by=SystemActor.EXPIRY)
        for hold in ended
    ]


class Troubles:
    """Looks for trouble; remembers ledgers that it has counted, which do not change any more."""

    def __init__(self) -> None:
        self._counted: dict[tuple[int, int, datetime], int] = {}

    def read(self, conn: sa.Connection, now: datetime, settings: AlertSettings) -> Trouble:
        """Look at campaign runs that are paused or ended lately, and at those cut off.

        Args:
            conn: A connection of the store that reads.
            now: The database's time, UTC.
            settings: What counts as trouble.
        """
        before = now - timedelta(seconds=settings.resume_within_s)
        return Trouble(
            in_doubt=self._in_doubt(conn, now, timedelta(seconds=settings.in_doubt_after_s)),
            failed=_failed(conn, now),
            waiting=_waiting(conn, now, before),
        )

    def _in_doubt(self, conn: sa.Connection, now: datetime, after: timedelta) -> Sequence[InDoubt]:
        run, attempt, loop = t.campaign_runs.c, t.attempts.c, t.loops.c
        lapsed = (
            sa.select(sa.func.max(loop.lease_until))
            .where(loop.campaign_run == run.id, loop.attempt == run.attempt)
            .scalar_subquery()
        )
        since = sa.func.coalesce(attempt.ended_at, lapsed).label("since")
        ended = run.status.in_((RunStatus.PAUSED, RunStatus.FAILED, RunStatus.CANCELLED))
        rows = conn.execute(
            sa.select(run.id, run.campaign, run.partition, run.attempt, since)
            .join(t.attempts, (attempt.campaign_run == run.id) & (attempt.number == run.attempt))
            .where(
                run.pruned_at.is_(None),
                (ended & (run.changed_at > now - WITHIN)) | (run.status == RunStatus.PROCESSING),
            )
            .order_by(run.changed_at.desc())
        ).all()
        found, counted, left = [], {}, MAX_LEDGERS
        for row in rows:
            if row.since is None or row.since > now - after:
                continue
            key = (row.id, row.attempt, row.since)
            records = self._counted.get(key)
            if records is None:
                if not left:
                    continue
                left -= 1
                records = _started(conn, row.id)
            counted[key] = records
            if records:
                found.append(InDoubt(run_name(row.campaign, row.partition), records, row.since))
        self._counted = counted
        return found


def _started(conn: sa.Connection, campaign_run: int) -> int:
    """How many records were begun and have no result."""
    ledger = t.ledger.c
    query = sa.select(sa.func.count()).select_from(t.ledger)
    wanted = query.where(ledger.campaign_run == campaign_run, ledger.status == RecordStatus.STARTED)
    return conn.scalar(wanted) or 0


def _failed(conn: sa.Connection, now: datetime) -> Mapping[str, str | None]:
    run, attempt = t.campaign_runs.c, t.attempts.c
    rows = conn.execute(
        sa.select(run.campaign, run.partition, run.reason)
        .join(t.attempts, (attempt.campaign_run == run.id) & (attempt.number == run.attempt - 1))
        .where(
            run.status == RunStatus.FAILED,
            run.changed_at > now - WITHIN,
            attempt.outcome == RunStatus.PAUSED,
        )
    )
    return {run_name(row.campaign, row.partition): row.reason for row in rows}


def _waiting(conn: sa.Connection, now: datetime, before: datetime) -> Mapping[str, Waiting]:
    run, hold = t.campaign_runs.c, t.holds.c
    held = sa.exists().where(
        hold.released_at.is_(None),
        hold.expires_at.is_(None) | (hold.expires_at > now),
        hold.target_kind == TargetKind.CAMPAIGN_RUN,
        hold.target_name == run.campaign + "/" + run.partition,
    )
    rows = conn.execute(
        sa.select(
            run.campaign,
            sa.func.count().label("runs"),
            sa.func.min(run.paused_at).label("since"),
        )
        .where(run.status == RunStatus.PAUSED, run.paused_at < before, ~held)
        .group_by(run.campaign)
    ).all()
    moved = conn.execute(
        sa.select(run.campaign, sa.func.max(run.changed_at).label("at"))
        .where(run.campaign.in_([row.campaign for row in rows]))
        .group_by(run.campaign)
    )
    moved_at = {row.campaign: row.at for row in moved}
    return {row.campaign: Waiting(row.runs, row.since, moved_at[row.campaign]) for row in rows}
