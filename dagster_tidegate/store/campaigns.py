"""Campaigns as they were last seen in code: their pools, schedules and trigger sensors."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa

from dagster_tidegate.pools import needs
from dagster_tidegate.store import events
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.takeovers import TakeoverKind


@dataclass(frozen=True, order=True)
class Trigger:
    """A schedule or sensor that starts runs of a campaign.

    Attributes:
        kind: `schedule` or `sensor`.
        name: Its name.
        selector_id: Dagster's id of it, the same for as long as its location and name are.
        runs_by_default: Whether it runs where nobody has switched it on or off.
    """

    kind: TakeoverKind
    name: str
    selector_id: str
    runs_by_default: bool


class CatchUp(StrEnum):
    """Which schedule ticks that a campaign missed while it was paused are run later."""

    NONE = "none"
    LATEST = "latest"
    ALL = "all"


@dataclass(frozen=True)
class CampaignSpec:
    """What the gate needs to know of a campaign.

    Attributes:
        name: Name of the Dagster job.
        location: Its code location.
        catch_up: Which schedule ticks missed while it is paused are run later.
        max_ticks: Maximum number of missed ticks of a schedule that `all` runs; not stored.
        priority: Campaigns of higher priority resume first.
        ops: The pool of each op that has one.
        triggers: The schedules and sensors that start its runs.
        owners: Who steers it besides administrators; none: every operator.
    """

    name: str
    location: str
    catch_up: str
    priority: int = 0
    ops: Mapping[str, str] = field(default_factory=dict)
    triggers: tuple[Trigger, ...] = ()
    owners: frozenset[str] = frozenset()
    max_ticks: int = field(default=100, compare=False)

    @property
    def pools(self) -> frozenset[str]:
        """The pools of its ops."""
        return frozenset(self.ops.values())

    def services(self, known: Collection[str]) -> frozenset[str]:
        """Return which of the known services its ops need."""
        return frozenset(name for pool in self.pools for name in needs(pool, known).services)


def read(conn: Connection) -> Sequence[CampaignSpec]:
    """Return all campaigns, by name."""
    ops: dict[str, dict[str, str]] = {}
    for row in conn.execute(sa.select(t.campaign_ops)):
        ops.setdefault(row.campaign, {})[row.op] = row.pool
    triggers: dict[str, list[Trigger]] = {}
    for row in conn.execute(sa.select(t.campaign_triggers)):
        triggers.setdefault(row.campaign, []).append(
            Trigger(TakeoverKind(row.kind), row.name, row.selector_id, row.runs_by_default)
        )
    owners: dict[str, set[str]] = {}
    for row in conn.execute(sa.select(t.campaign_owners)):
        owners.setdefault(row.campaign, set()).add(row.owner)
    return [
        CampaignSpec(
            name=row.name,
            location=row.location,
            catch_up=row.catch_up,
            priority=row.priority,
            ops=ops.get(row.name, {}),
            triggers=tuple(sorted(triggers.get(row.name, []))),
            owners=frozenset(owners.get(row.name, ())),
        )
        for row in conn.execute(sa.select(t.campaigns).order_by(t.campaigns.c.name))
    ]


def find(conn: Connection, name: str) -> CampaignSpec | None:
    """Return a campaign without its ops and triggers, for who steers it; None if there is none."""
    of_it = t.campaign_owners.c.campaign == t.campaigns.c.name
    rows = conn.execute(
        sa.select(t.campaigns, t.campaign_owners.c.owner)
        .select_from(t.campaigns.outerjoin(t.campaign_owners, of_it))
        .where(t.campaigns.c.name == name)
    ).all()
    if not rows:
        return None
    row, owners = rows[0], frozenset(row.owner for row in rows if row.owner is not None)
    return CampaignSpec(row.name, row.location, row.catch_up, row.priority, owners=owners)


def forget(conn: Connection, now: datetime, location: str, *, actor: str) -> Sequence[str]:
    """Forget a code location that is gone for good: its campaigns, and that it had a gate.

    Their campaign runs, and what was recorded of them, stay.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        location: The code location.
        actor: Who says so.

    Returns:
        The names of its campaigns.
    """
    mine = t.campaigns.c.location == location
    names = conn.scalars(sa.select(t.campaigns.c.name).where(mine).order_by("name")).all()
    save(conn, now, location, [])
    conn.execute(t.heartbeats.delete().where(t.heartbeats.c.location == location))
    events.write(
        conn,
        now,
        kind=EventKind.LOCATION,
        name=location,
        to_status="forgotten",
        actor=actor,
        before={"campaigns": list(names)},
    )
    return names


def defined_at(conn: Connection) -> Mapping[str, datetime]:
    """Return when each code location last reported a change of its campaigns (UTC)."""
    c = t.campaigns.c
    rows = conn.execute(
        sa.select(c.location, sa.func.max(c.seen_at).label("at")).group_by(c.location)
    )
    return {row.location: row.at for row in rows}


def save(conn: Connection, now: datetime, location: str, campaigns: Sequence[CampaignSpec]) -> None:
    """Make the store know the campaigns of a code location as they are, and no others of it.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        location: The code location.
        campaigns: Its campaigns.
    """
    names = [campaign.name for campaign in campaigns]
    gone = sa.select(t.campaigns.c.name).where(
        (t.campaigns.c.location == location) | t.campaigns.c.name.in_(names)
    )
    conn.execute(t.campaign_ops.delete().where(t.campaign_ops.c.campaign.in_(gone)))
    conn.execute(t.campaign_triggers.delete().where(t.campaign_triggers.c.campaign.in_(gone)))
    conn.execute(t.campaign_owners.delete().where(t.campaign_owners.c.campaign.in_(gone)))
    conn.execute(
        t.campaigns.delete().where(
            (t.campaigns.c.location == location) | t.campaigns.c.name.in_(names)
        )
    )
    if not campaigns:
        return
    conn.execute(
        t.campaigns.insert(),
        [
            {
                "name": campaign.name,
                "location": location,
                "catch_up": campaign.catch_up,
                "priority": campaign.priority,
                "seen_at": now,
            }
            for campaign in campaigns
        ],
    )
    ops = [
        {"campaign": campaign.name, "op": op, "pool": pool}
        for campaign in campaigns
        for op, pool in campaign.ops.items()
    ]
    if ops:
        conn.execute(t.campaign_ops.insert(), ops)
    triggers = [
        {
            "campaign": campaign.name,
            "selector_id": trigger.selector_id,
            "kind": trigger.kind,
            "name": trigger.name,
            "runs_by_default": trigger.runs_by_default,
        }
        for campaign in campaigns
        for trigger in campaign.triggers
    ]
    if triggers:
        conn.execute(t.campaign_triggers.insert(), triggers)
    owners = [
        {"campaign": campaign.name, "owner": owner}
        for campaign in campaigns
        for owner in sorted(campaign.owners)
    ]
    if owners:
        conn.execute(t.campaign_owners.insert(), owners)
