"""Recent calls of the fleet to its services, for people."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from dagster_tidegate.breaker.limits import Usage
from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.breaker.window import COUNTS
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import limits
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.breakers import P95_S, WOULD_OPEN
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.events import EventKind

TRIPS_WITHIN = timedelta(hours=24)
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class ServiceStats:
    """Recent calls to a service.

    Verdicts are those of the last hour. The other numbers are of the outcomes, which are kept for
    about two windows of its policy.

    Attributes:
        ok: Calls that succeeded, the slow ones included.
        slow: Calls that succeeded but were slow.
        since: Start of the oldest outcome that is kept (UTC), or None.
        workers: Processes that made calls.
        last_ok_at: The last success (UTC).
        last_failed_at: The last failure (UTC).
        trips: How often its breaker tripped within `TRIPS_WITHIN`; failed probes do not count.
        p95_s: The 95th percentile of how long calls took that succeeded, in seconds.
        verdicts: How many of the calls of the last hour had each verdict; trial calls aside.
        limits: How much of each of its limits is used up.
    """

    ok: int = 0
    slow: int = 0
    failed: int = 0
    since: datetime | None = None
    workers: int = 0
    last_ok_at: datetime | None = None
    last_failed_at: datetime | None = None
    p95_s: float | None = None
    trips: int = 0
    verdicts: Mapping[VerdictKind, int] = field(default_factory=lambda: Calls().verdicts)
    limits: Sequence[Usage] = ()


def read(conn: Connection, now: datetime) -> Mapping[str, ServiceStats]:
    """Return the recent calls to each service, by name."""
    o, e = t.outcomes.c, t.events.c
    opened = conn.execute(
        sa.select(e.name.label("service"), sa.func.count().label("times"))
        .where(
            e.kind == EventKind.SERVICE,
            e.from_status == BreakerState.CLOSED,
            e.to_status != WOULD_OPEN,
            e.at >= now - TRIPS_WITHIN,
        )
        .group_by(e.name)
    )
    trips: dict[str, int] = {row.service: row.times for row in opened}
    rows = conn.execute(
        sa.select(
            o.service,
            sa.func.sum(o.ok).label("ok"),
            sa.func.sum(o.slow).label("slow"),
            sa.func.sum(o.failed).label("failed"),
            sa.func.min(o.bucket).label("since"),
            sa.func.count(o.worker.distinct()).label("workers"),
            sa.func.max(o.last_ok_at).label("last_ok_at"),
            sa.func.max(o.last_failed_at).label("last_failed_at"),
            P95_S.label("p95_s"),
        ).group_by(o.service)
    )
    stats = {name: ServiceStats(trips=count) for name, count in trips.items()}
    for row in rows:
        values = row._asdict()
        name = values.pop("service")
        stats[name] = ServiceStats(**values, trips=trips.get(name, 0))
    for name, calls in last_hour(conn, now).items():
        former = stats.get(name, ServiceStats())
        stats[name] = replace(former, verdicts=total(calls).verdicts)
    for name, used in limits.usage(conn, now).items():
        stats[name] = replace(stats.get(name, ServiceStats()), limits=used)
    return stats


def trials(conn: Connection, now: datetime) -> Mapping[str, int]:
    """Return how many trial calls of each service are in flight, where there are any."""
    c = t.trials.c
    rows = conn.execute(
        sa.select(c.service, sa.func.count().label("calls"))
        .where(c.expires_at > now)
        .group_by(c.service)
    )
    return {row.service: row.calls for row in rows}


def failures_since(conn: Connection, since: datetime) -> Mapping[str, datetime]:
    """Return when the latest call of each service failed (UTC), where one did since a time."""
    o = t.outcomes.c
    rows = conn.execute(
        sa.select(o.service, sa.func.max(o.last_failed_at).label("at"))
        .where(o.last_failed_at > since)
        .group_by(o.service)
    )
    return {row.service: row.at for row in rows}


def last_success(conn: Connection, services: Sequence[str]) -> datetime | None:
    """Return when a call of one of these services last succeeded (UTC), trial calls aside."""
    o = t.outcomes.c
    return conn.execute(
        sa.select(sa.func.max(o.last_ok_at)).where(o.service.in_(services))
    ).scalar_one()


def calls_by_bucket(conn: Connection) -> Mapping[tuple[str, datetime], Mapping[str, int]]:
    """Return how many calls had each outcome (`ok`, `slow`, `failed`), by service and bucket."""
    o = t.outcomes.c
    rows = conn.execute(
        sa.select(
            o.service,
            o.bucket,
            *(sa.func.sum(column).label(column.name) for column in (o.ok, o.slow, o.failed)),
        ).group_by(o.service, o.bucket)
    )
    return {
        (row.service, row.bucket): {"ok": row.ok, "slow": row.slow, "failed": row.failed}
        for row in rows
    }


@dataclass(frozen=True)
class Calls:
    """Calls to a service, in a minute that began so many minutes ago."""

    ok: int = 0
    slow: int = 0
    failed: int = 0
    throttled: int = 0
    denied: int = 0
    pending: int = 0
    rejected: int = 0
    ignored: int = 0
    minutes_ago: int = 0

    @property
    def healthy_or_not(self) -> int:
        """How many calls said whether the service is well; the slow ones are among the ok ones."""
        return self.ok + self.failed

    @property
    def failure_rate(self) -> float:
        """The share of these that failed, from 0 to 1."""
        return self.failed / self.healthy_or_not if self.healthy_or_not else 0.0

    @property
    def verdicts(self) -> Mapping[VerdictKind, int]:
        """How many calls there were of each verdict."""
        return {
            VerdictKind.SUCCESS: self.ok - self.slow,
            VerdictKind.SLOW: self.slow,
            VerdictKind.FAILURE: self.failed,
            VerdictKind.THROTTLED: self.throttled,
            VerdictKind.DENIED: self.denied,
            VerdictKind.PENDING: self.pending,
            VerdictKind.REJECTED: self.rejected,
            VerdictKind.IGNORED: self.ignored,
        }

    def __add__(self, other: "Calls") -> "Calls":
        """The calls of both; of no minute."""
        return Calls(*(getattr(self, name) + getattr(other, name) for name in COUNTS))


def last_hour(conn: Connection, now: datetime) -> Mapping[str, Sequence[Calls]]:
    """Return the calls to each service, by minute, the oldest first."""
    o, v = t.outcomes.c, t.verdicts.c
    # One statement: outcomes become verdicts meanwhile.
    union = sa.union_all(
        sa.select(o.service, o.bucket, *(o[name] for name in COUNTS)).where(o.bucket > now - HOUR),
        sa.select(v.service, v.minute, *(v[name] for name in COUNTS)).where(v.minute > now - HOUR),
    ).subquery()
    u = union.c
    rows = conn.execute(
        sa.select(u.service, u.bucket, *(sa.func.sum(u[name]) for name in COUNTS))
        .group_by(u.service, u.bucket)
        .order_by(u.service, u.bucket)
    )
    by_minute: dict[str, dict[int, Calls]] = {}
    for row in rows:
        service, bucket, *counts = tuple(row)
        minute = max(0, int((now - bucket).total_seconds() // 60))
        minutes = by_minute.setdefault(service, {})
        calls = minutes.get(minute, Calls()) + Calls(*map(int, counts))
        minutes[minute] = replace(calls, minutes_ago=minute)
    return {name: list(minutes.values()) for name, minutes in by_minute.items()}


def of_period(
    conn: Connection, since: datetime, until: datetime, service: str | None = None
) -> Mapping[str, Calls]:
    """Return the calls to each service in a period, or to one.

    The first day of the period (UTC) counts as a whole.
    """
    o, d = t.outcomes.c, t.daily_verdicts.c
    first = since.replace(hour=0, minute=0, second=0, microsecond=0)
    union = sa.union_all(
        sa.select(o.service, *(o[name] for name in COUNTS)).where(
            o.bucket >= first, o.bucket < until
        ),
        sa.select(d.service, *(d[name] for name in COUNTS)).where(d.day >= first, d.day < until),
    ).subquery()
    u = union.c
    query = sa.select(u.service, *(sa.func.sum(u[name]) for name in COUNTS)).group_by(u.service)
    rows = conn.execute(query if service is None else query.where(u.service == service))
    return {name: Calls(*map(int, counts)) for name, *counts in map(tuple, rows)}


def total(calls: Iterable[Calls]) -> Calls:
    """Return the sum of calls."""
    return sum(calls, Calls())
