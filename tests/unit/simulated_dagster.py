"""A Dagster in memory, as far as the gate sees it, that can die in the middle of a write."""
# ruff: noqa: ARG002 -- the signatures are those of `dagster_api.instance.Dagster`

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import takewhile
from uuid import uuid4

import dagster as dg
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.storage.dagster_run import RunOpConcurrency

from dagster_tidegate.dagster_api.instance import Dagster
from dagster_tidegate.dagster_api.lineage import (
    PARTITION_TAG,
    campaign_of,
    dagster_partition_of,
    tried_by,
)
from dagster_tidegate.dagster_api.pools import pools_of
from dagster_tidegate.dagster_api.runs import RunChange, is_of
from dagster_tidegate.dagster_api.triggers import TriggerState
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.store.takeovers import DEFAULT, RUNNING, UNSET, TakeoverKind

ORIGIN = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "repository")
IN_PROGRESS = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED)


class Killed(BaseException):
    """The process was killed."""


class Fuse:
    """Kills the process before or after one of its next writes."""

    def __init__(self) -> None:
        self.left: int | None = None

    def burn(self) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            raise Killed


class FragileStore(Store):
    """A store whose transactions may be killed before they begin, commit, or return."""

    def __init__(self, url: str, fuse: Fuse, **kwargs) -> None:
        super().__init__(url, **kwargs)
        self._fuse = fuse
        self.between: Callable[[], None] | None = None  # what another does before the next read

    @contextmanager
    def read(self):
        between, self.between = self.between, None
        if between is not None:
            between()
        with super().read() as conn:
            yield conn

    @contextmanager
    def begin(self):
        self._fuse.burn()
        with super().begin() as conn:
            yield conn
            self._fuse.burn()  # rolls back
        self._fuse.burn()


