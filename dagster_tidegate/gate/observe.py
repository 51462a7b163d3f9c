"""Observes: reads what the gate needs to know, first from the store and then from Dagster.

The order matters: if another gate takes something over in between, its takeover is newer than
`newest_takeover`, so that a value which it wrote is never recorded as the former one.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime

import dagster as dg

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.dagster_api import lineage
from dagster_tidegate.dagster_api.lineage import campaign_of, partition_of, tried_by
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.plan import Candidates, Cover, Observation, ServiceView
from dagster_tidegate.holds import (
    Hold,
    HoldSource,
    SystemActor,
    Target,
    TargetKind,
    held_services,
    run_name,
)
from dagster_tidegate.pools import merged, needs
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import campaigns, gate_view, ledger, runs, service_stats
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.store.windows import PlannedWindow
from dagster_tidegate.text import utc

# How many queued runs are searched for a canary before campaigns without one among them are
# searched for their own.
MAX_QUEUED = 500
MAX_QUEUED_EACH = 5
# And how many paused campaign runs.
MAX_PAUSED = 20
# How many canaries that ended since a service opened are remembered.
MAX_ENDED = 100

_Waiting = CampaignRun | dg.DagsterRun


def observe(gate: Gate, *, resuming: bool = False) -> Observation:
    """Return the state of Dagster, and what the store says it should be.

    Args:
        resuming: Whether to read what waits to be resumed, too.
    """
    with gate.store.read() as conn:
        view = gate_view.read(gate.store, conn, gate.location, resuming=resuming)
        holds = view.holds if gate.enabled else []
        if gate.enabled:
            holds = [*holds, *before_windows(view.windows, view.now)]
        stored = {**vars(view), "holds": holds, "location": gate.location}
        if not holds and not view.takeovers:
            return Observation(**stored)
        specs = gate.specs or campaigns.read(conn)
        # A pool is the instance's: what it stands for in one code location counts in all.
        adopted = merged([view.adopted, *(spec.adopted for spec in specs)])
        stored["adopted"] = adopted
        steps = [step for takeover in view.takeovers if (step := takeover.ramp_step_at)]
        failures = service_stats.failures_since(conn, min(steps)) if steps else {}
    held = held_services(holds)
    services = {*view.breakers, *gate.policies, *held}
    on_trial = _on_trial(view.breakers, gate.policies)
    candidates = _candidates(
        gate, specs, holds, Cover(holds, services, adopted, without=on_trial), on_trial
    )
    canaries = {
        service
        for service, candidate in candidates.items()
        if any(run.status is dg.DagsterRunStatus.QUEUED for run in candidate.canaries)
    }
    tried_pools = frozenset(
        pool for spec in specs for pool in spec.pools if needs(pool, canaries, adopted).services
    )
    return Observation(
        **stored,
        services={
            name: ServiceView(
                gate.policies[name].ramp_interval_s if name in gate.policies else None,
                failures.get(name),
                breaker.closed_at if (breaker := view.breakers.get(name)) else None,
                breaker is not None and breaker.cause is VerdictKind.THROTTLED,
            )
            for name in services
        },
        campaigns=specs,
        pools=gate.dagster.pools(),
        default_limit=gate.dagster.default_limit(),
        triggers=gate.dagster.triggers() if any(spec.triggers for spec in specs) else {},
        canaries=canaries,
        in_progress=gate.dagster.in_progress(tried_pools) if tried_pools else {},
        candidates=candidates,
        enabled=gate.enabled,
    )


def before_windows(windows: Sequence[PlannedWindow], now: datetime) -> list[Hold]:
    """Return holds that keep runs from starting shortly before a window; those at work go on."""
    return [
        Hold(
            id=-number,
            target=Target(TargetKind.SERVICE, window.service),
            source=HoldSource.OPERATOR,
            reason=f"no run starts before the maintenance at {utc(window.starts_at)}: "
            f"{window.reason}",
            actor=SystemActor.WINDOW,
            placed_at=now,
            expires_at=window.ends_at,
        )
        for number, window in enumerate(windows, start=1)
        if now < window.starts_at and window.keeps_from_starting(now)
    ]


def held_runs(holds: Sequence[Hold]) -> set[str]:
    """Return the names of the campaign runs that have a hold of their own."""
    return {hold.target.name for hold in holds if hold.target.kind is TargetKind.CAMPAIGN_RUN}


def _on_trial(
    breakers: Mapping[str, BreakerStatus], policies: Mapping[str, ServicePolicy]
) -> list[str]:
    """The half-open services that need a canary, since no health probe can close them."""
    return sorted(
        name
        for name, breaker in breakers.items()
        if breaker.is_half_open
        and name in policies
        and (breaker.needs_real_call or not policies[name].probe_url)
    )


def _candidates(
    gate: Gate,
    specs: Sequence[CampaignSpec],
    holds: Sequence[Hold],
    cover: Cover,
    on_trial: Sequence[str],
) -> dict[str, Candidates]:
    """The runs that could try each service on trial: of campaigns that nothing else holds.

    One run tries all services on trial that its campaign needs. If each of them kept the others
    from being tried, none would ever close.

    Args:
        cover: What the holds cover, without those of the breakers on trial.
    """
    if not on_trial:
        return {}
    canaries = gate.dagster.canaries()
    held = held_runs(holds)
    campaigns = {spec.name: spec for spec in specs}
    candidates = {}
    for service in on_trial:
        if running := [run for run in canaries if service in tried_by(run)]:
            candidates[service] = Candidates(canaries=running)
            continue
        ops = {
            spec.name: {
                op for op, pool in spec.ops.items() if service in cover.needs(pool).services
            }
            for spec in specs
            if spec.is_of_assets or not cover.campaign(spec)
        }

        def may_try(run: _Waiting, service: str = service) -> bool:
            part = campaigns[_campaign(run)].part(assets_of(run))
            refused_by = run.refused_by if isinstance(run, CampaignRun) else ()
            return (
                service in {*part.services([service]), *refused_by}
                and not cover.campaign(part)
                and not cover.any_of(refused_by)
            )

        turn = _turns(gate, service, holds)
        paused, ending = _paused(gate, ops, held, turn, may_try)
        callers = {name for name, calling in ops.items() if calling}
        queued = _queued(gate, callers, held) if callers else ()
        waiting = [*paused, *filter(may_try, queued)]
        candidates[service] = Candidates(waiting=sorted(waiting, key=turn), ending=ending)
    return candidates


def _turns(gate: Gate, service: str, holds: Sequence[Hold]) -> Callable[[_Waiting], tuple]:
    """Return the sort key that gives each campaign, and then each of its runs, a turn.

    A campaign whose canary has failed in this outage comes after those that have not tried, so that
    one run that always fails can't keep the service closed for the others.
    """
    opened_at = [
        hold.placed_at
        for hold in holds
        if hold.source is HoldSource.BREAKER and hold.target.name == service
    ]
    ended = gate.dagster.ended_canaries(min(opened_at), MAX_ENDED) if opened_at else []
    failed = [run for run in ended if service in tried_by(run)]
    turns: dict[str, int] = defaultdict(int)
    for place, run in enumerate(reversed(failed), start=1):
        turns[campaign_of(run)] = turns[_name(run)] = place
    return lambda run: (turns[_campaign(run)], turns[_name(run)])


def _campaign(run: _Waiting) -> str:
    return run.campaign if isinstance(run, CampaignRun) else campaign_of(run)


def assets_of(run: _Waiting) -> Sequence[str]:
    """Return the names of the assets that a run selects; empty: all of its job."""
    return run.assets if isinstance(run, CampaignRun) else lineage.assets_of(run)


def _name(run: _Waiting) -> str:
    is_stored = isinstance(run, CampaignRun)
    return run.name if is_stored else run_name(campaign_of(run), partition_of(run))


def _paused(
    gate: Gate,
    campaigns: Mapping[str, Collection[str]],
    held: Collection[str],
    turn: Callable[[_Waiting], tuple],
    may_try: Callable[[_Waiting], bool],
) -> tuple[list[CampaignRun], list[CampaignRun]]:
    """The paused runs that could try a service, and those that Dagster has to end before.

    Of each turn, those come first that would call it first.

    Args:
        campaigns: The ops that declare the service, by campaign.
        held: Names of the campaign runs that have a hold of their own.
        may_try: Whether a run calls the service, and needs nothing else that is held.
    """
    with gate.store.read() as conn:
        paused = [
            run
            for run in runs.with_status(conn, RunStatus.PAUSED, campaigns=campaigns)
            if run.name not in held and may_try(run)
        ]
        begun = ledger.begun(conn, {op for ops in campaigns.values() for op in ops})
        # A run that has begun such an op calls the service at once; another may have an hour of
        # other work to do first.
        paused.sort(
            key=lambda run: (
                turn(run),
                not any((run.id, op) in begun for op in campaigns[run.campaign]),
            )
        )
        del paused[MAX_PAUSED:]
        attempts = {run.id: runs.latest_attempt(conn, run.id) for run in paused}
    # A run whose other branches still work can't resume yet, and must not block the others.
    working = {
        run.run_id
        for run in gate.dagster.unfinished([a.dagster_run for a in attempts.values() if a])
    }
    ready, ending = [], []
    for run in paused:
        attempt = attempts[run.id]
        is_ending = attempt is not None and attempt.dagster_run in working
        (ending if is_ending else ready).append(run)
    return ready, ending


def _queued(gate: Gate, callers: Collection[str], held: Collection[str]) -> list[dg.DagsterRun]:
    """The queued runs that could try a service, the oldest first.

    Also if some are paused: each of those may have a run in the queue already.
    """
    queued = list(gate.dagster.queued(MAX_QUEUED))
    if len(queued) == MAX_QUEUED:
        unlisted = sorted(set(callers) - {campaign_of(run) for run in queued})
        queued += [run for name in unlisted for run in gate.dagster.queued(MAX_QUEUED_EACH, name)]
    return [
        run
        for run in queued
        if campaign_of(run) in callers and run_name(campaign_of(run), partition_of(run)) not in held
    ]
