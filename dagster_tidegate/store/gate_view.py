"""What a tick of the gate reads from the store, all in one statement.

A tick in which nothing changed may cost five queries, most of which go to Dagster, and this is one
statement for nine tables. It is also a single moment, so that no hold is missing beside the run
that it paused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache

import sqlalchemy as sa

from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.holds import Hold, in_effect
from dagster_tidegate.pools import Adopted
from dagster_tidegate.statuses import UNFINISHED, RunStatus
from dagster_tidegate.store import breakers, campaigns, heartbeats, holds, runs, takeovers
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.store.missed_ticks import MissedTick
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.store.snapshot_query import SnapshotQuery
from dagster_tidegate.store.takeovers import Takeover
from dagster_tidegate.store.windows import PlannedWindow

_WAITING = (RunStatus.PAUSED, RunStatus.PENDING)


@dataclass(frozen=True)
class GateView:
    """What the store says to a gate at one moment. Times are UTC.

    Attributes:
        newest_takeover: Id of the newest takeover of all times, 0 before the first; see
            `takeovers.take`.
        breakers: The breaker of each service, by its name.
        cursor: Up to when the location has read Dagster's run changes; None before its first
            heartbeat.
        paused: The paused campaign runs, in the order in which they resume.
        active: How many pending and processing campaign runs of each campaign have an attempt. A
            run without one is not counted: it waits in Dagster's queue anyway.
        waiting: How many campaign runs of each campaign are paused or pending.
        adopted: The services that pools stand for whose names don't say it, in any campaign.
        missed: The missed ticks that are yet to be launched, the oldest first.
        windows: The maintenance windows of all services, in any order.
    """

    now: datetime
    holds: Sequence[Hold] = ()
    takeovers: Sequence[Takeover] = ()
    newest_takeover: int = 0
    breakers: Mapping[str, BreakerStatus] = field(default_factory=dict)
    adopted: Adopted = field(default_factory=dict)
    cursor: datetime | None = None
    windows: Sequence[PlannedWindow] = ()
    paused: Sequence[CampaignRun] = ()
    active: Mapping[str, int] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)
    missed: Sequence[MissedTick] = ()


def read(store: Store, conn: Connection, location: str, *, resuming: bool) -> GateView:
    """Read what the gate of a location needs.

    Args:
        resuming: Whether to read `paused`, `active`, `waiting` and `missed` too.
    """
    now, rows = _query(resuming=resuming).read(store, conn, location=location)
    return GateView(
        now=now,
        holds=in_effect(map(holds.from_row, rows["holds"]), now),
        takeovers=sorted(map(takeovers.from_row, rows["takeovers"]), key=lambda each: each.id),
        newest_takeover=rows["newest_takeover"][0]["id"] or 0,
        breakers={row["name"]: breakers.from_row(row) for row in rows["services"]},
        adopted=campaigns.by_pool(rows["adopted"]),
        windows=[PlannedWindow(**values) for values in rows["windows"]],
        cursor=rows["heartbeat"][0]["cursor"] if rows["heartbeat"] else None,
        paused=sorted(map(runs.from_row, rows.get("paused", ())), key=runs.resume_order),
        active={values["campaign"]: values["active"] for values in rows.get("unfinished", ())},
        waiting={values["campaign"]: values["waiting"] for values in rows.get("unfinished", ())},
        missed=sorted(
            (MissedTick(**values) for values in rows.get("missed", ())),
            key=lambda tick: (tick.tick_at, tick.campaign, tick.schedule),
        ),
    )


@cache
def _query(*, resuming: bool) -> SnapshotQuery:
    beat, run, tick = t.heartbeats.c, t.campaign_runs.c, t.missed_ticks.c
    parts = {
        "holds": holds.UNRELEASED,
        "takeovers": takeovers.LIVE,
        "newest_takeover": takeovers.NEWEST_ID,
        "services": sa.select(t.services),
        "adopted": campaigns.ADOPTED,
        "windows": sa.select(t.windows),
        "heartbeat": sa.select(beat.cursor).where(
            beat.location == sa.bindparam("location"), beat.part == heartbeats.PAUSE
        ),
    }
    if resuming:
        working = run.status.in_([RunStatus.PENDING, RunStatus.PROCESSING]) & (run.attempt > 0)
        parts |= {
            "paused": sa.select(t.campaign_runs).where(run.status == RunStatus.PAUSED),
            "unfinished": sa.select(
                run.campaign,
                sa.func.count().filter(working).label("active"),
                sa.func.count().filter(run.status.in_(_WAITING)).label("waiting"),
            )
            .where(run.status.in_(UNFINISHED))
            .group_by(run.campaign),
            "missed": sa.select(tick.campaign, tick.schedule, tick.tick_at).where(
                tick.outcome.is_(None)
            ),
        }
    return SnapshotQuery(**parts)
