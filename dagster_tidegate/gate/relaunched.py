"""Relaunched assets: runs that a condition or a person asked for while one of them is paused.

To Dagster a paused run is canceled, so that an asset may be requested again: since it is still
missing, or since its input changed. That run is the next attempt of the paused one; if the gate
requested another, every record would be done twice.
"""

import dagster as dg

from dagster_tidegate.dagster_api.lineage import (
    AFRESH_TAG,
    PARTITION_TAG,
    ancestors,
    campaign_of,
    partition_key_of,
    request_number,
)
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.observe import assets_of
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store.runs import CampaignRun


def joined(gate: Gate, run: dg.DagsterRun) -> dg.DagsterRun:
    """Return a run, tagged as the next attempt of a paused run of the same assets if there is one.

    It continues where that one stopped, unless an input has changed since: then it starts afresh.
    """
    is_new = run.status is dg.DagsterRunStatus.QUEUED and not ancestors(run)
    if not is_new or not run.asset_selection or request_number(run) or PARTITION_TAG in run.tags:
        return run
    assets = tuple(assets_of(run))
    with gate.store.read() as conn:
        paused = [
            each
            for each in runs.with_status(conn, RunStatus.PAUSED, campaigns=[campaign_of(run)])
            if each.assets == assets
        ]
        attempts = {each.id: runs.attempts(conn, each.id) for each in paused}
    for each in paused:
        if not _is_same_partition(gate, each, run):
            continue
        tags = {PARTITION_TAG: each.dagster_partition}
        began = [a.started_at for a in attempts[each.id] if a.number >= each.first_attempt]
        if began and gate.dagster.inputs_changed(run, min(began)):
            tags[AFRESH_TAG] = "an input has changed since the paused run began"
        gate.dagster.add_tags(run.run_id, tags)
        return gate.dagster.run(run.run_id) or run
    return run


def _is_same_partition(gate: Gate, paused: CampaignRun, run: dg.DagsterRun) -> bool:
    partition = partition_key_of(run)
    if partition is not None:
        return paused.dagster_partition == partition
    # Without partitions, it is the id of the first run.
    return gate.dagster.run(paused.dagster_partition) is not None
