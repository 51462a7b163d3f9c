"""Statuses of breakers, campaign runs, campaigns and records, and the allowed transitions.

A status is stored as its value, in lower case.
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
    """Status of a campaign, derived from its holds and campaign runs; not stored."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"


class RecordStatus(StrEnum):
    """Status of a record in the ledger.

    `STARTED` is written before the record's effect. A record still `STARTED` after its attempt
    ended is in doubt: its effect may or may not have reached the service.
    """

    WAITING = "waiting"  # tried without a result, or to be done again; has no effect in doubt
    STARTED = "started"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"  # a person decided that it needs no result


RUN_MOVES: dict[RunStatus, frozenset[RunStatus]] = {
    RunStatus.PENDING: frozenset({RunStatus.PROCESSING, RunStatus.PAUSED, RunStatus.CANCELLED}),
    RunStatus.PROCESSING: frozenset(
        {RunStatus.PAUSED, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED}
    ),
    RunStatus.PAUSED: frozenset({RunStatus.PENDING, RunStatus.PROCESSING, RunStatus.CANCELLED}),
    # A finished campaign run starts again when its partition is executed again.
    RunStatus.COMPLETED: frozenset({RunStatus.PENDING, RunStatus.PROCESSING}),
    RunStatus.FAILED: frozenset({RunStatus.PENDING, RunStatus.PROCESSING}),
    RunStatus.CANCELLED: frozenset({RunStatus.PENDING, RunStatus.PROCESSING}),
}
"""The allowed transitions of a campaign run: from each status to its possible next ones."""
UNFINISHED = frozenset({RunStatus.PENDING, RunStatus.PROCESSING, RunStatus.PAUSED})
"""The statuses of a campaign run that has not ended."""


def campaign_status(runs: Collection[RunStatus], *, held: bool) -> CampaignStatus:
    """Derive the status of a campaign.

    Returns:
        Its status. Once all runs have ended, one failed run makes the campaign failed.
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
