"""Reads what a gate needs to know: first the store, then Dagster.

The order matters: a takeover that is newer than what was read of the store can be told from one
that was known, and so no value that another gate wrote is taken for the former one.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import dagster as dg

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api.instance import Dagster, partition_of, tried_by
from dagster_tidegate.gate.plan import Candidates, Cover, Observed, ServiceView
from dagster_tidegate.holds import Hold, TargetKind, run_name
from dagster_tidegate.pools import needs
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import (
    campaigns,
    gate_view,
    ledger,
    runs,
    service_stats,
    takeovers,
)
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Connection, Store

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
        view = gate_view.read(gate.store, conn, gate.location, resuming=resuming)
        live = view.holds if gate.enabled else []
        seen = Observed(
            now=view.now,
            location=gate.location,
            holds=live,
            takeovers=view.takeovers,
            newest_takeover=view.newest_takeover,
            cursor=view.cursor,
            paused=view.paused,
            active=view.active,
            missed=view.missed,
        )
        if not live and not view.takeovers:
            return seen
        specs = gate.specs or campaigns.read(conn)
        failures = _last_failures(conn, view.takeovers)
    known = {*view.states, *gate.policies, *_held_services(live)}
    half_open = _to_be_tried(view.states, gate.policies)
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


def _last_failures(conn: Connection, taken: Sequence[takeovers.Takeover]) -> Mapping[str, datetime]:
    steps = [takeover.ramp_step_at for takeover in taken if takeover.ramp_step_at is not None]
    return service_stats.failures_since(conn, min(steps)) if steps else {}


def _view(policy: ServicePolicy | None, last_failure_at: datetime | None) -> ServiceView:
    return ServiceView(None if policy is None else policy.ramp_interval_s, last_failure_at)
