"""The front door: adds everything that a code location needs to its Definitions."""

from collections.abc import Mapping, Sequence

import dagster as dg

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api.locations import PART_TAG
from dagster_tidegate.dagster_api.sensors import job_names
from dagster_tidegate.plugin.campaign import AllCampaigns, Campaign, check_jobs
from dagster_tidegate.plugin.operator_jobs import jobs_of_operators
from dagster_tidegate.plugin.resource import BreakerResource, ServiceConfig
from dagster_tidegate.plugin.sensors import (
    build_breaker_sensor,
    build_pause_sensor,
    build_resume_sensor,
)
from dagster_tidegate.plugin.service_assets import (
    reachable_check,
    with_lineage,
    with_services_of_schedules,
)
from dagster_tidegate.plugin.service_assets import service_assets as assets_of
from dagster_tidegate.store.retention import Keep


def build_definitions(
    defs: dg.Definitions,
    services: Sequence[str | ServiceConfig] = (),
    *,
    campaigns: Sequence[Campaign] = (),
    store_url: str | None = None,
    keep: Keep | None = None,
    resource_key: str = "breakers",
    service_assets: bool = True,
    lineage: bool = False,
    operator_jobs: bool = True,
) -> dg.Definitions:
    """Return Definitions whose jobs and assets pause with the services that they need.

    Adds the resource and the three sensors of the gate. Each job that has an op or asset in the
    pool of a service is a campaign, and so are the assets that run outside of a job: by
    "Materialize", a backfill or automation. Schedules and sensors are found by their targets.

    Args:
        defs: Any Definitions, including those from `dg.load_from_defs_folder`.
        services: The services, each by its name or with its policy. None if `defs` has a
            `BreakerResource` already.
        campaigns: What can't be inferred: catch-up, priority, owners, further triggers.
        store_url: SQLAlchemy URL of the store; None: as for `BreakerResource`.
        keep: Retention periods; None: the defaults of `Keep`.
        resource_key: Key of the `BreakerResource`, and so the name of the parameter by which ops
            and assets get it.
        service_assets: Whether each service becomes an external asset with the check `reachable`,
            in the group `services`, which has its history.
        lineage: Whether assets depend on the assets of the services that their pools name. A
            recovery then counts as an update of an upstream for automation conditions.
        operator_jobs: Whether to add the jobs `tidegate_hold`, `tidegate_release` and
            `tidegate_doctor`, to be launched by people.

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
        service_assets=service_assets,
        operator_jobs=operator_jobs,
    )
    policies = _policies(defs, added.resources or {}, resource_key)
    if lineage:
        if not service_assets:
            raise ValueError("lineage=True needs service_assets=True: assets depend on them")
        defs = with_lineage(defs, policies)
    defs = with_services_of_schedules(defs, policies)
    return dg.Definitions.merge(defs, added)


def gate_definitions(
    defs: dg.Definitions,
    services: Sequence[str | ServiceConfig] = (),
    *,
    campaigns: Sequence[Campaign] = (),
    store_url: str | None = None,
    keep: Keep | None = None,
    resource_key: str = "breakers",
    service_assets: bool = True,
    operator_jobs: bool = True,
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
    all_campaigns = AllCampaigns(campaigns, jobs)
    sensors = [
        build_pause_sensor(campaigns=all_campaigns, resource_key=resource_key),
        build_resume_sensor(campaigns=all_campaigns, resource_key=resource_key),
        build_breaker_sensor(
            campaigns=all_campaigns,
            resource_key=resource_key,
            keep=keep,
            service_assets=service_assets,
        ),
    ]
    resources = _resources(defs, services, store_url, resource_key)
    names = [policy.name for policy in _policies(defs, resources, resource_key)]
    has_assets = service_assets and names
    return dg.Definitions(
        sensors=sensors,
        resources=resources,
        assets=assets_of(names) if has_assets else None,
        asset_checks=[reachable_check(names, resource_key)] if has_assets else None,
        jobs=jobs_of_operators(resource_key) if operator_jobs else None,
    )


def _policies(
    defs: dg.Definitions, added: Mapping[str, object], key: str
) -> Sequence[ServicePolicy]:
    resource = added.get(key) or (defs.resources or {}).get(key)
    assert isinstance(resource, BreakerResource)  # else `_resources` has refused it
    return [each for policy in resource.services for each in policy.with_parts()]


def _resources(
    defs: dg.Definitions,
    services: Sequence[str | ServiceConfig],
    store_url: str | None,
    key: str,
) -> dict[str, BreakerResource]:
    """The resource to add, unless the Definitions have it."""
    resources = defs.resources or {}
    existing = resources.get(key)
    if existing is None:
        others = [name for name, each in resources.items() if isinstance(each, BreakerResource)]
        if others and not services:
            raise ValueError(
                f"the Definitions have a BreakerResource {others[0]!r}: pass "
                f"resource_key={others[0]!r} to build_definitions, and to each where you use it"
            )
        if isinstance(services, str) or not services:
            raise ValueError(f"services is {services!r}: use a list with at least one service")
        policies = [ServiceConfig(name=s) if isinstance(s, str) else s for s in services]
        return {key: BreakerResource(services=policies, store_url=store_url)}
    if not isinstance(existing, BreakerResource):
        raise ValueError(
            f"the Definitions have another resource {key!r}: pass a different resource_key to "
            "build_definitions, and to each where you use it"
        )
    if services or store_url:
        raise ValueError(
            f"the Definitions have a BreakerResource {key!r} already: name the services and the "
            "store there, or remove it"
        )
    return {}
