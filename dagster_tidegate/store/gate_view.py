"""What a tick of the gate reads from the store, all in one statement.

A tick in which nothing changed may cost five queries, most of which go to Dagster, and this is one
statement for nine tables. It is also a single moment, so that no hold is missing beside the run
that it paused.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.holds import Hold
from dagster_tidegate.pools import Adopted
from dagster_tidegate.statuses import UNFINISHED, RunStatus
from dagster_tidegate.store import campaigns, heartbeats, holds, runs, takeovers
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.store.missed_ticks import MissedTick
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.store.takeovers import Takeover
from dagster_tidegate.store.windows import PlannedWindow

_WAITING = (RunStatus.PAUSED, RunStatus.PENDING)


@dataclass(frozen=True)
class GateView:
    """What the store says to a gate at one moment. Times are UTC.

    Attributes:
        newest_takeover: Id of the newest takeover of all times, 0 before the first; see
            `takeovers.take`.
        states: The state of each breaker, by service.
        recovered_at: When each breaker last closed, by service, where it ever did.
        throttled: The services whose breakers last opened since the service throttled.
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
    states: Mapping[str, str] = field(default_factory=dict)
    recovered_at: Mapping[str, datetime] = field(default_factory=dict)
    throttled: Collection[str] = ()
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
    has_clock = store.clock is None and not store.is_sqlite
    names = {
        part: [column.name for column in select.selected_columns]
        for part, select in _parts(resuming=resuming, has_clock=has_clock).items()
    }
    union = _union(resuming=resuming, has_clock=has_clock)
    rows: dict[str, list[dict[str, Any]]] = {part: [] for part in names}
    for row in conn.execute(union, {"location": location}).mappings():
        part = row["part"]
        rows[part].append({name: row[f"{part}_{name}"] for name in names[part]})
    now = rows["clock"][0]["now"].astimezone(UTC) if has_clock else store.now(conn)
    unreleased = [holds.from_row(values) for values in rows["holds"]]
    # A part of a UNION has no order.
    return GateView(
        now=now,
        holds=sorted((hold for hold in unreleased if hold.live(now)), key=holds.age),
        takeovers=sorted(map(takeovers.from_row, rows["takeovers"]), key=lambda each: each.id),
        newest_takeover=rows["newest_takeover"][0]["id"] or 0,
        states={values["name"]: values["state"] for values in rows["states"]},
        recovered_at={
            values["name"]: closed_at
            for values in rows["states"]
            if (closed_at := values["closed_at"]) is not None
        },
        throttled=[
            values["name"] for values in rows["states"] if values["cause"] == VerdictKind.THROTTLED
        ],
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
def _parts(*, resuming: bool, has_clock: bool) -> Mapping[str, sa.Select]:
    beat, run, tick = t.heartbeats.c, t.campaign_runs.c, t.missed_ticks.c
    parts = {
        "holds": sa.select(t.holds).where(t.holds.c.released_at.is_(None)),
        "takeovers": takeovers.LIVE,
        "newest_takeover": takeovers.NEWEST_ID,
        "states": sa.select(
            t.services.c.name, t.services.c.state, t.services.c.closed_at, t.services.c.cause
        ),
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
    if has_clock:
        clock = sa.func.clock_timestamp(type_=sa.DateTime(timezone=True))
        parts["clock"] = sa.select(clock.label("now"))
    return parts


@cache
def _union(*, resuming: bool, has_clock: bool) -> sa.CompoundSelect:
    """One statement of all parts. A row has NULL in the columns of the other parts."""
    parts = {
        name: select.subquery()
        for name, select in _parts(resuming=resuming, has_clock=has_clock).items()
    }
    return sa.union_all(
        *(
            sa.select(
                sa.literal(part).label("part"),
                *(
                    (column if owner == part else sa.cast(sa.null(), column.type)).label(
                        f"{owner}_{column.name}"
                    )
                    for owner, select in parts.items()
                    for column in select.c
                ),
            )
            for part in parts
        )
    )
