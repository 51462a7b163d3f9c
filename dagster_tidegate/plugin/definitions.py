"""The front door: adds everything that a code location needs to its Definitions."""

from collections.abc import Sequence

import dagster as dg

from dagster_tidegate.dagster_api.locations import PART_TAG
from dagster_tidegate.dagster_api.sensors import job_names
from dagster_tidegate.plugin.campaign import AllCampaigns, Campaign, check_jobs
from dagster_tidegate.plugin.resource import BreakerResource, ServiceConfig
from dagster_tidegate.plugin.sensors import (
    build_breaker_sensor,
    build_pause_sensor,
    build_resume_sensor,
)
from dagster_tidegate.store.retention import Keep


def build_definitions(
    defs: dg.Definitions,
    services: Sequence[str | ServiceConfig] = (),
    *,
    campaigns: Sequence[Campaign] = (),
    store_url: str | None = None,
    keep: Keep | None = None,
    resource_key: str = "breakers",
) -> dg.Definitions:
    """Return Definitions whose jobs and assets pause with the services that they need.

    Adds the resource and the three sensors of the gate. Each job that has an op or asset in the
    pool of a service is a campaign, and so are the assets that run outside of a job: by
    "Materialize", a backfill or automation. Schedules and sensors are found by their targets.

    Args:
        defs: Any Definitions, also what `dg.load_from_defs_folder` returns.
        services: The services, each by its name or with its policy. None if `defs` has a
            `BreakerResource` already.
        campaigns: What can't be inferred: catch-up, priority, owners, further triggers.
        store_url: SQLAlchemy URL of the store; None: as for `BreakerResource`.
        keep: Retention periods; None: the defaults of `Keep`.
        resource_key: Key of the `BreakerResource`, and so the name of the parameter by which ops
            and assets get it.

    Raises:
        ValueError: If a campaign's job does not exist, the resource or the sensors are there
            already, or there are no services.

    Example:
        ```python
        @dg.asset(pool="mailer")
        def letters(context: dg.AssetExecutionContext, breakers: BreakerResource): ...

        defs = build_definitions(dg.Definitions(assets=[letters]), services=["mailer"])
        ```
    """
    added = gate_definitions(
        defs,
        services,
        campaigns=campaigns,
        store_url=store_url,
        keep=keep,
        resource_key=resource_key,
    )
    return dg.Definitions.merge(defs, added)


def gate_definitions(
    defs: dg.Definitions,
    services: Sequence[str | ServiceConfig] = (),
    *,
    campaigns: Sequence[Campaign] = (),
    store_url: str | None = None,
    keep: Keep | None = None,
    resource_key: str = "breakers",
) -> dg.Definitions:
    """Return only what `build_definitions` adds; the arguments and errors are the same."""
    jobs = job_names(defs)
    check_jobs([campaign.name for campaign in campaigns], jobs)
    for sensor in defs.sensors or ():
        if PART_TAG in sensor.tags:
            raise ValueError(
                f"the Definitions have sensor {sensor.name} of the gate already: build_definitions "
                "adds it, so remove it and call build_definitions once"
            )
    found = AllCampaigns(campaigns, jobs)
    sensors = [
        build_pause_sensor(campaigns=found, resource_key=resource_key),
        build_resume_sensor(campaigns=found, resource_key=resource_key),
        build_breaker_sensor(campaigns=found, resource_key=resource_key, keep=keep),
    ]
    resources = _resources(defs, services, store_url, resource_key)
    return dg.Definitions(sensors=sensors, resources=resources)


def _resources(
    defs: dg.Definitions,
    services: Sequence[str | ServiceConfig],
    store_url: str | None,
    key: str,
) -> dict[str, BreakerResource]:
    """The resource to add, unless the Definitions have it."""
    existing = (defs.resources or {}).get(key)
    if existing is None:
        if isinstance(services, str) or not services:
            raise ValueError(f"services is {services!r}: use a list with at least one service")
        policies = [ServiceConfig(name=s) if isinstance(s, str) else s for s in services]
        return {key: BreakerResource(services=policies, store_url=store_url)}
    if not isinstance(existing, BreakerResource):
        raise ValueError(
            f"the Definitions have another resource {key!r}: choose a different resource_key"
        )
    if services or store_url:
        raise ValueError(
            f"the Definitions have a BreakerResource {key!r} already: name the services and the "
            "store there, or remove it"
        )
    return {}
