"""Campaigns as last defined in code: their pools, schedules and trigger sensors."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.pools import Adopted, needs
from dagster_tidegate.store import events, takeovers
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.takeovers import TakeoverKind
from dagster_tidegate.text import MAX_OP, bounded


@dataclass(frozen=True, order=True)
class Trigger:
    """A schedule or sensor that starts runs of a campaign.

    Attributes:
        selector_id: Dagster's id, stable while its location and name are.
        runs_by_default: Whether it runs unless somebody switched it off.
    """

    kind: TakeoverKind
    name: str
    selector_id: str
    runs_by_default: bool


class CatchUp(StrEnum):
    """Which schedule ticks that a campaign missed while it was paused are run later."""

    NONE = "none"
    LATEST = "latest"
    PARTITIONS = "partitions"  # the latest of each time partition
    ALL = "all"


@dataclass(frozen=True)
class CampaignSpec:
    """What the gate needs to know about a campaign.

    Attributes:
        catch_up: Which schedule ticks missed while it is paused are run later.
        max_ticks: Maximum number of missed ticks of a schedule that are run; not stored.
        priority: Campaigns of higher priority resume first, and call first within a limit.
        ops: The pool of each op that has one.
        adopted: The services that those pools stand for whose names don't say it.
        assets: The assets that those ops make, by name; asset checks as `asset:check`.
        triggers: The schedules and sensors that start its runs.
        owners: Who may control it besides administrators; empty: every operator.
    """

    name: str
    location: str
    catch_up: str
    priority: int = 0
    ops: Mapping[str, str] = field(default_factory=dict)
    triggers: tuple[Trigger, ...] = ()
    owners: frozenset[str] = frozenset()
    max_ticks: int = field(default=100, compare=False)
    adopted: Adopted = field(default_factory=dict)
    assets: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def is_of_assets(self) -> bool:
        """Whether its runs have little in common: each is of some assets of a code location."""
        return ":" in self.name  # no job has a colon in its name

    def part(self, assets: Collection[str]) -> "CampaignSpec":
        """Return what a run of some of its assets has to do with; of none: the whole campaign."""
        if not assets:
            return self
        ops = {
            op: p for op, p in self.ops.items() if not self.assets.get(op, set()).isdisjoint(assets)
        }
        return replace(self, ops=ops)

    @property
    def pools(self) -> frozenset[str]:
        """The pools of its ops."""
        return frozenset(self.ops.values())

    def services(self, known: Collection[str]) -> frozenset[str]:
        """Return which of the known services its ops need."""
        return frozenset(
            name for pool in self.pools for name in needs(pool, known, self.adopted).services
        )

    def blocked_by(self, held: Collection[str]) -> frozenset[str]:
        """Return which of the held services keep one of its ops from running."""
        needed = (needs(pool, held, self.adopted) for pool in self.pools)
        return frozenset().union(*(need.blocked_by(held) for need in needed))


def read(conn: Connection, names: Collection[str] | None = None) -> Sequence[CampaignSpec]:
    """Return the campaigns, by name; with `names`, only those."""

    def rows_of(table: sa.Table, campaign: sa.ColumnElement[str]) -> sa.CursorResult[Any]:
        query = sa.select(table)
        return conn.execute(query if names is None else query.where(campaign.in_(names)))

    ops: dict[str, dict[str, str]] = {}
    adopted: dict[str, dict[str, frozenset[str]]] = {}
    assets: dict[str, dict[str, frozenset[str]]] = {}
    for row in rows_of(t.campaign_ops, t.campaign_ops.c.campaign):
        ops.setdefault(row.campaign, {})[row.op] = row.pool
        if row.services is not None:
            services = frozenset(row.services.split(","))
            adopted.setdefault(row.campaign, {})[row.pool] = services
        if row.assets is not None:
            assets.setdefault(row.campaign, {})[row.op] = frozenset(row.assets)
    triggers: dict[str, list[Trigger]] = {}
    for row in rows_of(t.campaign_triggers, t.campaign_triggers.c.campaign):
        triggers.setdefault(row.campaign, []).append(
            Trigger(TakeoverKind(row.kind), row.name, row.selector_id, row.runs_by_default)
        )
    owners: dict[str, set[str]] = {}
    for row in rows_of(t.campaign_owners, t.campaign_owners.c.campaign):
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
            adopted=adopted.get(row.name, {}),
            assets=assets.get(row.name, {}),
        )
        for row in sorted(rows_of(t.campaigns, t.campaigns.c.name), key=lambda row: row.name)
    ]


ADOPTED = (
    sa.select(t.campaign_ops.c.pool, t.campaign_ops.c.services)
    .where(t.campaign_ops.c.services.is_not(None))
    .distinct()
)
"""The services that pools stand for whose names don't say it, in any campaign."""


