"""The sensors that make up the gate.

Each is level-triggered: a tick compares what should be with what is, and applies the difference,
so that it makes up for ticks that were missed or interrupted.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dagster as dg

from dagster_tidegate.breaker.policy import adopted_pools
from dagster_tidegate.dagster_api.deployment import lacking, settings
from dagster_tidegate.dagster_api.instance import Dagster
from dagster_tidegate.dagster_api.kept_instance import kept_instance
from dagster_tidegate.dagster_api.locations import PART_TAG
from dagster_tidegate.dagster_api.repository import Repository
from dagster_tidegate.dagster_api.sensors import NamedJobsSensor
from dagster_tidegate.gate.budgets import BudgetCheck
from dagster_tidegate.gate.follow import Audit
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.missed_ticks import MissedTickPlanner
from dagster_tidegate.gate.ticks import breaker_tick, pause_tick, resume_tick
from dagster_tidegate.plugin.campaign import AllCampaigns, Campaign
from dagster_tidegate.plugin.kept_resource import KeptResource
from dagster_tidegate.plugin.resource import BreakerResource
from dagster_tidegate.plugin.service_reporter import ServiceReporter
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.heartbeats import BREAKER, PAUSE, RESUME
from dagster_tidegate.store.retention import Keep, Retention

log = logging.getLogger(__name__)
Done = tuple[str, Sequence[dg.RunRequest]]
"""A summary of a tick for people, and the runs to launch."""
Campaigns = Sequence[Campaign] | AllCampaigns
"""The campaigns of a code location, as its author lists them or as they are found."""


@dataclass(frozen=True)
class _Tick:
    """What a sensor works with in a tick."""

    context: dg.SensorEvaluationContext
    resource: BreakerResource
    gate: Gate
    repository: Repository

    @property
    def planner(self) -> MissedTickPlanner:
        return MissedTickPlanner(self.gate, self.repository)


def build_pause_sensor(
    *,
    campaigns: Campaigns,
    resource_key: str = "breakers",
    name: str = "tidegate_pause",
    minimum_interval_seconds: int = 5,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Build the sensor that stops what must not run.

    It sets the pools of what is held to 0, stops schedules and trigger sensors, and updates the
    statuses of campaign runs from Dagster's runs.

    Args:
        campaigns: The campaigns of the code location; the same for all three sensors.
        resource_key: Key of the `BreakerResource`.
        name: Name of the sensor.
        minimum_interval_seconds: Seconds between ticks; Dagster's minimum is 5.
        default_status: Whether it runs unless someone turns it on or off.

    Example:
        ```python
        pause_sensor = build_pause_sensor(campaigns=[Campaign(job=outreach)])
        ```
    """
    saved: list[Sequence[CampaignSpec]] = []
    audit = Audit()

    def pause(tick: _Tick) -> Done:
        specs = tick.gate.specs
        summary = pause_tick(tick.gate, tick.planner, audit, new_code=saved != [specs])
        saved[:] = [specs]
        return summary, ()

    return _build(
        PAUSE,
        pause,
        "Stops what depends on a held service: pools, schedules and trigger sensors.",
        campaigns=campaigns,
        resource_key=resource_key,
        name=name,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
    )


