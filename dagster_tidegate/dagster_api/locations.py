"""Code locations seen from outside: their jobs, the gate's sensors, and the `BreakerResource`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import dagster as dg
from dagster._core.remote_representation.code_location import CodeLocation
from dagster._core.remote_representation.external import (
    RemoteRepository,
    RemoteResource,
    RemoteSensor,
)
from dagster._core.scheduler.instigation import TickStatus
from dagster_shared.error import SerializableErrorInfo
from pydantic import ValidationError

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api import DOCTOR_JOB, HOLD_JOB, REACHABLE_OP, RELEASE_JOB
from dagster_tidegate.dagster_api.lineage import campaign_name

PART_TAG = "tidegate/part"
"""Tag of the gate's sensors, whatever their names: which part of the gate a sensor is."""


@dataclass(frozen=True)
class OpCode:
    """An op of a job: its name, its pool, and the resources that it requires."""

    name: str
    pool: str | None
    resources: frozenset[str]
    assets: tuple[str, ...] = ()


@dataclass(frozen=True)
class SensorCode:
    """A sensor of the gate.

    Attributes:
        part: Which part of the gate it is.
        error: Why its last tick failed; None if it did not.
    """

    name: str
    part: str
    runs: bool
    error: str | None


@dataclass(frozen=True, kw_only=True)
class ResourceCode:
    """The configuration of a code location's `BreakerResource`.

    Attributes:
        reaches_breakers: Keys of the resources through which an op reaches the breakers: the
            `BreakerResource`, and those that contain it.
        policy_error: Why the policies can't be read from outside; None if they can.
        store_url: The store that it names; None if the environment does.
        drain_timeout_s: Its drain timeout in seconds; None for the default.
    """

    reaches_breakers: frozenset[str] = frozenset()
    policies: Mapping[str, ServicePolicy] = field(default_factory=dict)
    policy_error: str | None = None
    store_url: str | None = None
    drain_timeout_s: float | None = None


@dataclass(frozen=True)
class LocationCode(ResourceCode):
    """What a code location contains, with the configuration of its `BreakerResource`.

    Attributes:
        error: Why it can't be loaded; None if it is loaded.
        dagster_version: The version of Dagster that it runs with, if it reports one.
        sensors: The gate's sensors in it.
        jobs: The ops of each job, by its name, without those that `build_definitions` adds; jobs
            that Dagster generates of assets have the name of their campaign.
    """

    name: str
    error: str | None = None
    dagster_version: str | None = None
    sensors: Sequence[SensorCode] = ()
    jobs: Mapping[str, Sequence[OpCode]] = field(default_factory=dict)


def location_code(name: str, location: CodeLocation, instance: dg.DagsterInstance) -> LocationCode:
    """Return what a loaded code location contains."""
    sensors: list[SensorCode] = []
    jobs: dict[str, Sequence[OpCode]] = {}
    for repository in location.get_repositories().values():
        sensors += [
            _sensor(sensor, instance)
            for sensor in repository.get_sensors()
            if PART_TAG in sensor.tags
        ]
        assets = _assets(repository)
        for job in repository.get_all_jobs():
            if job.name in (HOLD_JOB, RELEASE_JOB, DOCTOR_JOB):
                continue
            jobs[campaign_name(job.name, name)] = [
                OpCode(
                    op.name,
                    op.pool,
                    frozenset(op.required_resource_keys),
                    assets.get(op.name, ()),
                )
                for op in job.job_snapshot.node_defs_snapshot.op_def_snaps
                if op.name != REACHABLE_OP
            ]
    versions = location.get_dagster_library_versions() or {}
    return LocationCode(
        name=name,
        dagster_version=versions.get("dagster"),
        sensors=sensors,
        jobs=jobs,
        **vars(resource_code(location)),
    )


def resource_code(location: CodeLocation) -> ResourceCode:
    """Return the configuration of the `BreakerResource` of a loaded code location."""
    reaching: set[str] = set()
    policies: dict[str, ServicePolicy] = {}
    policy_error = store_url = drain_timeout_s = None
    for repository in location.get_repositories().values():
        resources = {resource.name: resource for resource in repository.get_resources()}
        for key, resource in resources.items():
            if not _is_breaker_resource(resource):
                continue
            reaching |= _with_parents(key, resources)
            try:
                policies |= {policy.name: policy for policy in _policies(resource)}
            except (ValueError, TypeError) as error:
                policy_error = f"resource {key}: {error}"
            store_url = store_url or _text(resource, "store_url")
            if drain := resource.configured_values.get("drain_timeout_s"):
                drain_timeout_s = float(drain) if isinstance(drain, str) else drain_timeout_s
    return ResourceCode(
        reaches_breakers=frozenset(reaching),
        policies=policies,
        policy_error=policy_error,
        store_url=store_url,
        drain_timeout_s=drain_timeout_s,
    )


def why_not_loaded(error: SerializableErrorInfo | None) -> str:
    """Return why a code location has not been loaded."""
    return innermost(error) or "it is not loaded"


def innermost(error: SerializableErrorInfo | None) -> str:
    """Return the message of the original error; Dagster wraps it several times."""
    message = ""
    while error is not None:
        message = error.message.strip() or message
        error = error.cause
    return message


def _sensor(sensor: RemoteSensor, instance: dg.DagsterInstance) -> SensorCode:
    origin, selector = sensor.get_remote_origin_id(), sensor.selector_id
    state = sensor.get_current_instigator_state(instance.get_instigator_state(origin, selector))
    ticks = instance.get_ticks(origin, selector, limit=1)
    error = None
    if ticks and ticks[0].status is TickStatus.FAILURE:
        error = innermost(ticks[0].error) or "the tick has no error message"
    return SensorCode(sensor.name, sensor.tags[PART_TAG], state.is_running, error)


def _assets(repository: RemoteRepository) -> dict[str, tuple[str, ...]]:
    """The assets that each op makes, by the name of its definition."""
    made: dict[str, list[str]] = {}
    for asset in repository.get_asset_node_snaps():
        # The ops of a graph that makes assets are part of all of them.
        names = {asset.node_definition_name, asset.op_name, *asset.op_names} - {None}
        for name in names:
            made.setdefault(str(name).rpartition(".")[2], []).append(
                asset.asset_key.to_user_string()
            )
    return {name: tuple(sorted(keys)) for name, keys in made.items()}


def _is_breaker_resource(resource: RemoteResource) -> bool:
    # By its fields, since a deployment may have a subclass.
    fields = {field.name for field in resource.config_field_snaps}
    return {"services", "store_url"} <= fields


def _with_parents(key: str, resources: Mapping[str, RemoteResource]) -> set[str]:
    """A resource and all that contain it."""
    keys: set[str] = set()
    queue = [key]
    while queue:
        name = queue.pop()
        if name not in keys:
            keys.add(name)
            queue += resources[name].parent_resources if name in resources else ()
    return keys


def _policies(resource: RemoteResource) -> list[ServicePolicy]:
    services = resource.configured_values.get("services")
    try:
        policies = json.loads(services) if isinstance(services, str) else []
        return [
            each
            for policy in policies
            for each in ServicePolicy.model_validate(policy).with_parts()
        ]
    except ValidationError as error:
        raise ValueError(f"its services can't be read: {error.errors()[0]['msg']}") from error


def _text(resource: RemoteResource, field: str) -> str | None:
    """A configured text; None if there is none, or it comes from the environment."""
    configured = resource.configured_values.get(field)
    value = json.loads(configured) if isinstance(configured, str) else None
    return value if isinstance(value, str) else None
