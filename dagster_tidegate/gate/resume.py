"""Resumes: requests canaries, the next attempts of paused campaign runs, and missed ticks.

A request is repeated in every tick until Dagster has the run. Its `run_key` is counted from the
runs that Dagster has: it keeps a run from being launched twice, and from being dropped forever.
"""

import logging
from collections.abc import Collection, Mapping, Sequence

import dagster as dg

from dagster_tidegate.dagster_api.lineage import (
    PARTITION_TAG,
    campaign_of,
    canary_tags,
    job_of,
    partition_of,
    request_key,
    request_number,
    selection_of,
    tags_for_next,
)
from dagster_tidegate.dagster_api.pools import pools_of
from dagster_tidegate.gate import failed_launches
from dagster_tidegate.gate.follow import never_queued
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.missed_ticks import MissedTickPlanner
from dagster_tidegate.gate.observe import assets_of, held_runs
from dagster_tidegate.gate.plan import Cover, Observation, limit_of
from dagster_tidegate.holds import SystemActor
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import UNREACHABLE
from dagster_tidegate.store.missed_ticks import MissedTick
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.store.takeovers import TakeoverKind

# Dagster submits the requests of a tick before it evaluates the next, in about 50 ms each.
MAX_REQUESTS = 25

log = logging.getLogger(__name__)


def request_runs(
    gate: Gate, observation: Observation, planner: MissedTickPlanner
) -> tuple[Sequence[dg.RunRequest], Sequence[str]]:
    """Return the runs that Dagster should launch now, in order, and notes for people.

    Canaries come first, then paused campaign runs by priority and by when they were paused, then
    those of backfills that will wait in Dagster's queue, then missed ticks; the ramps and
    `MAX_REQUESTS` limit how many.
    """
    requests = _Requests(gate, observation, planner)
    requests.add_canaries(observation)
    requests.add_paused(observation.paused)
    requests.add_backfills(observation.paused, observation.pools)
    requests.add_missed(observation.missed)
    return requests.requests, requests.notes


