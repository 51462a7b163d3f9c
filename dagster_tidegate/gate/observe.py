"""Reads what a gate needs to know: first the store, then Dagster.

The order matters: a takeover that is newer than what was read of the store can be told from one
that was known, and so no value that another gate wrote is taken for the former one.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import dagster as dg
import sqlalchemy as sa

from dagster_tidegate.gate.plan import Candidates, Cover, Observed, ServiceView
from dagster_tidegate.holds import Hold, TargetKind, run_name
from dagster_tidegate.instance import Dagster, partition_of, tried_by
from dagster_tidegate.policy import ServicePolicy
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import campaigns, holds, ledger, runs, takeovers
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.campaigns import CampaignShape
from dagster_tidegate.store.database import Store

# How many queued runs are looked at for a canary, before each campaign is asked for its own.
MOST_QUEUED = 500
MOST_QUEUED_EACH = 5


@dataclass(frozen=True)
class Gate:
    """What a gate works with.

    Attributes:
        dagster: The Dagster instance.
        store: The store of the fleet.
        policies: The policies of the services, by name.
        location: The gate's code location; empty for whoever trips a breaker or places a hold.
        shapes: The campaigns of the code location; without them, all that are in the store.
        enabled: False where Tidegate is switched off: then no hold counts.
    """

    dagster: Dagster
    store: Store
    policies: Mapping[str, ServicePolicy]
    location: str = ""
    shapes: Sequence[CampaignShape] = ()
    enabled: bool = True


def observe(gate: Gate) -> Observed:
    """Return what Dagster looks like, and what the store says that it should look like."""
    with gate.store.read() as conn:
        now = gate.store.now(conn)
        live = holds.live(conn, now) if gate.enabled else []
        taken = takeovers.live(conn)
        if not live and not taken:
            return Observed(now=now, location=gate.location)
        newest = takeovers.newest_id(conn)
        shapes = gate.shapes or campaigns.read(conn)
        rows = conn.execute(sa.select(t.services.c.name, t.services.c.state))
        states = {row.name: row.state for row in rows}
        failures = _last_failures(conn, taken)
    known = {*states, *gate.policies, *_held_services(live)}
    half_open = _to_be_tried(states, gate.policies)
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
            else candidates(gate, service, shapes, but_for_them, held)
        )
    canaries = {
        service
        for service, runs_ in found.items()
        if any(run.status is dg.DagsterRunStatus.QUEUED for run in runs_.waiting)
    }
    tried_pools = frozenset(
        pool
        for shape in shapes
        for pool in shape.pools
        if not canaries.isdisjoint(Cover(live, known).needs(pool).services)
    )
    return Observed(
        now=now,
        location=gate.location,
        holds=live,
        services={name: _view(gate.policies.get(name), failures.get(name)) for name in known},
        campaigns=shapes,
        takeovers=taken,
        pools=gate.dagster.pools(),
        default_limit=gate.dagster.default_limit(),
        newest_takeover=newest,
        triggers=gate.dagster.triggers() if any(shape.triggers for shape in shapes) else {},
        canaries=canaries,
        in_progress=gate.dagster.in_progress(tried_pools) if tried_pools else {},
        candidates=found,
    )


def candidates(
    gate: Gate,
    service: str,
    shapes: Sequence[CampaignShape],
    but_for_them: Cover,
    held: Collection[str],
) -> Candidates:
    """Return the runs that could try a service, of campaigns that nothing else holds.

    Args:
        gate: What the gate works with.
        service: Name of the half open service.
        shapes: All campaigns.
        but_for_them: What is held but for what half open services hold.
        held: Names of the campaign runs that have a hold of their own.
    """
    able: dict[str, set[str]] = {}
    for shape in shapes:
        calling = {
            op for op, pool in shape.ops.items() if service in but_for_them.needs(pool).services
        }
        if calling and not but_for_them.campaign(shape):
            able[shape.name] = calling
    with gate.store.read() as conn:
        paused = runs.with_status(conn, RunStatus.PAUSED, campaigns=able)
        begun = ledger.begun(conn, {op for calling in able.values() for op in calling})
    paused = [run for run in paused if run.name not in held]
    # A run that stands before the service already tries it at once; another may first have an
    # hour of other work to do.
    paused.sort(key=lambda run: not any((run.id, op) in begun for op in able[run.campaign]))
    if paused or not able:
        return Candidates([], paused, [])
    found = gate.dagster.queued(MOST_QUEUED)
    if not any(run.job_name in able for run in found) and len(found) == MOST_QUEUED:
        found = [run for job in able for run in gate.dagster.queued(MOST_QUEUED_EACH, job)]
    return Candidates(
        [],
        [],
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
