"""Reads what a gate needs to know: first the store, then Dagster.

The order matters: a takeover that is newer than what was read of the store can be told from one
that was known, and so no value that another gate wrote is taken for the former one.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime

import dagster as dg
import sqlalchemy as sa

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api.instance import Dagster, partition_of, tried_by
from dagster_tidegate.gate.plan import Candidates, Cover, Observed, ServiceView
from dagster_tidegate.holds import Hold, TargetKind, run_name
from dagster_tidegate.pools import needs
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import (
    campaigns,
    heartbeats,
    holds,
    ledger,
    missed_ticks,
    runs,
    takeovers,
)
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.missed_ticks import MissedTick
from dagster_tidegate.store.query import Query, together
from dagster_tidegate.store.runs import CampaignRun

# How many queued runs are looked at for a canary, before each campaign is asked for its own.
MAX_QUEUED = 500
MAX_QUEUED_EACH = 5
# And how many paused campaign runs.
MAX_PAUSED = 20


@dataclass(frozen=True)
class Gate:
    """What a gate works with.

    Attributes:
        dagster: The Dagster instance.
        store: The store of the fleet.
        policies: The policies of the services, by name.
        location: The gate's code location; empty for whoever trips a breaker or places a hold.
        specs: The campaigns of the code location; without them, all that are in the store.
        enabled: False where Tidegate is switched off: then no hold counts.
    """

    dagster: Dagster
    store: Store
    policies: Mapping[str, ServicePolicy]
    location: str = ""
    specs: Sequence[CampaignSpec] = ()
    enabled: bool = True


def observe(gate: Gate, *, resuming: bool = False) -> Observed:
    """Return what Dagster looks like, and what the store says that it should look like.

    Args:
        gate: What the gate works with.
        resuming: Whether also what waits to be resumed is wanted.
    """
    with gate.store.read() as conn:
        stored = _read(gate, conn, resuming=resuming)
        live = stored.holds if gate.enabled else []
        seen = Observed(
            now=stored.now,
            location=gate.location,
            holds=live,
            takeovers=stored.takeovers,
            newest_takeover=stored.newest_takeover,
            cursor=stored.cursor,
            paused=stored.paused,
            active=stored.active,
            missed=stored.missed,
        )
        if not live and not stored.takeovers:
            return seen
        specs = gate.specs or campaigns.read(conn)
        failures = _last_failures(conn, stored.takeovers)
    known = {*stored.states, *gate.policies, *_held_services(live)}
    half_open = _to_be_tried(stored.states, gate.policies)
    canary_runs = gate.dagster.canaries() if half_open else []
    # A campaign that needs several half open services tries them all with one run: if each of
    # them kept the others from being tried, none would ever close.
    but_for_them = Cover(live, known, without=half_open)
    held = held_runs(live)
    found = {}
    for service in sorted(half_open):
        waiting = [run for run in canary_runs if service in tried_by(run)]
        found[service] = (
            Candidates(waiting, [], [])
            if waiting
            else candidates(gate, service, specs, but_for_them, held)
        )
    canaries = {
        service
        for service, runs_ in found.items()
        if any(run.status is dg.DagsterRunStatus.QUEUED for run in runs_.waiting)
    }
    tried_pools = frozenset(
        pool for spec in specs for pool in spec.pools if needs(pool, canaries).services
    )
    return replace(
        seen,
        services={name: _view(gate.policies.get(name), failures.get(name)) for name in known},
        campaigns=specs,
        pools=gate.dagster.pools(),
        default_limit=gate.dagster.default_limit(),
        triggers=gate.dagster.triggers() if any(spec.triggers for spec in specs) else {},
        canaries=canaries,
        in_progress=gate.dagster.in_progress(tried_pools) if tried_pools else {},
        candidates=found,
    )


@dataclass(frozen=True)
class _Stored:
    """What the store says, read in one statement. The fields are those of `Observed`."""

    now: datetime
    holds: Sequence[Hold]
    takeovers: Sequence[takeovers.Takeover]
    newest_takeover: int
    states: Mapping[str, str]
    cursor: datetime | None
    paused: Sequence[CampaignRun]
    active: Mapping[str, int]
    missed: Sequence[MissedTick]


_STATES = Query(sa.select(t.services.c.name, t.services.c.state), lambda name, state: (name, state))
_PAUSED = Query(
    sa.select(*(t.campaign_runs.c[field.name] for field in fields(CampaignRun))).where(
        t.campaign_runs.c.status == RunStatus.PAUSED
    ),
    lambda status, **values: CampaignRun(status=RunStatus(status), **values),
    order=lambda run: (-run.priority, run.paused_at, run.id),
)
# One that was never attempted is not ours: it waits in the queue anyway.
_ACTIVE = Query(
    sa.select(t.campaign_runs.c.campaign, sa.func.count().label("runs"))
    .where(
        t.campaign_runs.c.status.in_([RunStatus.PENDING, RunStatus.PROCESSING]),
        t.campaign_runs.c.attempt > 0,
    )
    .group_by(t.campaign_runs.c.campaign),
    lambda campaign, runs: (campaign, runs),
)
_CLOCK = Query(
    sa.select(sa.func.clock_timestamp(type_=sa.DateTime(timezone=True)).label("now")),
    lambda now: now.astimezone(UTC),
)


def _read(gate: Gate, conn: sa.Connection, *, resuming: bool) -> _Stored:
    store = gate.store
    has_clock = store.clock is None and not store.is_sqlite
    live, taken, newest, states, beats, *others = together(
        conn,
        holds.UNRELEASED,
        takeovers.LIVE,
        takeovers.NEWEST_ID,
        _STATES,
        heartbeats.LATEST,
        *([_PAUSED, _ACTIVE, missed_ticks.WAITING] if resuming else []),
        *([_CLOCK] if has_clock else []),
    )
    now = others.pop()[0] if has_clock else store.now(conn)
    paused, active, missed = others or ([], [], [])
    cursors = [b.cursor for b in beats if (b.location, b.part) == (gate.location, heartbeats.PAUSE)]
    return _Stored(
        now=now,
        holds=[hold for hold in live if hold.live(now)],
        takeovers=taken,
        newest_takeover=newest[0],
        states=dict(states),
        cursor=cursors[0] if cursors else None,
        paused=paused,
        active=dict(active),
        missed=missed,
    )


def candidates(
    gate: Gate,
    service: str,
    specs: Sequence[CampaignSpec],
    but_for_them: Cover,
    held: Collection[str],
) -> Candidates:
    """Return the runs that could try a service, of campaigns that nothing else holds.

    Args:
        gate: What the gate works with.
        service: Name of the half open service.
        specs: All campaigns.
        but_for_them: What is held but for what half open services hold.
        held: Names of the campaign runs that have a hold of their own.
    """
    able: dict[str, set[str]] = {}
    for spec in specs:
        calling = {
            op for op, pool in spec.ops.items() if service in but_for_them.needs(pool).services
        }
        if calling and not but_for_them.campaign(spec):
            able[spec.name] = calling
    with gate.store.read() as conn:
        paused = runs.with_status(conn, RunStatus.PAUSED, campaigns=able)
        begun = ledger.begun(conn, {op for calling in able.values() for op in calling})
        paused = [run for run in paused if run.name not in held]
        # A run that stands before the service already tries it at once; another may first have an
        # hour of other work to do.
        paused.sort(key=lambda run: not any((run.id, op) in begun for op in able[run.campaign]))
        del paused[MAX_PAUSED:]
        newest = {run.id: runs.latest_attempt(conn, run.id) for run in paused}
    # One whose other branches still work can't resume yet, and must not keep others from trying.
    attempted = [attempt.dagster_run for attempt in newest.values() if attempt is not None]
    at_work = {run.run_id for run in gate.dagster.unfinished(attempted)}
    paused = [
        run
        for run in paused
        if (attempt := newest[run.id]) is None or attempt.dagster_run not in at_work
    ]
    if not able:
        return Candidates([], [], [])
    # Also beside paused ones: those may all have a run in the queue already.
    found = gate.dagster.queued(MAX_QUEUED)
    if not any(run.job_name in able for run in found) and len(found) == MAX_QUEUED:
        found = [run for job in able for run in gate.dagster.queued(MAX_QUEUED_EACH, job)]
    return Candidates(
        [],
        paused,
        [
            run
            for run in found
            if run.job_name in able and run_name(run.job_name, partition_of(run)) not in held
        ],
    )


def held_runs(live: Sequence[Hold]) -> set[str]:
    """Return the names of the campaign runs that have a hold of their own."""
    return {hold.target.name for hold in live if hold.target.kind is TargetKind.CAMPAIGN_RUN}


def _to_be_tried(states: Mapping[str, str], policies: Mapping[str, ServicePolicy]) -> set[str]:
    return {
        name
        for name, state in states.items()
        if state == BreakerState.HALF_OPEN and name in policies and not policies[name].probe_url
    }


def _held_services(live: Sequence[Hold]) -> set[str]:
    return {hold.target.name for hold in live if hold.target.kind is TargetKind.SERVICE}


def _last_failures(
    conn: sa.Connection, taken: Sequence[takeovers.Takeover]
) -> Mapping[str, datetime]:
    steps = [takeover.ramp_step_at for takeover in taken if takeover.ramp_step_at is not None]
    if not steps:
        return {}
    rows = conn.execute(
        sa.select(t.outcomes.c.service, sa.func.max(t.outcomes.c.last_failed_at).label("at"))
        .where(t.outcomes.c.last_failed_at > min(steps))
        .group_by(t.outcomes.c.service)
    )
    return {row.service: row.at for row in rows}


def _view(policy: ServicePolicy | None, last_failure_at: datetime | None) -> ServiceView:
    return ServiceView(None if policy is None else policy.ramp_interval_s, last_failure_at)
