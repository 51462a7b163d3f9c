"""Asks Dagster for the next attempts of paused campaign runs, for canaries and missed ticks.

A request is made anew in every tick until Dagster has the run; a `run_key` that is counted from
the runs that Dagster has keeps it from being launched twice, and from being dropped for ever.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from dagster_tidegate.dagster_api.instance import (
    PARTITION_TAG,
    Repository,
    canary_tags,
    request_key,
    request_number,
    tags_for_next,
)
from dagster_tidegate.gate.follow import never_queued
from dagster_tidegate.gate.missed_ticks import MissedTickPlanner
from dagster_tidegate.gate.observe import Gate, held_runs
from dagster_tidegate.gate.plan import Cover, Observed, limit_of
from dagster_tidegate.plugin.campaign import Campaign
from dagster_tidegate.store import runs
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.store.takeovers import TakeoverKind

# Dagster submits the requests of a tick before it evaluates the next, some 50 ms each.
MAX_REQUESTS = 25


@dataclass(frozen=True)
class Asked:
    """What a resume tick asks Dagster for, and how to say so.

    Attributes:
        requests: The runs to launch.
        notes: What was done, for people.
    """

    requests: Sequence[dg.RunRequest]
    notes: Sequence[str]


def ask(
    gate: Gate, seen: Observed, campaigns: Mapping[str, Campaign], catch_upper: MissedTickPlanner
) -> Asked:
    """Return the runs that Dagster should launch now, in order.

    Canaries are first, then paused campaign runs by priority and by when they were paused, then
    missed ticks; all within the ramps and a bound on the requests of a tick.

    Args:
        gate: What the gate works with.
        seen: What was observed.
        campaigns: The campaigns of the gate, by name.
        catch_upper: Evaluates missed ticks.
    """
    paused = [run for run in seen.paused if run.campaign in campaigns]
    ticks = [tick for tick in seen.missed if tick.campaign in campaigns]
    requests: list[dg.RunRequest] = []
    notes: list[str] = []
    specs = {spec.name: spec for spec in gate.specs}
    cover = Cover(seen.holds, seen.services)
    tried: set[str] = set()

    def next_attempt(run: CampaignRun, tries: Collection[str] = ()) -> dg.RunRequest | None:
        try:
            return _next_attempt(gate, catch_upper.repository, run, tries)
        except dg.DagsterInvalidSubsetError as error:  # one must not keep the others paused
            notes.append(f"{run.name} can't resume with the ops that it was launched with: {error}")
            return None

    for service, found in seen.candidates.items():
        if found.waiting or service in tried:
            continue
        for run in found.paused:
            if run.campaign not in campaigns:
                break  # its own gate asks for it
            tries = specs[run.campaign].services(seen.candidates)
            request = next_attempt(run, tries)
            if request is not None:
                requests.append(request)
                tried |= tries
                notes.append(f"{run.name} tries {', '.join(sorted(tries))}")
                break
        if service not in tried and found.queued and found.queued[0].job_name in campaigns:
            run = found.queued[0]
            tries = specs[run.job_name].services(seen.candidates)
            gate.dagster.add_tags(run.run_id, canary_tags(run.tags, tries))
            tried |= tries
            notes.append(f"run {run.run_id[:8]} tries {', '.join(sorted(tries))}")
    if not paused and not ticks:
        return Asked(requests, notes)
    room = _Room(seen, specs)
    held = held_runs(seen.holds)
    for run in paused:
        if len(requests) >= MAX_REQUESTS:
            break
        spec = specs.get(run.campaign)
        if spec is None or cover.campaign(spec) or run.name in held or not room.for_(spec):
            continue
        request = next_attempt(run)
        if request is not None:
            room.take(spec)
            requests.append(request)
            notes.append(f"{run.name} resumes")
    for tick in ticks:
        spec = specs.get(tick.campaign)
        if len(requests) >= MAX_REQUESTS or spec is None or cover.campaign(spec):
            continue
        if not room.for_(spec):
            continue
        missing = catch_upper.requests(tick, gate.dagster.instance)
        if missing:
            room.take(spec)
            requests.extend(missing)
            notes.append(f"{tick.schedule} catches up {tick.tick_at:%Y-%m-%d %H:%M}")
    return Asked(requests, notes)


class _Room:
    """How many more runs the ramps of the pools let in."""

    def __init__(self, seen: Observed, specs: Mapping[str, CampaignSpec]) -> None:
        self._left: dict[str, int] = {}
        for takeover in seen.takeovers:
            if takeover.kind is TakeoverKind.POOL and takeover.left_at is None:
                limit = limit_of(takeover.set_to, seen.default_limit)
                self._left |= {} if limit is None else {takeover.name: limit}
        for campaign, count in seen.active.items():
            if campaign in specs:
                self.take(specs[campaign], count)

    def for_(self, spec: CampaignSpec) -> bool:
        return all(self._left.get(pool, 1) > 0 for pool in spec.pools)

    def take(self, spec: CampaignSpec, count: int = 1) -> None:
        for pool in spec.pools & self._left.keys():
            self._left[pool] -= count


def _next_attempt(
    gate: Gate, repository: Repository, run: CampaignRun, tries: Collection[str] = ()
) -> dg.RunRequest | None:
    """The request for the next Dagster run of a campaign run; None where there is one already."""
    others = gate.dagster.runs_of(run.campaign, run.partition)
    number = max((request_number(other) for other in others), default=0) + 1
    is_there = False
    for other in others:
        if other.is_finished or never_queued(other):
            continue
        if other.status is not dg.DagsterRunStatus.NOT_STARTED or not request_number(other):
            return None  # asked for before, or a person was faster
        # Dagster died before it put the run into the queue; the same key makes it do so.
        number, is_there = request_number(other), True
    with gate.store.read() as conn:
        current = runs.get(conn, run.id)
        newest = runs.latest_attempt(conn, run.id)
    if current is None or (current.status, current.attempt) != (run.status, run.attempt):
        return None  # it went on since it was read
    parent = None if newest is None else gate.dagster.run(newest.dagster_run)
    if parent is not None and not parent.is_finished:
        return None  # one of its branches has paused, another still works
    request = dg.RunRequest(run_key=request_key(run.id, number), job_name=run.campaign)
    if parent is None:  # Dagster has forgotten it
        tags = {PARTITION_TAG: run.partition}
        if repository.definition.get_job(run.campaign).partitions_def is not None:
            request = request.with_replaced_attrs(partition_key=run.partition)
    else:
        tags = tags_for_next(parent)
        request = request.with_replaced_attrs(
            run_config=parent.run_config,
            asset_selection=list(parent.asset_selection) if parent.asset_selection else None,
        )
    if tries:
        tags |= canary_tags(tags, tries)
    request = request.with_replaced_attrs(tags=tags)
    if parent is not None and parent.op_selection and not is_there:
        gate.dagster.create_with_ops(request, parent)
    return request