class _Requests:
    """The requests of one tick, and notes for people."""

    def __init__(self, gate: Gate, observation: Observation, planner: MissedTickPlanner) -> None:
        self.requests: list[dg.RunRequest] = []
        self.notes: list[str] = []
        self._gate = gate
        self._planner = planner
        self._cover = Cover(observation.holds, observation.services, observation.adopted)
        self._held = held_runs(observation.holds)
        self._ramps = _Ramps(observation, gate.campaigns)
        self._requested: set[int] = set()

    def add_canaries(self, observation: Observation) -> None:
        """Add a run that tries each half-open service, unless one does already."""
        campaigns, candidates = self._gate.campaigns, observation.candidates
        starving = observation.starving
        tried: set[str] = set()
        for service, candidate in candidates.items():
            if candidate.canaries or service in tried:
                continue
            if candidate.ending and not candidate.waiting:
                self.notes.append(_waits_to_end(candidate.ending, service))
            if service in starving:
                callers = sorted(name for name in campaigns if campaigns[name].services([service]))
                if callers:
                    self.notes.append(
                        f"no run can try {service}: start one of {', '.join(callers)}"
                    )
            for run in candidate.waiting:
                campaign = run.campaign if isinstance(run, CampaignRun) else campaign_of(run)
                if campaign not in campaigns:
                    continue  # the gate of its own location requests it
                services = campaigns[campaign].part(assets_of(run)).services(candidates)
                if isinstance(run, CampaignRun):
                    services |= candidates.keys() & set(run.refused_by)
                if isinstance(run, dg.DagsterRun):
                    self._gate.dagster.add_tags(run.run_id, canary_tags(run.tags, services))
                elif not self._add_next(run, tries=services):
                    continue
                tried |= services
                name = run.name if isinstance(run, CampaignRun) else f"run {run.run_id[:8]}"
                self.notes.append(f"{name} tries {', '.join(sorted(services))}")
                break

    def add_paused(self, paused: Sequence[CampaignRun]) -> None:
        """Add the next attempts of paused campaign runs."""
        for run in paused:
            spec = self._may_start(run.campaign, run.assets)
            is_held = run.name in self._held or self._cover.any_of(run.refused_by)
            if spec is not None and not is_held and self._add_next(run):
                self._ramps.take(spec)
                self.notes.append(f"{run.name} resumes")

    def add_backfills(self, paused: Sequence[CampaignRun], pools: Mapping[str, str]) -> None:
        """Add the next attempts of paused runs of backfills, if a pool at 0 keeps them queued.

        Without an unfinished run, Dagster would say that the backfill has failed.

        Args:
            pools: The pools that have a limit, by name.
        """
        stopped = {name for name, limit in pools.items() if limit == "0"}
        waiting = {
            (run.campaign, run.partition): run
            for run in paused
            if run.campaign in self._gate.campaigns
            and run.id not in self._requested
            and run.name not in self._held
            and not self._cover.any_of(run.refused_by)
        }
        if not stopped or not waiting:
            return
        for dagster_run in self._gate.dagster.paused_in_backfills():
            run = waiting.pop((campaign_of(dagster_run), partition_of(dagster_run)), None)
            if run is None or not self._is_kept_queued(run, stopped & pools_of(dagster_run)):
                continue
            if len(self.requests) < MAX_REQUESTS and self._add_next(run):
                self.notes.append(f"{run.name} waits in the queue, so that its backfill continues")

    def _is_kept_queued(self, run: CampaignRun, stopped: Collection[str]) -> bool:
        """Whether pools at 0 keep the next attempt of a run queued as long as it is held."""
        if run.campaign not in self._cover.campaigns:
            return bool(stopped)
        return any(self._cover.needs(pool).campaign == run.campaign for pool in stopped)

    def add_missed(self, missed: Sequence[MissedTick]) -> None:
        """Add the runs of missed ticks."""
        for tick in missed:
            spec = self._may_start(tick.campaign)
            if spec is not None and (requests := self._planner.requests(tick)):
                self._ramps.take(spec)
                self.requests += requests
                self.notes.append(f"{tick.schedule} catches up {tick.tick_at:%Y-%m-%d %H:%M}")

    def _may_start(self, campaign: str, assets: Collection[str] = ()) -> CampaignSpec | None:
        """The campaign, if it is this gate's, not held, and its ramp admits another run.

        Only with what the assets of the run need, if it is one of some assets.
        """
        whole = self._gate.campaigns.get(campaign)
        if whole is None or len(self.requests) >= MAX_REQUESTS:
            return None
        spec = whole.part(assets)
        return None if self._cover.campaign(spec) or not self._ramps.admit(spec) else spec

    def _add_next(self, run: CampaignRun, tries: Collection[str] = ()) -> bool:
        try:
            request = _next_attempt(self._gate, self._planner, run, tries)
        except UNREACHABLE:
            raise
        except Exception as error:  # one bad run must not keep the others paused
            log.exception("%s can't resume", run.name)
            self.notes.append(f"{run.name} can't resume: {type(error).__name__}: {error}")
            return False
        if request is None:
            return False
        self.requests.append(request)
        self._requested.add(run.id)
        return True


def _waits_to_end(ending: Sequence[CampaignRun], service: str) -> str:
    """The note for people about paused runs that can't try a service yet."""
    if len(ending) == 1:
        return f"{ending[0].name} waits until Dagster has ended its run, and then tries {service}"
    return (
        f"{len(ending)} paused runs wait until Dagster has ended their runs; then one tries "
        f"{service}"
    )


class _Ramps:
    """How many more runs the ramping pools admit."""

    def __init__(self, observation: Observation, campaigns: Mapping[str, CampaignSpec]) -> None:
        self._left: dict[str, int] = {}
        for takeover in observation.takeovers:
            if takeover.kind is TakeoverKind.POOL and takeover.left_at is None:
                limit = limit_of(takeover.set_to, observation.default_limit)
                self._left |= {} if limit is None else {takeover.name: limit}
        for campaign, count in observation.active.items():
            # Of which assets the active runs are is unknown; a pool admits only its limit anyway.
            if campaign in campaigns and not campaigns[campaign].is_of_assets:
                self.take(campaigns[campaign], count)

    def admit(self, spec: CampaignSpec) -> bool:
        return all(self._left.get(pool, 1) > 0 for pool in spec.pools)

    def take(self, spec: CampaignSpec, count: int = 1) -> None:
        for pool in spec.pools & self._left.keys():
            self._left[pool] -= count


