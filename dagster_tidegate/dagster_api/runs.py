"""Runs: which there are, which changed, and how they end."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from dagster._core.definitions.metadata import normalize_metadata
from dagster._core.events import EngineEventData, RunFailureReason
from dagster._core.storage.dagster_run import (
    ACTIVE_RUN_STATUSES,
    FINISHED_STATUSES,
    NOT_FINISHED_STATUSES,
)
from dagster._core.storage.runs import SqlRunStorage
from dagster._core.storage.runs.schema import RunsTable
from dagster._core.storage.tags import (
    MAX_RETRIES_TAG,
    PARTITION_NAME_TAG,
    PRIORITY_TAG,
    ROOT_RUN_ID_TAG,
    RUN_FAILURE_REASON_TAG,
    RUN_KEY_TAG,
    SENSOR_NAME_TAG,
    WILL_RETRY_TAG,
)
from dagster._serdes import deserialize_value

from dagster_tidegate.dagster_api.lineage import (
    CANARY_PRIORITY,
    PARTITION_TAG,
    campaign_of,
    is_resume,
    job_of,
    partition_of,
    tried_by,
)
from dagster_tidegate.dagster_api.pools import pools_of
from dagster_tidegate.dagster_api.repository import Repository
from dagster_tidegate.store.runs import CampaignRun

CHANGE_COLUMNS = ("run_body", "status", "update_timestamp", "create_timestamp")


@dataclass(frozen=True)
class RunChange:
    """A Dagster run, when its row last changed, and when it was created (UTC)."""

    run: dg.DagsterRun
    at: datetime
    created_at: datetime


class Runs:
    """The runs of a Dagster instance. A partition is what `dagster_partition_of` returns.

    Args:
        repository: The repository of the caller, in which it creates runs.
    """

    def __init__(self, instance: dg.DagsterInstance, repository: Repository | None = None) -> None:
        self.instance = instance
        self.repository = repository

    def run(self, run_id: str) -> dg.DagsterRun | None:
        """Return a run; None if Dagster does not have it."""
        return self.instance.get_run_by_id(run_id)

    def runs(
        self, *, tags: Mapping[str, str], job: str | None = None, unfinished: bool = False
    ) -> Sequence[dg.DagsterRun]:
        """Return the runs that have all of the tags, the newest first."""
        statuses = NOT_FINISHED_STATUSES if unfinished else None
        return self.instance.get_runs(
            dg.RunsFilter(job_name=job, tags=dict(tags), statuses=statuses)
        )

    def runs_of(self, campaign_run: CampaignRun) -> Sequence[dg.DagsterRun]:
        """Return the runs of a campaign run that the gate requested or that have not finished."""
        job, partition = job_of(campaign_run.campaign), campaign_run.dagster_partition
        runs = {run.run_id: run for run in self.runs(tags={PARTITION_TAG: partition}, job=job)}
        for tag in (PARTITION_NAME_TAG, ROOT_RUN_ID_TAG):
            for run in self.runs(tags={tag: partition}, job=job, unfinished=True):
                runs[run.run_id] = run
        return [run for run in runs.values() if is_of(run, campaign_run)]

    def latest_of(self, campaign_run: CampaignRun) -> dg.DagsterRun | None:
        """Return the latest run of a campaign run; None if Dagster has none."""
        job, partition = job_of(campaign_run.campaign), campaign_run.dagster_partition
        for tag in (PARTITION_NAME_TAG, PARTITION_TAG, ROOT_RUN_ID_TAG):
            for run in self.runs(tags={tag: partition}, job=job):
                if is_of(run, campaign_run):
                    return run
        first = self.run(partition)
        return first if first is not None and is_of(first, campaign_run) else None

    def unfinished_of(self, partitions: Collection[str]) -> Sequence[dg.DagsterRun]:
        """Return the unfinished runs that work on one of Dagster's partitions, of any job."""
        if not partitions:
            return []
        ids = list(partitions)
        filters = [
            *(
                dg.RunsFilter(tags={tag: ids}, statuses=NOT_FINISHED_STATUSES)
                for tag in (PARTITION_NAME_TAG, PARTITION_TAG, ROOT_RUN_ID_TAG)
            ),
            dg.RunsFilter(run_ids=ids, statuses=NOT_FINISHED_STATUSES),
        ]
        runs = {run.run_id: run for each in filters for run in self.instance.get_runs(each)}
        return list(runs.values())

    def unfinished(self, run_ids: Collection[str]) -> Sequence[dg.DagsterRun]:
        """Return those of some runs that have not finished."""
        if not run_ids:
            return []
        return self.instance.get_runs(
            dg.RunsFilter(run_ids=list(run_ids), statuses=NOT_FINISHED_STATUSES)
        )

    def canaries(self) -> Sequence[dg.DagsterRun]:
        """Return the unfinished canaries.

        One that never reached the queue is not a canary: Dagster died, and has to be asked again.
        """
        # By priority: Dagster can't search for one service among several in a tag.
        runs = self.runs(tags={PRIORITY_TAG: str(CANARY_PRIORITY)}, unfinished=True)
        not_started = dg.DagsterRunStatus.NOT_STARTED
        return [run for run in runs if tried_by(run) and run.status is not not_started]

    def ended_canaries(self, since: datetime, limit: int) -> Sequence[dg.DagsterRun]:
        """Return the canaries that have ended since a time (UTC), the latest first."""
        ended = dg.RunsFilter(
            tags={PRIORITY_TAG: str(CANARY_PRIORITY)},
            statuses=FINISHED_STATUSES,
            updated_after=since,
        )
        records = self.instance.get_run_records(ended, limit=limit, order_by="update_timestamp")
        return [record.dagster_run for record in records]

    def queued(self, limit: int, campaign: str | None = None) -> Sequence[dg.DagsterRun]:
        """Return the queued runs, or those of one campaign, the oldest first."""
        job = None if campaign is None else job_of(campaign)
        filters = dg.RunsFilter(job_name=job, statuses=[dg.DagsterRunStatus.QUEUED])
        records = self.instance.get_run_records(filters, limit=limit, ascending=True)
        return [record.dagster_run for record in records]

    def in_progress(self, pools: frozenset[str]) -> Mapping[str, int]:
        """Return how many runs that have left the queue and not finished use each pool."""
        counts = dict.fromkeys(pools, 0)
        for run in self.instance.get_runs(dg.RunsFilter(statuses=ACTIVE_RUN_STATUSES)):
            for pool in pools_of(run) & pools:
                counts[pool] += 1
        return counts

    def changes(self, since: datetime, limit: int) -> Sequence[RunChange]:
        """Return the runs whose rows changed after a time (UTC), in the order of their changes."""
        return [
            RunChange(run, at.replace(tzinfo=UTC), _rounded_up(created_at.replace(tzinfo=UTC)))
            for run, at, created_at in self._changes(since, limit)
        ]

    def _changes(
        self, since: datetime, limit: int
    ) -> Sequence[tuple[dg.DagsterRun, datetime, datetime]]:
        storage, column = self.instance.run_storage, RunsTable.c
        # Every gate reads this every few seconds, and `get_run_records` inspects the columns of the
        # table on every call: on PostgreSQL, most of the queries of an idle tick. The table is
        # Dagster's own definition; if it ever lacks a column, or the storage is not SQL, Dagster's
        # way is taken.
        if isinstance(storage, SqlRunStorage) and all(name in column for name in CHANGE_COLUMNS):
            query = (
                RunsTable.select()
                .with_only_columns(*(column[name] for name in CHANGE_COLUMNS))
                .where(column.update_timestamp > since.replace(tzinfo=None))
                .order_by(column.update_timestamp)
            )
            return [
                (
                    deserialize_value(row["run_body"], dg.DagsterRun).with_status(
                        dg.DagsterRunStatus(row["status"])
                    ),
                    row["update_timestamp"],
                    row["create_timestamp"],
                )
                for row in storage.fetchall(query.limit(limit))
            ]
        records = self.instance.get_run_records(
            dg.RunsFilter(updated_after=since),
            limit=limit,
            order_by="update_timestamp",
            ascending=True,
        )
        return [(r.dagster_run, r.update_timestamp, r.create_timestamp) for r in records]

    def failed_launches(self, run: dg.DagsterRun, limit: int) -> Sequence[datetime]:
        """Return when the launches of a requested run, and of those before it, failed (UTC).

        Args:
            run: A run that the gate requested to resume a campaign run.
            limit: At most how many.

        Returns:
            The latest first, since a requested run of the same campaign run has started; empty if
            this run has.
        """
        tags = {PARTITION_TAG: run.tags[PARTITION_TAG]}
        failures: list[datetime] = []
        for record in self.instance.get_run_records(
            dg.RunsFilter(job_name=run.job_name, tags=tags)
        ):
            other = record.dagster_run
            if (campaign_of(other), partition_of(other)) != (campaign_of(run), partition_of(run)):
                continue  # of other assets of the same partition
            failed = other.status is dg.DagsterRunStatus.FAILURE
            if not failed or record.start_time or not is_resume(other) or len(failures) == limit:
                break
            failures.append(record.update_timestamp.replace(tzinfo=UTC))
        return failures

    def add_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Add tags to a run."""
        self.instance.add_run_tags(run_id, dict(tags))

    def create_with_ops(self, request: dg.RunRequest, like: dg.DagsterRun) -> None:
        """Create the run of a request, with the op selection of another run.

        A run request can't select ops. But Dagster submits an existing run that has the key of a
        request and never reached the queue, as after a crash of the daemon.

        Args:
            request: The request, which is to be returned to Dagster too.

        Raises:
            dagster.DagsterInvalidSubsetError: If the job no longer has these ops.
        """
        assert self.repository is not None, "only a sensor of the repository requests runs"
        definition = self.repository.definition
        key = {RUN_KEY_TAG: request.run_key or "", SENSOR_NAME_TAG: self.repository.sensor}
        self.instance.create_run_for_job(
            definition.get_job(like.job_name),
            run_config=like.run_config,
            status=dg.DagsterRunStatus.NOT_STARTED,
            tags={**request.tags, **key},
            op_selection=list(like.op_selection or ()),
            resolved_op_selection=set(like.resolved_op_selection or ()),
            remote_job_origin=like.remote_job_origin,
            job_code_origin=like.job_code_origin,
            repository_load_data=definition.repository_load_data,
        )

    def is_canceling(self, run_id: str) -> bool:
        """Return whether someone asked Dagster to terminate a run.

        Every run launcher records that before it signals the run's process. A signal without it
        comes from the machine, as when a pod is evicted.
        """
        run = self.run(run_id)
        return run is not None and run.status is dg.DagsterRunStatus.CANCELING

    def was_interrupted(self, run: dg.DagsterRun) -> bool:
        """Return whether a run failed since its process received a signal, and is not retried.

        With `run_retries` on, Dagster retries it itself.
        """
        return is_interrupted(run) and not self.instance.run_retries_enabled

    def is_retried(self, run: dg.DagsterRun) -> bool:
        """Return whether Dagster retries a failed run itself."""
        return self.instance.run_retries_enabled and run.tags.get(WILL_RETRY_TAG) != "false"

    def do_not_retry(self, run_id: str) -> None:
        """Keep Dagster from retrying a run when it fails."""
        self.add_tags(run_id, {MAX_RETRIES_TAG: "0"})

    def explain_wait(self, run: dg.DagsterRun, tags: Mapping[str, str], message: str) -> None:
        """Tag a run that waits, and write to its log what it waits for."""
        self.add_tags(run.run_id, tags)
        self.instance.report_engine_event(message, run)

    def end_as_canceled(
        self,
        run: dg.DagsterRun,
        message: str,
        tags: Mapping[str, str],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Make Dagster end a run as CANCELED when its op raises: no failure, and no retry.

        A paused run ends like this too. Dagster has had a status SUSPENDED since 1.13.26, which
        nothing in it writes yet; when that changes, this is the place to use it.

        Args:
            message: Why, for people.
            metadata: Details, for an event of their own in the run's log.
        """
        self.add_tags(run.run_id, tags)
        if metadata:
            details = EngineEventData(normalize_metadata(metadata))
            self.instance.report_engine_event("Details of the pause", run, details)
        if not self.is_canceling(run.run_id):  # it may have been terminated already
            self.instance.report_run_canceling(run, message)


def is_interrupted(run: dg.DagsterRun) -> bool:
    """Return whether a run failed since its process received a signal from outside of Dagster."""
    reason = run.tags.get(RUN_FAILURE_REASON_TAG)
    return reason == RunFailureReason.UNEXPECTED_TERMINATION.value


def is_of(run: dg.DagsterRun, campaign_run: CampaignRun) -> bool:
    """Return whether a run works on a campaign run."""
    name = (campaign_of(run), partition_of(run))
    return name == (campaign_run.campaign, campaign_run.partition)


def _rounded_up(created_at: datetime) -> datetime:
    # SQLite stamps new runs in whole seconds, and changes to them in microseconds.
    return created_at if created_at.microsecond else created_at + timedelta(seconds=1)
