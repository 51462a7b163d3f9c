"""What a record loop needs from the run that it is part of."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from signal import Signals
from typing import NoReturn, Protocol

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.holds import Hold
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.runs import AttemptRow, CampaignRun


class StopLoop:
    """Base of what `LoopHost.stop` raises: it ends the loop without failing a record."""


@dataclass(frozen=True)
class StopReason:
    """Why and where an op stopped. One of `holds` to `ended` is set.

    Attributes:
        done: How many records are done; None outside of a record loop.
        total: How many there are, if known.
        holds: The holds that cover the op.
        outdated: Why this version may not use the upgraded store.
        signal: The signal that the process received.
        refusal: Why a breaker refused a call, where no hold is known that covers the op.
        ended: The status that the attempt already has: another op or a person ended it.
        op: Of whose records `done` and `total` are; None outside of a record loop.
    """

    done: int | None = None
    total: int | None = None
    holds: Sequence[Hold] = ()
    outdated: str | None = None
    signal: Signals | None = None
    refusal: str | None = None
    ended: RunStatus | None = None
    op: str | None = None


class LoopHost(Protocol):
    """The attempt that a record loop works for. In Dagster: `plugin.attempt.Attempt`.

    Attributes:
        row: The attempt at it; its number fences the writes of older attempts.
        series: Number of the first attempt of this series, in which each one resumed the one
            before. Records that failed before it are retried.
        continues: Why records are done already when the loop begins, for the log.
        only_marked: Whether it does only the records that were marked to be done again, and what
            follows from them.
        drain_timeout_s: How long records in flight may take to finish when the loop stops.
    """

    store: Store
    fleet: Fleet
    run: CampaignRun
    row: AttemptRow
    series: int
    continues: str
    only_marked: bool
    drain_timeout_s: float
    log: logging.Logger

    @property
    def services(self) -> Sequence[str]:
        """The services that the op calls, as far as it has called them or declared that it will."""
        ...

    def holds(self) -> Sequence[Hold]:
        """Return the live holds that cover the op. Called before each record: must be fast."""
        ...

    def report_failed(self, failed: int) -> None:
        """Say in Dagster how many records have failed. Called when a loop ends, with its number."""
        ...

    def refused(self, service: str) -> None:
        """Take note that the breaker of a service refused the call of a record."""
        ...

    def stop(self, reason: StopReason) -> NoReturn:
        """End the run. What it raises is a `StopLoop`."""
        ...
