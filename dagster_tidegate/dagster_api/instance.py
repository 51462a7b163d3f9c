"""What Tidegate asks of a Dagster instance beyond Dagster's public API, and nothing else does.

Pools, and the status of schedules and sensors, can be read and written only so. When a new
version of Dagster changes any of it, this module is the one to change; each test that is named
after a fact about Dagster says which fact it was.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg
import sqlalchemy as sa
from dagster._core.definitions.schedule_definition import ScheduleEvaluationContext
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.events import RunFailureReason
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.execution.resources_init import get_transitive_required_resource_keys
from dagster._core.remote_origin import RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickStatus,
)
from dagster._core.snap import snapshot_from_execution_plan
from dagster._core.storage.dagster_run import ACTIVE_RUN_STATUSES, NOT_FINISHED_STATUSES
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import ConcurrencyLimitsTable
from dagster._core.storage.runs import SqlRunStorage
from dagster._core.storage.runs.schema import RunsTable
from dagster._core.storage.schedules.migration import SCHEDULE_JOBS_SELECTOR_ID
from dagster._core.storage.schedules.schema import InstigatorsTable, SecondaryIndexMigrationTable
from dagster._core.storage.schedules.sql_schedule_storage import SqlScheduleStorage
from dagster._core.storage.tags import (
    AUTO_RETRY_RUN_ID_TAG,
    BACKFILL_ID_TAG,
    PARENT_RUN_ID_TAG,
    PARTITION_NAME_TAG,
    PRIORITY_TAG,
    RESUME_RETRY_TAG,
    RETRY_NUMBER_TAG,
    ROOT_RUN_ID_TAG,
    RUN_FAILURE_REASON_TAG,
    RUN_KEY_TAG,
    SCHEDULED_EXECUTION_TIME_TAG,
    SENSOR_NAME_TAG,
    STEP_SELECTION_TAG,
    TICK_ID_TAG,
    WILL_RETRY_TAG,
)
from dagster._serdes import deserialize_value
from dagster._utils.schedules import schedule_execution_time_iterator

from dagster_tidegate.store.campaigns import Trigger
from dagster_tidegate.store.takeovers import DEFAULT, RUNNING, UNSET, TakeoverKind

AssetJob = UnresolvedAssetJobDefinition

PART_TAG = "tidegate/part"
"""A sensor of the gate has it, with the part of the gate that it is, whatever its name."""
PARTITION_TAG = "tidegate/partition"
CANARY_TAG = "tidegate/canary"
SUPERSEDED_TAG = "tidegate/superseded_by"
FORMER_PRIORITY_TAG = "tidegate/former_priority"
# Above what people use; a canary waits for a place that is made for it alone.
CANARY_PRIORITY = 1_000_000
RUN_KEY = "tidegate/"

_LIMITS = ConcurrencyLimitsTable.c
_POOLS = sa.select(_LIMITS.concurrency_key, _LIMITS.limit, _LIMITS.using_default_limit)
_RUNS = sa.select(
    RunsTable.c.run_body,
    RunsTable.c.status,
    RunsTable.c.update_timestamp,
    RunsTable.c.create_timestamp,
).order_by(RunsTable.c.update_timestamp)
_MIGRATED = SecondaryIndexMigrationTable.c
_TRIGGERS = sa.select(
    InstigatorsTable.c.instigator_body,
    sa.exists().where(
        _MIGRATED.name == SCHEDULE_JOBS_SELECTOR_ID, _MIGRATED.migration_completed.is_not(None)
    ),
)
_KINDS = {
    InstigatorType.SCHEDULE: TakeoverKind.SCHEDULE,
    InstigatorType.SENSOR: TakeoverKind.SENSOR,
}
# What says how a run came to be, and not what it is: not for the run that follows it.
_OF_ONE_RUN = {
    AUTO_RETRY_RUN_ID_TAG,
    PARENT_RUN_ID_TAG,
    RESUME_RETRY_TAG,
    RETRY_NUMBER_TAG,
    ROOT_RUN_ID_TAG,
    RUN_FAILURE_REASON_TAG,
    RUN_KEY_TAG,
    SENSOR_NAME_TAG,
    STEP_SELECTION_TAG,
    TICK_ID_TAG,
    WILL_RETRY_TAG,
}


@dataclass(frozen=True)
class TriggerState:
    """What Dagster has stored of a schedule or sensor.

    Attributes:
        status: `RUNNING`, `STOPPED` or `DECLARED_IN_CODE`.
        started_at: When it was last switched on (UTC), where Dagster knows.
    """

    status: str
    started_at: datetime | None = None


@dataclass(frozen=True)
class RunChange:
    """A Dagster run whose record changed, and when; and when it was created (UTC)."""

    run: dg.DagsterRun
    at: datetime
    created_at: datetime


class Dagster:
    """The pools, schedules, sensors and runs of a Dagster instance.

    Args:
        instance: The instance.
        repository: The repository of the caller; without it, only schedules and sensors that
            Dagster has a row for can be written.
    """

    def __init__(
        self, instance: dg.DagsterInstance, repository: "Repository | None" = None
    ) -> None:
        self.instance = instance
        self._repository = repository

    def default_limit(self) -> int | None:
        """Return the limit of pools that have none of their own; None where there is none."""
        return self.instance.global_op_concurrency_default_limit

    def pools(self) -> Mapping[str, str]:
        """Return the pools that have a limit: `default`, or the number, by name."""
        storage, rows = self.instance.event_log_storage, []
        if isinstance(storage, SqlEventLogStorage) and storage.has_default_pool_limit_col:
            with storage.index_connection() as conn:
                rows = conn.execute(_POOLS).all()
        # Dagster's own way looks first whether there are pools of an older version; where there
        # are any of this one it finds the same.
        limits = [tuple(row) for row in rows] or [
            (pool.name, pool.limit, pool.from_default) for pool in storage.get_pool_limits()
        ]
        return {
            name: DEFAULT if from_default else str(limit) for name, limit, from_default in limits
        }

    def set_pool(self, name: str, value: str) -> None:
        """Give a pool a limit.

        Args:
            name: Name of the pool.
            value: The number, `default` (it follows the instance's default), or `unset`.
        """
        storage = self.instance.event_log_storage
        if value in (UNSET, DEFAULT):
            # A limit that was set explicitly becomes one that follows the default only when the
            # row is made anew.
            storage.delete_concurrency_limit(name)
        if value == DEFAULT:
            storage.initialize_concurrency_limit_to_default(name)
        elif value != UNSET:
            storage.set_concurrency_slots(name, int(value))

    def triggers(self) -> Mapping[str, TriggerState]:
        """Return the stored states of all schedules and sensors, by selector id."""
        storage, rows = self.instance.schedule_storage, []
        if isinstance(storage, SqlScheduleStorage):
            rows = storage.execute(_TRIGGERS)
        # Dagster's own way asks three times whether its tables are of this version first.
        states = (
            [deserialize_value(body, InstigatorState) for body, _ in rows]
            if rows and all(migrated for _, migrated in rows)
            else self.instance.all_instigator_state()
        )
        return {
            state.selector_id: TriggerState(state.status.value, _started_at(state))
            for state in states
        }

    def trigger(self, selector_id: str) -> str:
        """Return the stored status of a schedule or sensor; `unset` where there is none."""
        stored = self.instance.get_instigator_state(selector_id, selector_id)
        return UNSET if stored is None else stored.status.value

    def set_trigger(
        self, kind: TakeoverKind, name: str, selector_id: str, status: str, now: datetime
    ) -> bool:
        """Write the status of a schedule or sensor.

        Args:
            kind: Which of the two.
            name: Its name.
            selector_id: Dagster's id of it.
            status: `RUNNING`, `STOPPED` or `DECLARED_IN_CODE`.
            now: From when on a schedule that runs again has ticks, UTC.

        Returns:
            Whether it could be written: not where Dagster has no row and this is not the code
            location that knows it.
        """
        stored = self.instance.get_instigator_state(selector_id, selector_id)
        to = InstigatorStatus(status)
        if stored is None:
            if self._repository is None:
                return False
            new = self._repository.state(kind, name)
            if new is None:
                return False
            self.instance.add_instigator_state(new)
            stored = new
        if isinstance(stored.instigator_data, ScheduleInstigatorData):
            started = None if to is InstigatorStatus.STOPPED else now.timestamp()
            # Where this time is not there, or an hour old, the scheduler notes it at its next look:
            # in the row that it had read before, also of a stopped schedule, and with its status.
            looked_at = now.timestamp()
            stored = stored.with_data(
                ScheduleInstigatorData(stored.instigator_data.cron_schedule, started, looked_at)
            )
        elif isinstance(stored.instigator_data, SensorInstigatorData) and status == RUNNING:
            stored = stored.with_data(
                stored.instigator_data.with_sensor_start_timestamp(now.timestamp())
            )
        self.instance.update_instigator_state(stored.with_status(to))
        return True

    def latest_tick(self, name: str, selector_id: str) -> datetime | None:
        """Return the time (UTC) of the latest tick that Dagster evaluated of a schedule."""
        if self._repository is None:
            return None
        origin = self._repository.origin.get_instigator_origin(name)
        for tick in self.instance.get_ticks(origin.get_id(), selector_id, limit=2):
            if tick.status is not TickStatus.STARTED:  # one that was broken off is to be redone
                return datetime.fromtimestamp(tick.timestamp, UTC)
        return None

    def run(self, run_id: str) -> dg.DagsterRun | None:
        """Return a run, or None where Dagster has it no more."""
        return self.instance.get_run_by_id(run_id)

    def runs(
        self, *, tags: Mapping[str, str], job: str | None = None, unfinished: bool = False
    ) -> Sequence[dg.DagsterRun]:
        """Return the runs that have all of some tags, the newest first.

        Args:
            tags: Tags and their values.
            job: Only those of this job.
            unfinished: Only those that have not ended.
        """
        return self.instance.get_runs(
            dg.RunsFilter(
                job_name=job,
                tags=dict(tags),
                statuses=NOT_FINISHED_STATUSES if unfinished else None,
            )
        )

    def runs_of(self, job: str, partition: str) -> Sequence[dg.DagsterRun]:
        """Return the runs that work on a campaign run, or may, and are asked for or unfinished.

        Args:
            job: Name of the campaign's job.
            partition: Its partition, as `partition_of` returns it.
        """
        found = {run.run_id: run for run in self.runs(tags={PARTITION_TAG: partition}, job=job)}
        for tag in (PARTITION_NAME_TAG, ROOT_RUN_ID_TAG):
            for run in self.runs(tags={tag: partition}, job=job, unfinished=True):
                found[run.run_id] = run
        return list(found.values())

    def unfinished_of(self, partitions: Collection[str]) -> Sequence[dg.DagsterRun]:
        """Return the runs that have not ended and work on one of some partitions, of any job.

        Args:
            partitions: Partitions, as `partition_of` returns them.
        """
        if not partitions:
            return []
        names = list(partitions)
        filters = [
            dg.RunsFilter(tags={tag: names}, statuses=NOT_FINISHED_STATUSES)
            for tag in (PARTITION_NAME_TAG, PARTITION_TAG, ROOT_RUN_ID_TAG)
        ]
        found = {run.run_id: run for each in filters for run in self.instance.get_runs(each)}
        return [*found.values(), *(r for r in self.unfinished(names) if r.run_id not in found)]

    def canaries(self) -> Sequence[dg.DagsterRun]:
        """Return the runs that try a service and have not ended.

        One that never came into the queue is none: Dagster died, and has to be asked again.
        """
        # By their priority: Dagster can't look for one service among several in a tag.
        found = self.runs(tags={PRIORITY_TAG: str(CANARY_PRIORITY)}, unfinished=True)
        return [
            run
            for run in found
            if tried_by(run) and run.status is not dg.DagsterRunStatus.NOT_STARTED
        ]

    def unfinished(self, run_ids: Collection[str]) -> Sequence[dg.DagsterRun]:
        """Return those of some runs that have not ended."""
        if not run_ids:
            return []
        return self.instance.get_runs(
            dg.RunsFilter(run_ids=list(run_ids), statuses=NOT_FINISHED_STATUSES)
        )

    def queued(self, limit: int, job: str | None = None) -> Sequence[dg.DagsterRun]:
        """Return the queued runs, or those of a job, the oldest first.

        Args:
            limit: How many at most.
            job: Name of the job, or None for all.
        """
        return [
            record.dagster_run
            for record in self.instance.get_run_records(
                dg.RunsFilter(job_name=job, statuses=[dg.DagsterRunStatus.QUEUED]),
                limit=limit,
                ascending=True,
            )
        ]

    def in_progress(self, pools: frozenset[str]) -> Mapping[str, int]:
        """Return how many runs that have left the queue and not ended use each of some pools."""
        counts = dict.fromkeys(pools, 0)
        for run in self.instance.get_runs(dg.RunsFilter(statuses=ACTIVE_RUN_STATUSES)):
            for pool in pools_of(run) & pools:
                counts[pool] += 1
        return counts

    def changes(self, since: datetime, limit: int) -> Sequence[RunChange]:
        """Return the runs that changed after a time, in the order of their change.

        Args:
            since: The time, UTC.
            limit: How many at most.
        """
        storage = self.instance.run_storage
        if isinstance(storage, SqlRunStorage):
            # Dagster's own way asks PostgreSQL each time which columns the table has.
            query = _RUNS.where(RunsTable.c.update_timestamp > since.replace(tzinfo=None))
            rows = storage.fetchall(query.limit(limit))
            found = [
                (
                    deserialize_value(row["run_body"], dg.DagsterRun).with_status(
                        dg.DagsterRunStatus(row["status"])
                    ),
                    row["update_timestamp"],
                    row["create_timestamp"],
                )
                for row in rows
            ]
        else:
            records = self.instance.get_run_records(
                dg.RunsFilter(updated_after=since),
                limit=limit,
                order_by="update_timestamp",
                ascending=True,
            )
            found = [(r.dagster_run, r.update_timestamp, r.create_timestamp) for r in records]
        return [
            RunChange(run, at.replace(tzinfo=UTC), _rounded_up(created_at.replace(tzinfo=UTC)))
            for run, at, created_at in found
        ]

    def add_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Add tags to a run."""
        self.instance.add_run_tags(run_id, dict(tags))

    def create_with_ops(self, request: dg.RunRequest, like: dg.DagsterRun) -> None:
        """Create the run of a request that is to have the ops which another run was launched with.

        Dagster has no such request. But it submits a run that is there under a request's key and
        did not come into the queue, as it does where it died in between.

        Args:
            request: The request, which is to be returned to Dagster too.
            like: The run with a selection of ops.

        Raises:
            dagster.DagsterInvalidSubsetError: If the job has none of the ops any more.
        """
        assert self._repository is not None  # who asks for runs has one
        job = self._repository.definition.get_job(like.job_name).get_subset(
            op_selection=like.op_selection
        )
        plan = create_execution_plan(
            job,
            run_config=like.run_config,
            instance_ref=self.instance.get_ref(),
            tags=request.tags,
            repository_load_data=self._repository.definition.repository_load_data,
        )
        key = {RUN_KEY_TAG: request.run_key or "", SENSOR_NAME_TAG: self._repository.sensor}
        self.instance.create_run(
            job_name=like.job_name,
            run_id=None,
            run_config=like.run_config,
            status=dg.DagsterRunStatus.NOT_STARTED,
            tags={**request.tags, **key},
            root_run_id=None,
            parent_run_id=None,
            step_keys_to_execute=None,
            execution_plan_snapshot=snapshot_from_execution_plan(plan, job.get_job_snapshot_id()),
            job_snapshot=job.get_job_snapshot(),
            parent_job_snapshot=job.get_parent_job_snapshot(),
            asset_selection=None,
            asset_check_selection=None,
            resolved_op_selection=like.resolved_op_selection,
            op_selection=like.op_selection,
            remote_job_origin=like.remote_job_origin,
            job_code_origin=like.job_code_origin,
            asset_graph=job.asset_layer.asset_graph,
        )

    def hand_backfill_over(self, run_id: str) -> None:
        """Let the run that follows a paused one stand for it in their backfill.

        Dagster says that a backfill has failed when one of its runs is CANCELED, as a paused one
        is, and that it is over when none of its runs is unfinished, as while all are paused. A
        tag can't be taken away, so the paused run's names no backfill that there is.

        Args:
            run_id: The paused run. Nothing happens unless a run of its backfill has followed it.
        """
        run = self.run(run_id)
        if run is None or BACKFILL_ID_TAG not in run.tags:
            return
        backfill_id = run.tags[BACKFILL_ID_TAG]
        if not self.runs(
            tags={PARENT_RUN_ID_TAG: run_id, BACKFILL_ID_TAG: backfill_id}, unfinished=True
        ):
            return
        self.add_tags(run_id, {BACKFILL_ID_TAG: f"{backfill_id} (paused)"})
        backfill = self.instance.get_backfill(backfill_id)
        if backfill is not None and backfill.status is BulkActionStatus.COMPLETED_FAILED:
            again = backfill._replace(
                status=BulkActionStatus.REQUESTED, backfill_end_timestamp=None
            )
            self.instance.update_backfill(again)

    def is_canceling(self, run_id: str) -> bool:
        """Return whether somebody asked Dagster to terminate a run.

        Every launcher notes that before it sends the run's process a signal. A signal without it is
        the machine's: a pod that is evicted, a container that is replaced.
        """
        run = self.run(run_id)
        return run is not None and run.status is dg.DagsterRunStatus.CANCELING

    def was_interrupted(self, run: dg.DagsterRun) -> bool:
        """Return whether a run failed because its process was told to end, and stays so.

        Where `run_retries` is on, Dagster repeats it by itself.
        """
        reason = run.tags.get(RUN_FAILURE_REASON_TAG)
        interrupted = reason == RunFailureReason.UNEXPECTED_TERMINATION.value
        return interrupted and not self.instance.run_retries_enabled

    def end_as_canceled(self, run: dg.DagsterRun, message: str, tags: Mapping[str, str]) -> None:
        """Make Dagster end a run as CANCELED when its op raises: no failure, and no retry.

        So ends a run that pauses, too: Dagster knows a status SUSPENDED since 1.13.26, but nothing
        in it writes it yet. When that changes, this is the place.

        Args:
            run: The run.
            message: Why, for people.
            tags: Tags by which it is found.
        """
        self.add_tags(run.run_id, tags)
        if not self.is_canceling(run.run_id):  # a person may have asked for it already
            self.instance.report_run_canceling(run, message)


@dataclass(frozen=True)
class Repository:
    """A repository of a code location: what is defined in it, and what Dagster calls it.

    Attributes:
        origin: What Dagster calls it.
        definition: What is defined in it.
        sensor: Name of the sensor of it that is being evaluated.
    """

    origin: RemoteRepositoryOrigin
    definition: dg.RepositoryDefinition
    sensor: str

    @classmethod
    def of(cls, context: dg.SensorEvaluationContext) -> "Repository":
        """Return the repository of the sensor that is being evaluated.

        Raises:
            ValueError: If the context has none, as outside the daemon.
        """
        location, name = context.code_location_origin, context.repository_name
        if location is None or name is None or context.repository_def is None:
            raise ValueError(f"sensor {context.sensor_name} is not evaluated in a repository")
        origin = RemoteRepositoryOrigin(location, name)
        return cls(origin, context.repository_def, context.sensor_name)

    @property
    def location(self) -> str:
        """Name of the code location."""
        return self.origin.code_location_origin.location_name

    def state(self, kind: TakeoverKind, name: str) -> InstigatorState | None:
        """Return the state of a schedule or sensor that Dagster has none of, as stopped."""
        type_ = _type_of(kind)
        if kind is TakeoverKind.SCHEDULE:
            if not self.definition.has_schedule_def(name):
                return None
            cron = self.definition.get_schedule_def(name).cron_schedule
            data = ScheduleInstigatorData(cron if isinstance(cron, str) else list(cron))
        else:
            if not self.definition.has_sensor_def(name):
                return None
            sensor = self.definition.get_sensor_def(name)
            data = SensorInstigatorData(
                min_interval=sensor.minimum_interval_seconds, sensor_type=sensor.sensor_type
            )
        origin = self.origin.get_instigator_origin(name)
        return InstigatorState(origin, type_, InstigatorStatus.STOPPED, data)

    def trigger(self, definition: dg.ScheduleDefinition | dg.SensorDefinition) -> Trigger:
        """Return a schedule or sensor of the repository as the store keeps it."""
        is_schedule = isinstance(definition, dg.ScheduleDefinition)
        kind = TakeoverKind.SCHEDULE if is_schedule else TakeoverKind.SENSOR
        state = self.state(kind, definition.name)
        if state is None:
            raise ValueError(
                f"{kind} {definition.name} is not in repository {self.definition.name}"
            )
        return Trigger(
            kind, definition.name, state.selector_id, definition.default_status.value == RUNNING
        )


def pools_of(run: dg.DagsterRun) -> frozenset[str]:
    """Return the pools that a run uses, as they were when it was created."""
    concurrency = run.run_op_concurrency
    return frozenset(concurrency.all_pools or ()) if concurrency is not None else frozenset()


def partition_of(run: dg.DagsterRun) -> str:
    """Return the campaign run that a run works on: its partition, or else its first ancestor.

    A run that the gate asked for is tagged with it, since Dagster makes it a root of its own.
    """
    tags = run.tags
    return (
        tags.get(PARTITION_NAME_TAG)
        or tags.get(PARTITION_TAG)
        or tags.get(ROOT_RUN_ID_TAG)
        or run.root_run_id
        or run.run_id
    )


def ancestors(run: dg.DagsterRun) -> set[str]:
    """Return the ids of the runs that a run repeats: the one before it, and the first."""
    found = {
        run.parent_run_id,
        run.root_run_id,
        run.tags.get(PARENT_RUN_ID_TAG),
        run.tags.get(ROOT_RUN_ID_TAG),
    }
    return {run_id for run_id in found if run_id is not None}


def tags_for_next(run: dg.DagsterRun) -> dict[str, str]:
    """Return the tags of the run that follows a paused one.

    The lineage shows in Dagster's pages. Dagster's retries go by the run's own record and not by
    these tags, so that the new run may be retried as often as the first.

    Args:
        run: The paused run.
    """
    kept = {
        key: value
        for key, value in run.tags.items()
        if key not in _OF_ONE_RUN and not key.startswith((".dagster/", "tidegate/"))
    }
    root = run.tags.get(ROOT_RUN_ID_TAG) or run.root_run_id or run.run_id
    kept |= {
        PARENT_RUN_ID_TAG: run.run_id,
        ROOT_RUN_ID_TAG: root,
        PARTITION_TAG: partition_of(run),
    }
    if scheduled := run.tags.get(SCHEDULED_EXECUTION_TIME_TAG):
        kept[SCHEDULED_EXECUTION_TIME_TAG] = scheduled
    if tried_by(run):
        kept.pop(PRIORITY_TAG, None)
        former = run.tags.get(FORMER_PRIORITY_TAG)
        kept |= {PRIORITY_TAG: former} if former else {}
    return kept


def canary_tags(tags: Mapping[str, str], services: Collection[str]) -> dict[str, str]:
    """Return what makes a run the canary of services: it is first in the queue, and marked.

    Args:
        tags: The tags that the run has.
        services: Names of the half open services.
    """
    # One that is a canary already, of fewer services, has no other priority than a canary's.
    former = tags.get(FORMER_PRIORITY_TAG if CANARY_TAG in tags else PRIORITY_TAG)
    return {
        CANARY_TAG: ",".join(sorted(services)),
        PRIORITY_TAG: str(CANARY_PRIORITY),
        **({FORMER_PRIORITY_TAG: former} if former else {}),
    }


def tried_by(run: dg.DagsterRun) -> frozenset[str]:
    """Return the services that a run is the canary of."""
    tag = run.tags.get(CANARY_TAG)
    return frozenset(tag.split(",") if tag else ())


def request_key(campaign_run: int, number: int) -> str:
    """Return the run key of the so-many-th request for a run of a campaign run."""
    return f"{RUN_KEY}{campaign_run}/{number}"


def request_number(run: dg.DagsterRun) -> int:
    """Return the number in the run key of a run; 0 where the gate did not ask for it."""
    prefix, _, number = run.tags.get(RUN_KEY_TAG, "").rpartition("/")
    return int(number) if prefix.startswith(RUN_KEY) and number.isdecimal() else 0


def is_resume(run: dg.DagsterRun) -> bool:
    """Return whether the gate asked for a run, to go on with what had paused."""
    return request_number(run) > 0 and run.parent_run_id is None


def is_superseded(run: dg.DagsterRun, newest: str) -> bool:
    """Return whether the gate asked for a run to follow another than the newest that worked.

    Of two daemons each may launch what the gate asked for, and a person may be faster. An
    automatic retry or a re-execution follows the run that it names, whatever tags it inherited.

    Args:
        run: The run that is about to work.
        newest: Id of the run that worked on the campaign run last, or does.
    """
    parent = run.tags.get(PARENT_RUN_ID_TAG)
    return is_resume(run) and parent is not None and newest not in (parent, run.run_id)


def tick_tags(schedule: dg.ScheduleDefinition, at: datetime) -> dict[str, str]:
    """Return the tags by which Dagster knows the runs of a tick of a schedule."""
    return {
        **dg.DagsterRun.tags_for_schedule(schedule),
        SCHEDULED_EXECUTION_TIME_TAG: at.astimezone(UTC).isoformat(),
    }


def tick_times(
    schedule: dg.ScheduleDefinition, after: datetime, before: datetime
) -> Iterator[datetime]:
    """Return the times at which a schedule is due, in its time zone.

    Args:
        schedule: The schedule.
        after: The time after which, UTC.
        before: The time before which, UTC.
    """
    cron = schedule.cron_schedule
    for time in schedule_execution_time_iterator(
        after.timestamp(), cron if isinstance(cron, str) else list(cron), _zone_of(schedule)
    ):
        if time >= before:
            return
        if time > after:
            yield time


def evaluate(
    schedule: dg.ScheduleDefinition,
    at: datetime,
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
) -> tuple[Sequence[dg.RunRequest], str | None]:
    """Evaluate a schedule as Dagster's daemon would have done at a time.

    Args:
        schedule: The schedule.
        at: When it was due.
        instance: The Dagster instance.
        repository: The repository that it is in.

    Returns:
        The runs that it asks for, and why it skips where it does.
    """
    resources = repository.get_top_level_resources()
    needed = get_transitive_required_resource_keys(schedule.required_resource_keys, resources)
    with ScheduleEvaluationContext(
        instance.get_ref(),
        at,
        repository_name=repository.name,
        schedule_name=schedule.name,
        resources={key: value for key, value in resources.items() if key in needed},
        repository_def=repository,
    ) as context:
        result = schedule.evaluate_tick(context)
    return result.run_requests or [], result.skip_message


def _rounded_up(created_at: datetime) -> datetime:
    # SQLite stamps new runs with whole seconds, and changes of them with microseconds.
    return created_at if created_at.microsecond else created_at + timedelta(seconds=1)


def _zone_of(schedule: dg.ScheduleDefinition) -> str:
    return schedule.execution_timezone or "UTC"


def _type_of(kind: TakeoverKind) -> InstigatorType:
    return next(type_ for type_, found in _KINDS.items() if found is kind)


def _started_at(state: InstigatorState) -> datetime | None:
    data, started = state.instigator_data, None
    if isinstance(data, ScheduleInstigatorData):
        started = data.start_timestamp
    elif isinstance(data, SensorInstigatorData):
        started = data.last_sensor_start_timestamp
    return None if started is None else datetime.fromtimestamp(started, UTC)