def _next_attempt(
    gate: Gate, planner: MissedTickPlanner, run: CampaignRun, tries: Collection[str]
) -> dg.RunRequest | None:
    """The request for the next Dagster run of a campaign run; None if there is one already.

    Raises:
        dagster.DagsterInvalidSubsetError: If the job no longer has the ops that the run selects.
    """
    dagster_runs = gate.dagster.runs_of(run)
    number = max((request_number(other) for other in dagster_runs), default=0) + 1
    is_created = False
    for other in dagster_runs:
        if other.is_finished or never_queued(other):
            continue
        if other.status is not dg.DagsterRunStatus.NOT_STARTED or not request_number(other):
            return None  # requested before, or a person was faster
        # Dagster died before it queued the run; the same key makes it do so now.
        number, is_created = request_number(other), True
    if _waits_to_launch(gate, dagster_runs):
        return None
    with gate.store.read() as conn:
        current = runs.get(conn, run.id)
        newest = runs.latest_attempt(conn, run.id)
    if current is None or (current.status, current.attempt) != (run.status, run.attempt):
        return None  # it has changed since it was observed
    paused = None if newest is None else gate.dagster.run(newest.dagster_run)
    if paused is not None and not paused.is_finished:
        return None  # one of its branches has paused, another still works
    paused_at = (newest and newest.ended_at) or run.paused_at
    if paused is not None and paused_at and gate.dagster.was_replaced(paused, paused_at):
        _end_as_replaced(gate, current)
        return None
    given_up = None if newest is None else gate.dagster.given_up(paused)
    if given_up is not None:
        with gate.store.begin() as conn:
            now, actor = gate.store.now(conn), SystemActor.DAGSTER
            runs.move(conn, now, current, RunStatus.CANCELLED, reason=given_up, actor=actor)
        return None
    request = dg.RunRequest(run_key=request_key(run.id, number), job_name=job_of(run.campaign))
    # Of a run that did failed assets again, these are the assets of the run before.
    assets, checks = selection_of(run.assets)
    if paused is None:  # it was deleted in Dagster
        tags = {PARTITION_TAG: run.dagster_partition}
        if planner.repository.has_partitions(job_of(run.campaign)):
            request = request.with_replaced_attrs(partition_key=run.dagster_partition)
    else:
        tags = tags_for_next(paused)
        request = request.with_replaced_attrs(run_config=paused.run_config)
        # None: the checks of the assets that it selects.
        checks = paused.asset_check_selection
    request = request.with_replaced_attrs(
        asset_selection=assets or None, asset_check_keys=list(checks) if checks else None
    )
    if tries:
        tags |= canary_tags(tags, tries)
    request = request.with_replaced_attrs(tags=tags)
    if paused is not None and paused.op_selection and not is_created:
        gate.dagster.create_with_ops(request, paused)
    return request


def _waits_to_launch(gate: Gate, dagster_runs: Sequence[dg.DagsterRun]) -> bool:
    """Whether the last launches of a campaign run failed so lately that the next has to wait."""
    last = max(dagster_runs, key=request_number, default=None)
    if last is None or last.status is not dg.DagsterRunStatus.FAILURE:
        return False
    failures = gate.dagster.failed_launches(last, failed_launches.MAX_IN_A_ROW)
    due = failed_launches.next_at(failures)
    if due is None:
        return False
    with gate.store.read() as conn:
        return gate.store.now(conn) < due


def _end_as_replaced(gate: Gate, run: CampaignRun) -> None:
    """Cancel a paused run of assets that automation or a person had materialized meanwhile."""
    reason = "Not resumed: other runs have materialized its assets since it was paused"
    with gate.store.begin() as conn:
        now = gate.store.now(conn)
        runs.move(conn, now, run, RunStatus.CANCELLED, reason=reason, actor=SystemActor.GATE)
