"""Services as assets in Dagster's own pages, and what is reported about them. Mostly pure.

An asset of a service has no computation, and nothing depends on it unless lineage is asked for: in
Dagster, an upstream that was never materialized keeps `eager()`, `on_missing()` and `on_cron()` of
everything downstream from firing.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_tidegate.breaker.policy import ServicePolicy, adopted_pools
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.dagster_api import REACHABLE_OP
from dagster_tidegate.dagster_api.schedules import with_schedule_metadata
from dagster_tidegate.pools import needs
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store.breakers import WOULD_OPEN
from dagster_tidegate.store.history import Event
from dagster_tidegate.text import words

if TYPE_CHECKING:
    from dagster_tidegate.plugin.resource import BreakerResource

PREFIX = "tidegate"
GROUP = "services"
CHECK = "reachable"
SERVICES = "tidegate/services"
"""Metadata of a schedule: the services that its job needs."""
MAX_LISTED = 100
"""How many campaigns an observation names."""
EVENT = "event"
"""Metadata: the id of the change in the audit log, by which it is reported once. A text, since
Dagster plots numbers."""
AssetEvent = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


def service_key(service: str) -> dg.AssetKey:
    """Return the key of the asset of a service.

    Example:
        >>> service_key("apollo/people_match").to_user_string()
        'tidegate/apollo/people_match'
    """
    return dg.AssetKey([PREFIX, *service.split("/")])


def service_assets(services: Collection[str]) -> Sequence[dg.AssetSpec]:
    """Return the assets of services."""
    return [
        dg.AssetSpec(
            service_key(name),
            group_name=GROUP,
            description=f"The third-party service {name}. Materialized at each recovery; observed "
            "at each change of its breaker.",
            kinds={"tidegate"},
        )
        for name in sorted(services)
    ]


def reachable_check(services: Collection[str], resource_key: str) -> dg.AssetChecksDefinition:
    """Return the checks that fail while a breaker is not closed.

    The gate reports them at each change; executing one reads the breaker. It blocks nothing unless
    an automation condition says so: `all_deps_blocking_checks_passed()`.
    """
    names = {service_key(name): name for name in services}

    @dg.multi_asset_check(
        name=REACHABLE_OP,
        specs=[
            dg.AssetCheckSpec(
                CHECK,
                asset=key,
                blocking=True,
                description=f"Fails while {name} is down, throttled or refuses this client: "
                "while its breaker is not closed.",
            )
            for key, name in names.items()
        ],
        can_subset=True,
        required_resource_keys={resource_key},
    )
    def tidegate_reachable(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        resource: BreakerResource = getattr(context.resources, resource_key)
        statuses = resource.fleet.refresh().services
        for check in sorted(context.selected_asset_check_keys):
            status = statuses[names[check.asset_key]]
            yield dg.AssetCheckResult(
                passed=status.state is BreakerState.CLOSED,
                description=_described(status.name, status.state, status.reason),
                asset_key=check.asset_key,
                check_name=check.name,
                metadata=_why(status),
            )

    return tidegate_reachable


def with_services_of_schedules(
    defs: dg.Definitions, policies: Sequence[ServicePolicy]
) -> dg.Definitions:
    """Return Definitions whose schedules say in their metadata which services their jobs need."""

    def of_job(job: dg.JobDefinition) -> dict[str, str]:
        needed = _needed(job.graph.pools, policies)
        return {SERVICES: ", ".join(sorted(needed))} if needed else {}

    return with_schedule_metadata(defs, of_job)


def with_lineage(defs: dg.Definitions, policies: Sequence[ServicePolicy]) -> dg.Definitions:
    """Return Definitions whose assets depend on the assets of the services in their pools."""
    deps: dict[dg.AssetKey, list[dg.AssetKey]] = {}
    for asset in defs.assets or ():
        if isinstance(asset, dg.AssetsDefinition) and asset.is_executable:
            needed = _needed(asset.node_def.pools, policies)
            for key in asset.keys if needed else ():
                deps[key] = [service_key(name) for name in sorted(needed)]

    def depending(spec: dg.AssetSpec) -> dg.AssetSpec:
        return spec.merge_attributes(deps=deps[spec.key]) if spec.key in deps else spec

    if not deps:
        return defs
    return defs.permissive_map_resolved_asset_specs(func=depending, selection=None)


def _needed(pools: Collection[str], policies: Sequence[ServicePolicy]) -> set[str]:
    names, adopted = [policy.name for policy in policies], adopted_pools(policies)
    return {service for pool in pools for service in needs(pool, names, adopted).services}


@dataclass(frozen=True)
class Position:
    """What Dagster already has of a service: the ids of the latest reported changes.

    Attributes:
        observed: Of the latest observation; 0 if there is none.
    """

    observed: int = 0
    materialized: int = 0


@dataclass(frozen=True)
class ReportFacts:
    """What is reported besides the change itself.

    Attributes:
        paused_runs: How many runs are paused of the campaigns that need each service.
        needed_by: The campaigns that need each service, each with its schedules and sensors.
        reports: The report of the outage that an event ended, as Markdown, by id of the event.
        minutes: How long that outage lasted.
        pages: The URL of Tidegate's pages, or None.
    """

    paused_runs: Mapping[str, int]
    needed_by: Mapping[str, Mapping[str, Sequence[str]]]
    reports: Mapping[int, str]
    minutes: Mapping[int, float]
    pages: str | None = None


def to_report(
    changes: Sequence[Event], positions: Mapping[str, Position], facts: ReportFacts
) -> Iterator[AssetEvent]:
    """Yield what to report to Dagster about changes of breakers, the oldest first.

    Of a change, the observation comes last: one that has its observation is complete.
    """
    for change in changes:
        position = positions.get(change.name, Position())
        if change.id <= position.observed:
            continue
        key = service_key(change.name)
        described = _described(change.name, change.to_status, change.reason)
        is_enforced = change.to_status != WOULD_OPEN
        metadata = _metadata(change, facts)
        if is_enforced:
            yield dg.AssetCheckEvaluation(
                asset_key=key,
                check_name=CHECK,
                passed=change.to_status == BreakerState.CLOSED,
                description=described,
                metadata=metadata,
                blocking=True,
            )
        if change.closed and change.id > position.materialized:
            newer: Any = f"tidegate report --outage {change.id}"
            if facts.pages:
                newer = dg.MetadataValue.url(f"{facts.pages}/outages/{change.id}")
            yield dg.AssetMaterialization(
                key,
                description=f"{change.name} has recovered",
                metadata={
                    **metadata,
                    "outage_minutes": facts.minutes.get(change.id, 0.0),
                    "report": dg.MetadataValue.md(facts.reports.get(change.id, "")),
                    "newer_report": newer,
                },
            )
        yield dg.AssetObservation(key, description=described, metadata=metadata)


def at_first(status: BreakerStatus) -> Iterator[AssetEvent]:
    """Yield what to report about a service that Dagster has no materialization of."""
    key, passed = service_key(status.name), status.state is BreakerState.CLOSED
    yield dg.AssetCheckEvaluation(
        asset_key=key,
        check_name=CHECK,
        passed=passed,
        description=_described(status.name, status.state, status.reason),
        metadata=_why(status),
        blocking=True,
    )
    if passed:
        yield dg.AssetMaterialization(
            key,
            description=f"{status.name} is known to the gate",
            metadata={"state": str(status.state)},
        )


def _described(service: str, state: str, reason: str | None) -> str:
    why = f": {reason}" if reason and state != BreakerState.CLOSED else ""
    return f"{service} is {words(state)}{why}"


def _metadata(change: Event, facts: ReportFacts) -> dict[str, Any]:
    details = change.after or {}
    metadata: dict[str, Any] = {"state": change.to_status}
    if change.reason:
        metadata["reason"] = change.reason
    for name in ("cause", "answer"):
        if details.get(name):
            metadata[name] = details[name]
    if details.get("open_until"):
        until = datetime.fromisoformat(details["open_until"])
        metadata["retry_at"] = dg.MetadataValue.timestamp(until)
    metadata |= {
        CHECK: int(change.to_status in (BreakerState.CLOSED, WOULD_OPEN)),
        "paused_runs": facts.paused_runs.get(change.name, 0),
    }
    if details.get("calls"):
        metadata |= {
            "calls": details["calls"],
            "failures": details["failed"],
            "failure_rate": details["failed"] / details["calls"],
        }
    if details.get("p95_s") is not None:
        metadata["p95_s"] = details["p95_s"]
    if needing := facts.needed_by.get(change.name):
        listed = dict(sorted(needing.items())[:MAX_LISTED])
        metadata["needed_by"] = dg.MetadataValue.json({k: list(v) for k, v in listed.items()})
    if facts.pages:
        metadata["page"] = dg.MetadataValue.url(f"{facts.pages}/services/{change.name}")
    return metadata | {"at": dg.MetadataValue.timestamp(change.at), EVENT: str(change.id)}


def _why(status: BreakerStatus) -> dict[str, Any]:
    metadata: dict[str, Any] = {"state": str(status.state)}
    if status.reason:
        metadata["reason"] = status.reason
    if status.remedy:
        metadata["remedy"] = status.remedy
    elif status.open_until is not None:
        metadata["retry_at"] = dg.MetadataValue.timestamp(status.open_until)
    return metadata
