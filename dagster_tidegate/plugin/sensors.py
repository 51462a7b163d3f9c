"""The sensors that make up the gate.

`build_pause_sensor` stops what must not run, `build_resume_sensor` lets go on what may, and
`build_breaker_sensor` probes services. Each is level-triggered: a tick looks at what there is and
does what is missing, so that a tick that never happened, or broke off, is made up for.
"""

from collections.abc import Callable, Sequence

import dagster as dg

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.dagster_api.instance import Dagster
from dagster_tidegate.dagster_api.locations import PART_TAG
from dagster_tidegate.dagster_api.repository import Repository
from dagster_tidegate.gate.follow import Audit
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.missed_ticks import MissedTickPlanner
from dagster_tidegate.gate.ticks import breaker_tick, pause_tick, resume_tick
from dagster_tidegate.plugin.campaign import Campaign
from dagster_tidegate.plugin.resource import BreakerResource
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.heartbeats import BREAKER, PAUSE, RESUME
from dagster_tidegate.store.retention import Keep, Retention

Tick = Callable[[dg.SensorEvaluationContext, Fleet, Gate, Repository], dg.SensorResult]


def build_pause_sensor(
    *,
    campaigns: Sequence[Campaign],
    resource_key: str = "breakers",
    name: str = "tidegate_pause",
    minimum_interval_seconds: int = 5,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Build the sensor that stops in Dagster what must not run.

    It sets the pools of what is held to 0, stops schedules and trigger sensors, and keeps the
    statuses of campaign runs true to Dagster's runs.

    Args:
        campaigns: The campaigns of the code location; the same for all three sensors.
        resource_key: Key of the `BreakerResource`.
        name: Name of the sensor.
        minimum_interval_seconds: How often it looks, in seconds; Dagster looks every 5 at best.
        default_status: Whether it runs where nobody has switched it on or off.

    Returns:
        The sensor, for the `sensors` of `dg.Definitions`.

    Example:
        ```python
        pause_sensor = build_pause_sensor(campaigns=[Campaign(job=outreach)])
        ```
    """
    saved: list[Sequence[CampaignSpec]] = []
    audit = Audit()

    def tick(
        _context: dg.SensorEvaluationContext, _fleet: Fleet, gate: Gate, repository: Repository
    ) -> dg.SensorResult:
        planner = MissedTickPlanner(gate, repository)
        summary = pause_tick(gate, planner, audit, new_code=saved != [gate.specs])
        saved[:] = [gate.specs]
        return dg.SensorResult(skip_reason=summary)

    return _sensor(
        PAUSE, tick, campaigns, (), resource_key, name, minimum_interval_seconds, default_status
    )


def build_resume_sensor(
    *,
    campaigns: Sequence[Campaign],
    resource_key: str = "breakers",
    name: str = "tidegate_resume",
    minimum_interval_seconds: int = 5,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Build the sensor that lets go on in Dagster what nothing holds any more.

    It ramps pools up to exactly what they were, gives schedules and trigger sensors back as they
    were, catches missed ticks up, and asks for the next attempt of each paused campaign run. A
    half open service without a health probe gets one campaign run that tries it.

    Args:
        campaigns: The campaigns of the code location; the same for all three sensors.
        resource_key: Key of the `BreakerResource`.
        name: Name of the sensor.
        minimum_interval_seconds: How often it looks, in seconds; Dagster looks every 5 at best.
        default_status: Whether it runs where nobody has switched it on or off.

    Returns:
        The sensor, for the `sensors` of `dg.Definitions`.
    """

    def tick(
        context: dg.SensorEvaluationContext, _fleet: Fleet, gate: Gate, repository: Repository
    ) -> dg.SensorResult:
        summary, requests = resume_tick(gate, MissedTickPlanner(gate, repository))
        if requests:
            context.log.info(summary)  # a tick that asks for runs has no skip reason
            return dg.SensorResult(run_requests=list(requests))
        return dg.SensorResult(skip_reason=summary)

    jobs = [campaign.job for campaign in campaigns]
    return _sensor(
        RESUME, tick, campaigns, jobs, resource_key, name, minimum_interval_seconds, default_status
    )


def build_breaker_sensor(
    *,
    campaigns: Sequence[Campaign],
    resource_key: str = "breakers",
    name: str = "tidegate_breaker",
    minimum_interval_seconds: int = 5,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
    keep: Keep | None = None,
) -> dg.SensorDefinition:
    """Build the sensor that finds out whether a failed service is back.

    A service with a health probe is asked when its breaker is due. One without becomes half open
    then, and the resume sensor lets one campaign run try it. Holds whose time is over are
    released, and what has been over for long is deleted, a little at each tick.

    Args:
        campaigns: The campaigns of the code location; the same for all three sensors.
        resource_key: Key of the `BreakerResource`.
        name: Name of the sensor.
        minimum_interval_seconds: How often it looks, in seconds; Dagster looks every 5 at best.
        default_status: Whether it runs where nobody has switched it on or off.
        keep: How long ledgers, events, released holds and so on are kept; None: as long as `Keep`
            says by itself. A campaign run whose ledger was deleted can't be executed again.

    Returns:
        The sensor, for the `sensors` of `dg.Definitions`.
    """

    retention = Retention(keep or Keep())

    def tick(
        _context: dg.SensorEvaluationContext, fleet: Fleet, gate: Gate, _repository: Repository
    ) -> dg.SensorResult:
        summary = breaker_tick(gate, fleet)
        if deleted := retention.prune_some(gate.store, fleet.now()):
            summary += f"; {deleted} rows deleted that were over for long"
        return dg.SensorResult(skip_reason=summary)

    return _sensor(
        BREAKER, tick, campaigns, (), resource_key, name, minimum_interval_seconds, default_status
    )


def _sensor(
    part: str,
    tick: Tick,
    campaigns: Sequence[Campaign],
    jobs: Sequence,
    resource_key: str,
    name: str,
    minimum_interval_seconds: int,
    default_status: dg.DefaultSensorStatus,
) -> dg.SensorDefinition:
    # Of the repository that was seen last; Dagster evaluates all ticks of a process with one.
    known: list[tuple[dg.RepositoryDefinition, Sequence[CampaignSpec]]] = []

    @dg.sensor(
        name=name,
        jobs=jobs or None,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        required_resource_keys={resource_key},
        tags={PART_TAG: part},
    )
    def gate_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        breakers: BreakerResource = getattr(context.resources, resource_key)
        fleet = breakers.fleet
        # Before all else: what it would write may be wrong by now.
        fleet.require_current()
        repository = Repository.of(context)
        if not known or known[0][0] is not repository.definition:
            specs = [campaign.spec(repository) for campaign in campaigns]
            known[:] = [(repository.definition, specs)]
        [(_, specs)] = known
        gate = Gate(
            Dagster(context.instance, repository),
            breakers.store,
            fleet.policies,
            repository.location,
            specs,
            fleet.enabled,
        )
        return tick(context, fleet, gate, repository)

    return gate_sensor