def by_pool(rows: Iterable[Mapping[Any, Any]]) -> Mapping[str, frozenset[str]]:
    """Return the rows of `ADOPTED` as services by pool."""
    adopted: dict[str, frozenset[str]] = {}
    for row in rows:
        services = frozenset(row["services"].split(","))
        adopted[row["pool"]] = adopted.get(row["pool"], frozenset()) | services
    return adopted


def adopted(conn: Connection) -> Mapping[str, frozenset[str]]:
    """Return the services that pools stand for whose names don't say it, in any campaign."""
    return by_pool(conn.execute(ADOPTED).mappings())


def names(
    conn: Connection, *, text: str = "", after: str = "", limit: int | None = None
) -> Sequence[str]:
    """Return the names of campaigns, sorted.

    Args:
        text: Only those with this in their name, in upper or lower case.
        after: Only those that come after this name.
    """
    c = t.campaigns.c
    query = sa.select(c.name).where(c.name > after, _named_like(text))
    return conn.scalars(query.order_by(c.name).limit(limit)).all()


def count(conn: Connection, *, text: str = "") -> int:
    """Return how many campaigns there are; with `text`, how many have it in their name."""
    query = sa.select(sa.func.count()).select_from(t.campaigns).where(_named_like(text))
    return conn.scalar(query) or 0


def _named_like(text: str) -> sa.ColumnElement[bool]:
    if not text:
        return sa.true()
    return sa.func.lower(t.campaigns.c.name).contains(text.lower(), autoescape=True)


def find(conn: Connection, name: str) -> CampaignSpec | None:
    """Return a campaign without its ops and triggers; None if there is none."""
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
    """Forget a code location that was removed: its campaigns and its gate's heartbeats.

    Other gates restore the pools that its gate took over. Campaign runs, ledgers and events stay.

    Returns:
        The names of its campaigns.
    """
    c = t.campaigns.c
    names = conn.scalars(sa.select(c.name).where(c.location == location).order_by(c.name)).all()
    save(conn, now, location, [])
    takeovers.disown(conn, now, location)
    for table in (t.heartbeats, t.windows):
        conn.execute(table.delete().where(table.c.location == location))
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
    """Replace the stored campaigns of a code location with these."""
    c = t.campaigns.c
    replaced = (c.location == location) | c.name.in_([campaign.name for campaign in campaigns])
    names = sa.select(c.name).where(replaced)
    for table in (t.campaign_ops, t.campaign_triggers, t.campaign_owners):
        conn.execute(table.delete().where(table.c.campaign.in_(names)))
    conn.execute(t.campaigns.delete().where(replaced))
    rows: dict[sa.Table, list[dict[str, Any]]] = {
        t.campaigns: [
            {
                "name": campaign.name,
                "location": location,
                "catch_up": campaign.catch_up,
                "priority": campaign.priority,
                "seen_at": now,
            }
            for campaign in campaigns
        ],
        t.campaign_ops: [
            {
                "campaign": campaign.name,
                "op": bounded(op, MAX_OP),
                "pool": pool,
                "services": ",".join(sorted(campaign.adopted.get(pool, ()))) or None,
                "assets": sorted(campaign.assets.get(op, ())) or None,
            }
            for campaign in campaigns
            for op, pool in campaign.ops.items()
        ],
        t.campaign_triggers: [
            {"campaign": campaign.name, **vars(trigger)}
            for campaign in campaigns
            for trigger in campaign.triggers
        ],
        t.campaign_owners: [
            {"campaign": campaign.name, "owner": owner}
            for campaign in campaigns
            for owner in campaign.owners
        ],
    }
    for table, values in rows.items():
        if values:
            conn.execute(table.insert(), values)
