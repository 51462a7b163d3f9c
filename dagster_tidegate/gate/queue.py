"""Says in Dagster what a queued run waits for, so that "Queued" explains itself."""

from collections.abc import Collection, Sequence
from datetime import datetime

from dagster_tidegate.dagster_api.lineage import campaign_of
from dagster_tidegate.dagster_api.pools import pools_of
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.plan import Cover, Observation
from dagster_tidegate.holds import Hold, TargetKind, covering

QUEUED_FOR_TAG = "tidegate/queued_for"
"""Tag of a run that waited in the queue: the services or campaigns whose holds it waited for.

Dagster can't remove a tag, so a run keeps it when it has left the queue.
"""
MAX_QUEUED = 200
"""How many queued runs are looked at, the oldest."""
MAX_WRITES = 25
"""How many are written in a tick."""
MAX_TAG = 250


def explain_queue(gate: Gate, observation: Observation) -> int:
    """Tag the queued runs that holds keep in the queue, once for each set of holds.

    Returns:
        How many were tagged.
    """
    if not observation.holds:
        return 0
    cover = Cover(observation.holds, observation.services, observation.adopted)
    written = 0
    for run in gate.dagster.queued(MAX_QUEUED):
        if written == MAX_WRITES:
            break
        if campaign_of(run) not in gate.campaigns:
            continue  # the gate of its own location does it
        holds = holding(pools_of(run), cover, observation.holds, observation.now)
        if not holds:
            continue
        tag = ",".join(sorted({_name(hold) for hold in holds}))[:MAX_TAG]
        if run.tags.get(QUEUED_FOR_TAG) != tag:
            reasons = "; ".join(f"{hold.target} ({hold.source}: {hold.reason})" for hold in holds)
            message = f"Waits in the queue, held: {reasons}"
            gate.dagster.explain_wait(run, {QUEUED_FOR_TAG: tag}, message)
            written += 1
    return written


def holding(
    pools: Collection[str], cover: Cover, holds: Sequence[Hold], now: datetime
) -> Sequence[Hold]:
    """Return the holds that keep a run with some pools in the queue. Pure."""
    by_id: dict[int, Hold] = {}
    for pool in pools:
        if cover.pool(pool):
            need = cover.needs(pool)
            blocking = need.blocked_by(cover.services)
            held = covering(holds, now, services=blocking, campaign=need.campaign)
            by_id |= {hold.id: hold for hold in held}
    return sorted(by_id.values(), key=lambda hold: hold.id)


def _name(hold: Hold) -> str:
    return hold.target.name if hold.target.kind is TargetKind.SERVICE else str(hold.target)
