"""An op or asset that a unit test calls directly, without a run."""

import logging
from collections.abc import Sequence
from typing import NoReturn
from uuid import uuid4

import dagster as dg

from dagster_tidegate import holds
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.holds import Hold
from dagster_tidegate.plugin.attempt import CampaignPaused
from dagster_tidegate.records.host import StopReason
from dagster_tidegate.store import runs
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.runs import AttemptRow, CampaignRun


class DirectAttempt:
    """The `LoopHost` of an op's function that is called directly: a campaign run of its own.

    Dagster makes no run for such a call, so that nothing can pause or resume it: `stop` raises
    `CampaignPaused`, which the test can expect.
    """

    series = 1
    continues = ""
    only_marked = False

    def __init__(
        self, context: dg.OpExecutionContext, store: Store, fleet: Fleet, drain_timeout_s: float
    ) -> None:
        self.store, self.fleet, self.drain_timeout_s = store, fleet, drain_timeout_s
        self.log: logging.Logger = context.log
        self._needs = fleet.needs(context.op_def.pool)
        if not self._needs.services:
            self._needs = fleet.needs("+".join(fleet.policies))
        self.services: Sequence[str] = sorted(self._needs.services)
        with store.begin() as conn:
            now, name = store.now(conn), uuid4().hex
            run = runs.ensure(conn, now, context.op_def.name, name)
            self.row: AttemptRow = runs.begin_attempt(conn, now, run, name, owner_is_over=False)
            self.run: CampaignRun = runs.locked(conn, run.id)

    def refused(self, service: str) -> None:
        """Do nothing: all services are waited for anyway."""

    def report_failed(self, failed: int) -> None:
        """Do nothing: there is no Dagster run to be tagged."""

    def holds(self) -> Sequence[Hold]:
        """Return the holds on the services of the op."""
        held = self.fleet.holds_on(services=self.services)
        blocking = self._needs.blocked_by([hold.target.name for hold in held])
        return self.fleet.holds_on(services=blocking)

    def stop(self, reason: StopReason) -> NoReturn:
        """End the call where a run would pause.

        Raises:
            CampaignPaused: Always.
        """
        of = "" if reason.total is None else f"/{reason.total}"
        why = "it received a signal"
        if reason.holds:
            why = holds.describe(reason.holds, self.fleet.snapshot().services)
        raise CampaignPaused(f"Paused at {reason.done}{of}: {reason.outdated or why}")
