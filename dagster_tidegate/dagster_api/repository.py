"""The repository of a code location: its jobs, schedules and sensors, seen from the inside."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import (
    IMPLICIT_ASSET_JOB_NAME,
    is_reserved_asset_job_name,
)
from dagster._core.definitions.schedule_definition import ScheduleEvaluationContext
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.execution.resources_init import get_transitive_required_resource_keys
from dagster._core.remote_origin import RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
    SensorInstigatorData,
)
from dagster._core.storage.tags import SCHEDULED_EXECUTION_TIME_TAG
from dagster._utils.schedules import schedule_execution_time_iterator

from dagster_tidegate.store.campaigns import Trigger
from dagster_tidegate.store.takeovers import RUNNING, TakeoverKind

AssetJob = UnresolvedAssetJobDefinition
IMPLICIT_JOB = IMPLICIT_ASSET_JOB_NAME
"""Dagster's job of all assets of a code location."""
is_generated = is_reserved_asset_job_name
"""Whether Dagster generated the job of this name from assets."""


@dataclass(frozen=True)
class Repository:
    """A repository, evaluated by one of its sensors.

    Attributes:
        origin: Dagster's identity of it.
        definition: What is defined in it.
        sensor: Name of the sensor that is being evaluated.
    """

    origin: RemoteRepositoryOrigin
    definition: dg.RepositoryDefinition
    sensor: str
    instance: dg.DagsterInstance

    @classmethod
    def of(cls, context: dg.SensorEvaluationContext, instance: dg.DagsterInstance) -> "Repository":
        """Return the repository of the sensor that is being evaluated.

        Args:
            instance: Dagster would make one at each tick for the asking.

        Raises:
            ValueError: If the context has none, as outside the daemon.
        """
        location, name = context.code_location_origin, context.repository_name
        if location is None or name is None or context.repository_def is None:
            raise ValueError(
                "this tick has no code location: Tidegate's sensors are evaluated by "
                "Dagster's daemon only"
            )
        origin = RemoteRepositoryOrigin(location, name)
        return cls(origin, context.repository_def, context.sensor_name, instance)

    @property
    def location(self) -> str:
        """Name of the code location."""
        return self.origin.code_location_origin.location_name

    def has_partitions(self, job: str) -> bool:
        """Return whether a job has partitions."""
        return self.definition.get_job(job).partitions_def is not None

    def has_windows(self, job: str) -> bool:
        """Return whether the partitions of a job are times, or have a dimension of times."""
        return self._windows(job) is not None

    def window(self, job: str, at: datetime) -> str | None:
        """Return the key of the time partition that contains a time; None without such ones."""
        windows = self._windows(job)
        return None if windows is None else windows.get_partition_key_for_timestamp(at.timestamp())

    def _windows(self, job: str) -> dg.TimeWindowPartitionsDefinition | None:
        partitions = self.definition.get_job(job).partitions_def
        if isinstance(partitions, dg.MultiPartitionsDefinition):
            has_times = partitions.has_time_window_dimension
            return partitions.time_window_partitions_def if has_times else None
        return partitions if isinstance(partitions, dg.TimeWindowPartitionsDefinition) else None

    def assets_by_node(self, job: str) -> Mapping[str, frozenset[str]]:
        """Return the names of the assets and checks that each outermost op or graph makes.

        A check is named `asset:check`.
        """
        return {
            data.node_handle.name: frozenset(key.to_user_string() for key in data.assets_def.keys)
            | {f"{key.asset_key.to_user_string()}:{key.name}" for key in data.assets_def.check_keys}
            for data in self.definition.get_job(job).asset_layer.data
        }

    def schedule(self, name: str) -> dg.ScheduleDefinition | None:
        """Return a schedule; None if it is no longer defined."""
        has_it = self.definition.has_schedule_def(name)
        return self.definition.get_schedule_def(name) if has_it else None

    def stopped_state(self, kind: TakeoverKind, name: str) -> InstigatorState | None:
        """Return a row for a trigger that Dagster has none for, as stopped; None if undefined."""
        data: ScheduleInstigatorData | SensorInstigatorData
        if kind is TakeoverKind.SCHEDULE:
            schedule = self.schedule(name)
            if schedule is None:
                return None
            type_, data = InstigatorType.SCHEDULE, ScheduleInstigatorData(_cron(schedule))
        else:
            if not self.definition.has_sensor_def(name):
                return None
            sensor = self.definition.get_sensor_def(name)
            type_ = InstigatorType.SENSOR
            data = SensorInstigatorData(
                min_interval=sensor.minimum_interval_seconds, sensor_type=sensor.sensor_type
            )
        origin = self.origin.get_instigator_origin(name)
        return InstigatorState(origin, type_, InstigatorStatus.STOPPED, data)

    def trigger(self, definition: dg.ScheduleDefinition | dg.SensorDefinition) -> Trigger:
        """Return a schedule or sensor of the repository as the store keeps it.

        Raises:
            ValueError: If it is not in the repository.
        """
        is_schedule = isinstance(definition, dg.ScheduleDefinition)
        kind = TakeoverKind.SCHEDULE if is_schedule else TakeoverKind.SENSOR
        name = definition.name
        state = self.stopped_state(kind, name)
        if state is None:
            raise ValueError(f"{kind} {name} is not in repository {self.definition.name}")
        return Trigger(kind, name, state.selector_id, definition.default_status.value == RUNNING)

    def evaluate(
        self, schedule: dg.ScheduleDefinition, at: datetime
    ) -> tuple[Sequence[dg.RunRequest], str | None]:
        """Evaluate a schedule as Dagster's daemon would have done at a time.

        Its function gets the time in the time zone of the schedule.

        Returns:
            The runs that it requests, and the skip message if it skips.
        """
        at = at.astimezone(ZoneInfo(schedule.execution_timezone or "UTC"))
        resources = self.definition.get_top_level_resources()
        needed = get_transitive_required_resource_keys(schedule.required_resource_keys, resources)
        with ScheduleEvaluationContext(
            self.instance.get_ref(),
            at,
            repository_name=self.definition.name,
            schedule_name=schedule.name,
            resources={key: value for key, value in resources.items() if key in needed},
            repository_def=self.definition,
        ) as context:
            result = schedule.evaluate_tick(context)
        return result.run_requests or [], result.skip_message


def tick_tags(schedule: dg.ScheduleDefinition, at: datetime) -> dict[str, str]:
    """Return the tags by which Dagster knows the runs of a tick of a schedule."""
    return {
        **dg.DagsterRun.tags_for_schedule(schedule),
        SCHEDULED_EXECUTION_TIME_TAG: at.astimezone(UTC).isoformat(),
    }


def tick_times(
    schedule: dg.ScheduleDefinition, after: datetime, before: datetime
) -> Iterator[datetime]:
    """Yield the times between two others (both excluded) at which a schedule is due.

    They are in the schedule's time zone; the limits are UTC.
    """
    zone = schedule.execution_timezone or "UTC"
    for time in schedule_execution_time_iterator(after.timestamp(), _cron(schedule), zone):
        if time >= before:
            return
        if time > after:
            yield time


def _cron(schedule: dg.ScheduleDefinition) -> str | list[str]:
    cron = schedule.cron_schedule
    return cron if isinstance(cron, str) else list(cron)
