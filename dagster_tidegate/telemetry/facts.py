"""What the metrics are made of, read from the store in a handful of queries."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from dagster_tidegate.control import situation
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.holds import HoldSource, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import alerts, ledger
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.takeovers import TakeoverKind


@dataclass(frozen=True)
class Progress:
    """How far an op is, in all campaign runs of a campaign that are processing or paused.

    Attributes:
        done: Records that are done.
        failed: Records that failed.
        expected: How many there are, where that is known.
        rate: Records that are settled in a second, of late.
    """

    done: int
    failed: int
    expected: int
    rate: float


@dataclass(frozen=True)
class Facts:
    """What the metrics are made of. Times are UTC.

    Attributes:
        situation: What the store says of the fleet.
        holds: How many live holds there are, by source and kind of target.
        oldest_holds: When the oldest live hold of each source was placed; None where none is.
        takeovers: How many takeovers there are, by kind.
        paused_since: When the first run of a campaign paused, of those that are paused.
        progress: How far the ops of the campaigns are, by campaign and op.
        alerts: How the sending of alerts goes.
        live_alerts: How many alerts of each kind last.
    """

    situation: Situation
    holds: dict[tuple[str, ...], float]
    oldest_holds: Mapping[str, datetime | None]
    takeovers: dict[tuple[str, ...], float]
    paused_since: Mapping[str, datetime]
    progress: Mapping[tuple[str, ...], Progress]
    alerts: alerts.Counts
    live_alerts: dict[tuple[str, ...], float]


def read(conn: sa.Connection, now: datetime) -> Facts:
    """Read the facts.

    Args:
        conn: A connection of the store that reads.
        now: The database's time, UTC.
    """
    seen = situation.read(conn, now)
    holds = Counter((hold.source.value, hold.target.kind.value) for hold in seen.holds)
    taken = Counter(takeover.kind.value for takeover in seen.takeovers)
    placed = {
        source.value: min((h.placed_at for h in seen.holds if h.source is source), default=None)
        for source in HoldSource
    }
    counts = alerts.counts(conn, now)
    return Facts(
        situation=seen,
        holds={
            (source.value, kind.value): holds[source.value, kind.value]
            for source in HoldSource
            for kind in TargetKind
            if source is HoldSource.OPERATOR or kind is TargetKind.SERVICE
        },
        oldest_holds=placed,
        takeovers={(kind.value,): taken[kind.value] for kind in TakeoverKind},
        paused_since=_paused_since(conn),
        progress=_progress(conn, now),
        alerts=counts,
        live_alerts={(kind,): count for kind, count in counts.live.items()},
    )


def _paused_since(conn: sa.Connection) -> Mapping[str, datetime]:
    run = t.campaign_runs.c
    rows = conn.execute(
        sa.select(run.campaign, sa.func.min(run.paused_at).label("since"))
        .where(run.status == RunStatus.PAUSED)
        .group_by(run.campaign)
    )
    return {row.campaign: row.since for row in rows if row.since is not None}


def _progress(conn: sa.Connection, now: datetime) -> Mapping[tuple[str, ...], Progress]:
    run, progress = t.campaign_runs.c, t.progress.c
    processing = run.status == RunStatus.PROCESSING
    rows = conn.execute(
        sa.select(
            run.campaign,
            progress.op,
            sa.func.sum(progress.done).label("done"),
            sa.func.sum(progress.failed).label("failed"),
            sa.func.coalesce(sa.func.sum(progress.total), 0).label("expected"),
            sa.func.coalesce(sa.func.sum(sa.case((processing, ledger.rate(now)))), 0.0).label(
                "rate"
            ),
        )
        .join(t.progress, progress.campaign_run == run.id)
        .where(run.status.in_((RunStatus.PROCESSING, RunStatus.PAUSED)))
        .group_by(run.campaign, progress.op)
    )
    return {
        (row.campaign, row.op): Progress(row.done, row.failed, row.expected, row.rate)
        for row in rows
    }