def build_resume_sensor(
    *,
    campaigns: Campaigns,
    resource_key: str = "breakers",
    name: str = "tidegate_resume",
    minimum_interval_seconds: int = 5,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Build the sensor that resumes what is no longer held.

    It ramps pools up to their previous limits, restores schedules and trigger sensors, catches up
    missed ticks, and launches the next attempt of each paused campaign run. For a half-open
    service without a health probe it launches one campaign run as a canary.

    Args:
        campaigns: The campaigns of the code location; the same for all three sensors.
        resource_key: Key of the `BreakerResource`.
        name: Name of the sensor.
        minimum_interval_seconds: Seconds between ticks; Dagster's minimum is 5.
        default_status: Whether it runs unless someone turns it on or off.
    """
    return _build(
        RESUME,
        lambda tick: resume_tick(tick.gate, tick.planner),
        "Resumes what is no longer held: pools, schedules, missed ticks and paused runs.",
        campaigns=campaigns,
        jobs=(
            sorted(campaigns.jobs)
            if isinstance(campaigns, AllCampaigns)
            else [campaign.name for campaign in campaigns]
        ),
        resource_key=resource_key,
        name=name,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
    )


def build_breaker_sensor(
    *,
    campaigns: Campaigns,
    resource_key: str = "breakers",
    name: str = "tidegate_breaker",
    minimum_interval_seconds: int = 5,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
    keep: Keep | None = None,
    service_assets: bool = False,
) -> dg.SensorDefinition:
    """Build the sensor that checks whether a failed service has recovered.

    When a breaker is due, it calls the service's health probe. A breaker without one becomes half
    open, and the resume sensor launches a canary. It also asks services what is left of budgets,
    releases expired holds, and deletes expired history, a little at each tick.

    Args:
        campaigns: The campaigns of the code location; the same for all three sensors.
        resource_key: Key of the `BreakerResource`.
        name: Name of the sensor.
        minimum_interval_seconds: Seconds between ticks; Dagster's minimum is 5.
        default_status: Whether it runs unless someone turns it on or off.
        keep: Retention periods; None: the defaults of `Keep`. A campaign run that is executed
            again after its ledger was deleted does all of its records again.
        service_assets: Whether to report each change of a breaker to Dagster, as events of the
            services' assets, which `build_definitions` adds.
    """
    retention = Retention(keep or Keep())
    budget_check = BudgetCheck()
    reporters: list[ServiceReporter] = []

    def check(tick: _Tick) -> Done:
        resource = tick.resource
        summary = breaker_tick(tick.gate, resource.fleet)
        if changes := budget_check(resource.store, resource.fleet):
            summary += f"; {'; '.join(changes)}"
        if service_assets:
            if not reporters:
                reporters.append(ServiceReporter(list(resource.fleet.policies)))
            summary += _report(reporters[0], tick)
        if deleted := retention.prune_some(resource.store, resource.fleet.now()):
            summary += f"; deleted {deleted} expired rows"
        return summary, ()

    return _build(
        BREAKER,
        check,
        "Probes failed services, releases expired holds and deletes expired history.",
        campaigns=campaigns,
        resource_key=resource_key,
        name=name,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
    )


def _build(
    part: str,
    work: Callable[[_Tick], Done],
    description: str,
    *,
    campaigns: Campaigns,
    jobs: Sequence[str] = (),
    resource_key: str,
    name: str,
    minimum_interval_seconds: int,
    default_status: dg.DefaultSensorStatus,
) -> dg.SensorDefinition:
    warned: list[str] = []
    kept = KeptResource(resource_key)
    # Of the last repository; Dagster evaluates all ticks of a process with the same one.
    cached: list[tuple[dg.RepositoryDefinition, Sequence[CampaignSpec]]] = []

    def gate_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        with kept.of(context) as resource, kept_instance(context) as instance:
            return evaluate(context, resource, instance)

    def evaluate(
        context: dg.SensorEvaluationContext,
        resource: BreakerResource,
        instance: dg.DagsterInstance,
    ) -> dg.SensorResult:
        # First of all: an outdated version must not write.
        resource.fleet.require_current()
        repository = Repository.of(context, instance)
        if not cached or cached[0][0] is not repository.definition:
            cached[:] = [(repository.definition, _specs(campaigns, repository, resource))]
        gate = Gate(
            Dagster(instance, repository),
            resource.store,
            resource.fleet.policies,
            repository.location,
            cached[0][1],
            resource.fleet.enabled,
        )
        summary, requests = work(_Tick(context, resource, gate, repository))
        if lacks := lacking(settings(instance)):
            remedy = f"dagster.yaml lacks {', '.join(lacks)}: run 'tidegate init'"
            if not warned:
                log.warning("%s; until then, runs of held services may start", remedy)
                warned.append(remedy)
            summary += f"; {remedy}"
        if requests:
            context.log.info(summary)  # a tick that launches runs has no skip reason
            return dg.SensorResult(run_requests=list(requests))
        return dg.SensorResult(skip_reason=summary)

    return NamedJobsSensor(
        job_names=jobs,
        name=name,
        evaluation_fn=gate_sensor,
        description=description,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        required_resource_keys={resource_key},
        tags={PART_TAG: part},
    )


def _report(reporter: ServiceReporter, tick: _Tick) -> str:
    """Report changes of breakers to Dagster; the gate's own work does not depend on it."""
    try:
        resource = tick.resource
        done = reporter.report(tick.repository.instance, resource.store, resource.fleet.snapshot())
    except Exception as error:  # noqa: BLE001 -- the next tick tries again
        tick.context.log.warning("The assets of services are out of date: %r", error)
        done = f"the assets of services are out of date: {error}"
    return f"; {done}" if done else ""


def _specs(
    campaigns: Campaigns, repository: Repository, resource: BreakerResource
) -> Sequence[CampaignSpec]:
    policies = resource.fleet.policies
    if isinstance(campaigns, AllCampaigns):
        return campaigns.specs(repository, policies)
    adopted = adopted_pools(policies.values())
    return [campaign.spec(repository, adopted) for campaign in campaigns]
