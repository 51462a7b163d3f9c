"""Launches and ends runs through a loaded workspace, as the Dagster UI does."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.definitions.selector import RepositorySelector
from dagster._core.errors import DagsterUserCodeProcessError, DagsterUserCodeUnreachableError
from dagster._core.remote_representation.code_location import CodeLocation
from dagster._core.remote_representation.external import RemoteRepository
from dagster._core.remote_representation.external_data import PartitionExecutionErrorSnap
from dagster._core.workspace.context import WorkspaceRequestContext

from dagster_tidegate.dagster_api import LaunchError, UnreachableError
from dagster_tidegate.dagster_api.lineage import (
    ONLY_MARKED,
    PARTITION_TAG,
    RECORDS_TAG,
    campaign_of,
    job_of,
    partition_of,
    selection_of,
    tags_for_next,
)
from dagster_tidegate.dagster_api.locations import innermost
from dagster_tidegate.dagster_api.runs import Runs
from dagster_tidegate.holds import part_name
from dagster_tidegate.text import did_you_mean


class WorkspaceLauncher:
    """Launches and ends the runs of the jobs of a workspace.

    A job is named as its campaign.
    """

    def __init__(self, context: WorkspaceRequestContext) -> None:
        self._context = context
        self._instance = context.instance

    def check(self, job: str, partition: str | None, location: str | None = None) -> None:
        """Check that a job has a partition, or has no partitions if none is named.

        Raises:
            LaunchError: If it is not so, or there is no such job.
        """
        with _launch_errors(job):
            self._check(job, partition, location)

    def launch(
        self,
        job: str,
        *,
        partition: str | None = None,
        assets: Collection[str] = (),
        tags: Mapping[str, str],
        location: str | None = None,
        run_id: str | None = None,
        may_repeat: bool = False,
    ) -> str:
        """Put a run of a job into the queue.

        Args:
            partition: The partition, if the job has any.
            assets: The assets to select, by name; empty: all of the job.
            location: The code location, if several have a job of this name.
            run_id: The id for the run; None: a new one.
            may_repeat: Whether the caller repeats a call that fails, with the same id. A run that
                could not be queued then waits for that, and is cancelled otherwise.

        Returns:
            The id of the run.

        Raises:
            LaunchError: If `check` raises it, or the job's code refuses the partition.
        """
        with _launch_errors(job):
            self._check(job, partition, location)
            return self._launch(job, partition, tags, location, run_id, may_repeat, assets)

    def launch_marked(
        self,
        job: str,
        partition: str,
        *,
        assets: Collection[str] = (),
        follows: str,
        tags: Mapping[str, str],
        location: str | None = None,
        run_id: str | None = None,
        may_repeat: bool = False,
    ) -> str:
        """Put a run into the queue that does only the marked records of a campaign run.

        Args:
            partition: The partition, or the id of the first run of a job without partitions.
            assets: The assets that the campaign run covers; empty: all of the job.
            follows: The id of its latest run, whose configuration and tags are repeated as long as
                Dagster has it.
            run_id: As for `launch`, like `may_repeat`.

        Returns:
            The id of the run.

        Raises:
            LaunchError: If the job or its partition no longer exists.
        """
        tags = {PARTITION_TAG: partition, **tags, RECORDS_TAG: ONLY_MARKED}
        former = self._instance.get_run_by_id(follows)
        with _launch_errors(job):
            if former is not None:
                tags = {**tags_for_next(former), **tags}
                config = former.run_config
                return self._launch(job, None, tags, location, run_id, may_repeat, assets, config)
            of_job = None if self._partitions(job, location) is None else partition
            self._check(job, of_job, location)
            return self._launch(job, of_job, tags, location, run_id, may_repeat, assets)

    def has_run(self, run_id: str) -> bool:
        """Return whether Dagster has a run and has put it into the queue."""
        run = self._instance.get_run_by_id(run_id)
        return run is not None and run.status is not dg.DagsterRunStatus.NOT_STARTED

    def terminate(self, job: str, partition: str, assets: Collection[str] = ()) -> Sequence[str]:
        """Ask Dagster to end the unfinished runs of a campaign run.

        Args:
            job: Name of the campaign's job.
            partition: Its partition; for a job without partitions, the id of its first run.
            assets: The assets that it covers; empty: all of the job.

        Returns:
            The ids of the runs.

        Raises:
            UnreachableError: If one can't be ended now, as while it starts.
        """
        name = part_name(partition, assets)
        unfinished = Runs(self._instance).unfinished_of([partition])
        runs = [run for run in unfinished if (campaign_of(run), partition_of(run)) == (job, name)]
        for run in runs:
            if run.status is dg.DagsterRunStatus.STARTING:
                raise UnreachableError(
                    f"Dagster run {run.run_id} is starting and can't be terminated yet: try again "
                    "in a moment"
                )
        for run in runs:
            if run.status is dg.DagsterRunStatus.NOT_STARTED:  # it never reached the queue
                self._instance.report_run_canceled(run)
            elif run.status is not dg.DagsterRunStatus.CANCELING:
                self._terminate(run.run_id)
        return [run.run_id for run in runs]

    def _check(self, job: str, partition: str | None, location: str | None) -> None:
        partitions = self._partitions(job, location)
        if partitions is None:
            if partition is not None:
                raise LaunchError(f"job {job!r} has no partitions: omit the partition")
            return
        last = ", ".join(partitions[-3:]) or "none yet"
        if partition is None:
            raise LaunchError(f"job {job!r} has partitions: specify one; the latest are {last}")
        if partition not in partitions:
            hint = did_you_mean(partition, partitions, f"the latest are {last}")
            raise LaunchError(f"job {job!r} has no partition {partition!r}; {hint}")

    def _partitions(self, job: str, location: str | None) -> Sequence[str] | None:
        """The partitions of a job; None if it is not partitioned."""
        code_location, repository = self._find(job, location)
        partitioned = {each.job_name for each in repository.get_partition_sets()}
        job = job_of(job)
        assets = repository.get_asset_node_snaps(job)
        if job not in partitioned and not any(asset.partitions is not None for asset in assets):
            return None
        names = self._context.get_partition_names(
            RepositorySelector(location_name=code_location.name, repository_name=repository.name),
            job,
            self._instance,
            selected_asset_keys=None,
        )
        return _unless_failed(names).partition_names

    def _find(self, job: str, location: str | None) -> tuple[CodeLocation, RemoteRepository]:
        matches, not_loaded = [], []
        for name, entry in self._context.get_code_location_entries().items():
            if location not in (None, name):
                continue
            if entry.code_location is None:
                not_loaded.append(name)
                continue
            for repository in entry.code_location.get_repositories().values():
                if repository.has_job(job_of(job)):
                    matches.append((entry.code_location, repository))
        if len(matches) > 1:
            names = ", ".join(sorted(code_location.name for code_location, _ in matches))
            raise LaunchError(f"several code locations have a job {job!r}: {names}")
        if not matches:
            message = f"no code location of this workspace has a job {job!r}"
            if not_loaded:
                raise UnreachableError(f"{message}; {', '.join(not_loaded)} can't be loaded")
            raise LaunchError(message)
        return matches[0]

    def _launch(
        self,
        job: str,
        partition: str | None,
        tags: Mapping[str, str],
        location: str | None,
        run_id: str | None,
        may_repeat: bool,
        assets: Collection[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> str:
        # Not queued before a crash.
        if may_repeat and run_id is not None and self._instance.has_run(run_id):
            return self._instance.submit_run(run_id, self._context).run_id
        code_location, repository = self._find(job, location)
        job = job_of(job)
        remote = repository.get_full_job(job)
        if assets:
            keys, checks = selection_of(assets)
            selector = remote.get_subset_selector(set(keys), set(checks))
            remote = code_location.get_job(selector)
        run_config: Mapping[str, Any] = {} if config is None else config
        if partition is not None:
            selector = RepositorySelector(
                location_name=code_location.name, repository_name=repository.name
            )
            partition_config = self._context.get_partition_config(
                repository.handle, job, partition, self._instance
            )
            run_config = _unless_failed(partition_config).run_config
            partition_tags = self._context.get_partition_tags(
                selector, job, partition, self._instance, selected_asset_keys=None
            )
            tags = {**_unless_failed(partition_tags).tags, **tags}
        plan = code_location.get_execution_plan(
            remote, run_config, None, None, instance=self._instance
        )
        snapshot = plan.execution_plan_snapshot
        run = self._instance.create_run(
            job_name=job,
            run_id=run_id,
            run_config=run_config,
            status=dg.DagsterRunStatus.NOT_STARTED,
            tags={**remote.run_tags, **tags},
            root_run_id=None,
            parent_run_id=None,
            step_keys_to_execute=snapshot.step_keys_to_execute,
            execution_plan_snapshot=snapshot,
            job_snapshot=remote.job_snapshot,
            parent_job_snapshot=remote.parent_job_snapshot,
            asset_selection=remote.asset_selection,
            asset_check_selection=remote.asset_check_selection,
            resolved_op_selection=remote.resolved_op_selection,
            op_selection=None,
            remote_job_origin=remote.get_remote_origin(),
            job_code_origin=remote.get_python_origin(),
            asset_graph=repository.asset_graph,
        )
        try:
            return self._instance.submit_run(run.run_id, self._context).run_id
        except BaseException:
            if not may_repeat:
                self._instance.report_run_canceled(run, "The run could not be queued.")
            raise

    def _terminate(self, run_id: str) -> None:
        try:
            ended = self._instance.run_coordinator.cancel_run(run_id)
        except dg.DagsterError as error:
            raise UnreachableError(f"Dagster run {run_id} can't be terminated: {error}") from error
        run = self._instance.get_run_by_id(run_id)
        if not ended and run is not None and not run.is_finished:
            raise UnreachableError(
                f"Dagster run {run_id} is {run.status.value}, and its process is unreachable: "
                "see the run in the Dagster UI"
            )


@contextmanager
def _launch_errors(job: str) -> Iterator[None]:
    """Turn Dagster's errors into one line."""
    try:
        yield
    except DagsterUserCodeUnreachableError as error:
        raise UnreachableError(f"the code location of {job} is unreachable: {error}") from error
    except DagsterUserCodeProcessError as error:  # its text has configuration and stack traces
        raise LaunchError(
            f"the code location failed to launch {job}: its launchpad in the Dagster UI shows why"
        ) from error
    except dg.DagsterError as error:
        message = str(error).partition("\n")[0] or type(error).__name__
        raise LaunchError(f"Dagster can't launch {job}: {message}") from error


def _unless_failed(answer: Any) -> Any:
    if isinstance(answer, PartitionExecutionErrorSnap):
        raise LaunchError(
            f"the code location could not evaluate the partition: {innermost(answer.error)}"
        )
    return answer
