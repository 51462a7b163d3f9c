"""The statuses of the things Tidegate keeps, and the moves between them that are allowed.

A status is stored as its value: lowercase, the same on every database.
"""

from collections.abc import Collection
from enum import StrEnum


class BreakerState(StrEnum):
    """State of the circuit breaker of a service."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class RunStatus(StrEnum):
    """Status of a campaign run (one partition of a campaign)."""

    PENDING = "pending"
    PROCESSING = "processing"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class CampaignStatus(StrEnum):
    """Status of a campaign, derived from its holds and its campaign runs; never stored."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"


class RecordStatus(StrEnum):
    """Status of a record in the ledger.

    `STARTED` is written before the record's effect. A record that is still `STARTED` when its
    attempt is over is in doubt: its effect may or may not have reached the service.
    """

    STARTED = "started"
    DONE = "done"
    FAILED = "failed"


RUN_MOVES: dict[RunStatus, frozenset[RunStatus]] = {
    RunStatus.PENDING: frozenset({RunStatus.PROCESSING, RunStatus.PAUSED, RunStatus.CANCELLED}),
    RunStatus.PROCESSING: frozenset(
        {RunStatus.PAUSED, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED}
    ),
    RunStatus.PAUSED: frozenset({RunStatus.PENDING, RunStatus.PROCESSING, RunStatus.CANCELLED}),
    # A finished campaign run starts again when a person re-executes its partition.
    RunStatus.COMPLETED: frozenset({RunStatus.PENDING, RunStatus.PROCESSING}),
    RunStatus.FAILED: frozenset({RunStatus.PENDING, RunStatus.PROCESSING}),
    RunStatus.CANCELLED: frozenset({RunStatus.PENDING, RunStatus.PROCESSING}),
}
"""The one table of allowed moves of a campaign run: from each status to those it may become."""
UNFINISHED = frozenset({RunStatus.PENDING, RunStatus.PROCESSING, RunStatus.PAUSED})
"""The statuses in which a campaign run has something left to do, which a pause could stop."""


def campaign_status(runs: Collection[RunStatus], *, held: bool) -> CampaignStatus:
    """Derive the status of a campaign from what it is made of.

    Args:
        runs: The statuses that its campaign runs have.
        held: Whether a live hold covers it.

    Returns:
        Its status. One failed campaign run makes a campaign failed once none is left to do.
    """
    if held:
        return CampaignStatus.PAUSED
    if not UNFINISHED.isdisjoint(runs):
        return CampaignStatus.RUNNING
    if RunStatus.FAILED in runs:
        return CampaignStatus.FAILED
    if RunStatus.COMPLETED in runs:
        return CampaignStatus.COMPLETED
    return CampaignStatus.CREATED