class SimulatedDagster(Dagster):
    """Pools, triggers, a queue and runs. What a person does is `edit_pool` and `edit_trigger`.

    It replaces every method that the gate uses: there is no instance behind it.
    """

    def __init__(self, fuse: Fuse, clock, limit: int | None) -> None:
        self.fuse = fuse
        self.clock = clock
        self.limit = limit
        self.rows: dict[str, str] = {}
        self.states: dict[str, TriggerState] = {}
        self.before_stop: dict[str, TriggerState | None] = {}  # by the gate
        self.all_runs: dict[str, dg.DagsterRun] = {}
        self.changed: dict[str, datetime] = {}
        self.created: dict[str, datetime] = {}
        self.not_started: set[str] = set()  # runs that Dagster failed to start
        self.input_changed_at: datetime | None = None  # of every asset
        self.materialized_at: datetime | None = None  # every asset, by another run
        self.broken: set[str] = set()  # pools that Dagster can't write
        self.between: Callable[[], None] | None = None  # what another does before it is looked at
        self.before_write: Callable[[], None] | None = None  # or before its next write

    # --- what the gate uses ---------------------------------------------------------------------

    def default_limit(self) -> int | None:
        return self.limit

    def pools(self) -> Mapping[str, str]:
        between, self.between = self.between, None
        if between is not None:
            between()
        return dict(self.rows)

    def set_pool(self, name: str, value: str) -> None:
        if name in self.broken:
            raise OSError(f"Dagster can't write {name}")
        self._let_another_in()
        self.fuse.burn()
        if value in (UNSET, DEFAULT):
            self.rows.pop(name, None)
            self.fuse.burn()
        if value == DEFAULT and self.limit is not None:
            self.rows[name] = DEFAULT
        elif value not in (UNSET, DEFAULT):
            self.rows[name] = value
        self.fuse.burn()

    def triggers(self) -> Mapping[str, TriggerState]:
        return dict(self.states)

    def set_trigger(
        self,
        kind: TakeoverKind,
        name: str,
        selector_id: str,
        status: str,
        now: datetime,
        *,
        expected: Collection[str],
    ) -> str | None:
        before = self.trigger(selector_id)
        if before not in expected:
            return before
        self._let_another_in()
        self.fuse.burn()
        if status == "STOPPED":
            self.before_stop[selector_id] = self.states.get(selector_id)
        self.states[selector_id] = TriggerState(status, None if status == "STOPPED" else now)
        self.fuse.burn()
        return before

    def run(self, run_id: str) -> dg.DagsterRun | None:
        return self.all_runs.get(run_id)

    def given_up(self, run: dg.DagsterRun | None) -> str | None:
        return None

    def paused_in_backfills(self) -> Sequence[dg.DagsterRun]:
        return []

    def hand_backfill_over(self, run_id: str) -> None: ...

    def runs(
        self, *, tags: Mapping[str, str], job: str | None = None, unfinished: bool = False
    ) -> Sequence[dg.DagsterRun]:
        return [
            run
            for run in self.all_runs.values()
            if tags.items() <= run.tags.items()
            and job in (None, run.job_name)
            and not (unfinished and run.is_finished)
        ]

    def runs_of(self, campaign_run: CampaignRun) -> Sequence[dg.DagsterRun]:
        return [
            run
            for run in self.all_runs.values()
            if is_of(run, campaign_run) and (PARTITION_TAG in run.tags or not run.is_finished)
        ]

    def latest_of(self, campaign_run: CampaignRun) -> dg.DagsterRun | None:
        of_it = [run for run in self.all_runs.values() if is_of(run, campaign_run)]
        return of_it[-1] if of_it else None

    def canaries(self) -> Sequence[dg.DagsterRun]:
        started = [
            run
            for run in self.all_runs.values()
            if run.status is not dg.DagsterRunStatus.NOT_STARTED
        ]
        return [run for run in started if tried_by(run) and not run.is_finished]

    def ended_canaries(self, since: datetime, limit: int) -> Sequence[dg.DagsterRun]:
        ended = [
            run
            for run in self.all_runs.values()
            if tried_by(run) and run.is_finished and self.changed[run.run_id] > since
        ]
        return sorted(ended, key=lambda run: self.changed[run.run_id], reverse=True)[:limit]

    def unfinished(self, run_ids: Collection[str]) -> Sequence[dg.DagsterRun]:
        return [r for r in self.all_runs.values() if r.run_id in run_ids and not r.is_finished]

    def unfinished_of(self, partitions: Collection[str]) -> Sequence[dg.DagsterRun]:
        return [
            run
            for run in self.all_runs.values()
            if dagster_partition_of(run) in partitions and not run.is_finished
        ]

    def queued(self, limit: int, campaign: str | None = None) -> Sequence[dg.DagsterRun]:
        waiting = [r for r in self.all_runs.values() if r.status is dg.DagsterRunStatus.QUEUED]
        return [run for run in waiting if campaign in (None, campaign_of(run))][:limit]

    def in_progress(self, pools: frozenset[str]) -> Mapping[str, int]:
        active = [run for run in self.all_runs.values() if run.status in IN_PROGRESS]
        return {pool: sum(pool in pools_of(run) for run in active) for pool in pools}

    def changes(self, since: datetime, limit: int) -> Sequence[RunChange]:
        found = [
            RunChange(self.all_runs[run_id], at, self.created[run_id])
            for run_id, at in self.changed.items()
            if at > since
        ]
        return sorted(found, key=lambda change: change.at)[:limit]

    def was_interrupted(self, run: dg.DagsterRun) -> bool:
        return False

    def is_retried(self, run: dg.DagsterRun) -> bool:
        return False

    def failed_launches(self, run: dg.DagsterRun, limit: int) -> Sequence[datetime]:
        same = self.runs(tags={PARTITION_TAG: run.tags[PARTITION_TAG]}, job=run.job_name)
        failed = takewhile(lambda each: each.run_id in self.not_started, reversed(same))
        return [self.changed[each.run_id] for each in failed][:limit]

    def latest_tick(self, name: str, selector_id: str) -> datetime | None:
        return None

    def create_with_ops(self, request: dg.RunRequest, like: dg.DagsterRun) -> None:
        raise AssertionError("no run here selects ops")

    def inputs_changed(self, run: dg.DagsterRun, since: datetime) -> bool:
        return self.input_changed_at is not None and self.input_changed_at > since

    def was_replaced(self, run: dg.DagsterRun, since: datetime) -> bool:
        return self.materialized_at is not None and self.materialized_at > since

    def add_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self.fuse.burn()
        run = self.all_runs[run_id]
        self.put(run.with_tags({**run.tags, **tags}))

    def explain_wait(self, run: dg.DagsterRun, tags: Mapping[str, str], message: str) -> None:
        assert message
        self.add_tags(run.run_id, tags)

    def _let_another_in(self) -> None:
        before_write, self.before_write = self.before_write, None
        if before_write is not None:
            before_write()

    # --- what Dagster does ----------------------------------------------------------------------

    def put(self, run: dg.DagsterRun) -> None:
        self.all_runs[run.run_id] = run
        self.changed[run.run_id] = self.clock()
        self.created.setdefault(run.run_id, self.changed[run.run_id])

    def create(
        self,
        job: str,
        pools: frozenset[str],
        tags: Mapping[str, str],
        status: dg.DagsterRunStatus = dg.DagsterRunStatus.QUEUED,
    ) -> dg.DagsterRun:
        run = dg.DagsterRun(
            job_name=job,
            run_id=str(uuid4()),
            status=status,
            tags=tags,
            remote_job_origin=ORIGIN.get_job_origin(job),
            run_op_concurrency=RunOpConcurrency(
                root_key_counts={}, has_unconstrained_root_nodes=False, all_pools=set(pools)
            ),
        )
        self.put(run)
        return run

    def delete(self, run_id: str) -> None:
        for known in (self.all_runs, self.changed, self.created):
            del known[run_id]

    def end(self, run_id: str) -> None:
        self.set_status(run_id, dg.DagsterRunStatus.CANCELED)

    def set_status(self, run_id: str, status: dg.DagsterRunStatus) -> None:
        self.put(self.all_runs[run_id].with_status(status))

    def launchable(self) -> list[dg.DagsterRun]:
        """Return the queued runs that Dagster would launch now, in its order."""
        used = {}
        for run in self.all_runs.values():
            if run.status in IN_PROGRESS:
                for pool in pools_of(run):
                    used[pool] = used.get(pool, 0) + 1
        found = []
        waiting = [r for r in self.all_runs.values() if r.status is dg.DagsterRunStatus.QUEUED]
        for run in sorted(waiting, key=lambda r: -int(r.tags.get("dagster/priority", "0"))):
            pools = pools_of(run)
            limits = {pool: self._limit(pool) for pool in pools}
            if all(m is None or used.get(pool, 0) < m for pool, m in limits.items()):
                found.append(run)
                for pool in pools:
                    used[pool] = used.get(pool, 0) + 1
        return found

    def trigger(self, selector_id: str) -> str:
        """Return the stored status of one trigger."""
        state = self.states.get(selector_id)
        return UNSET if state is None else state.status

    def _limit(self, pool: str) -> int | None:
        value = self.rows.get(pool, UNSET)
        return self.limit if value in (UNSET, DEFAULT) else int(value)

    def write_back(self, selector_id: str) -> None:
        """Write a row back that was read before it was stopped."""
        before = self.before_stop.get(selector_id)
        if before is not None:
            self.states[selector_id] = before

    # --- what a person does ---------------------------------------------------------------------

    def edit_pool(self, name: str, value: str) -> None:
        if value == UNSET:
            self.rows.pop(name, None)
        else:
            self.rows[name] = value

    def edit_trigger(self, selector_id: str, status: str) -> None:
        self.before_stop.pop(selector_id, None)
        started = self.clock() if status == RUNNING else None
        self.states[selector_id] = TriggerState(status, started)
