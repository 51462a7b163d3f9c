"""A host of record loops without Dagster."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.holds import Hold
from dagster_tidegate.records.host import StopReason
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.runs import AttemptRow, CampaignRun


@dataclass
class FakeHost:
    """A `LoopHost` whose process exits when the loop stops."""

    store: Store
    fleet: Fleet
    run: CampaignRun
    row: AttemptRow
    series: int = 1
    continues: str = "a test says so"
    services: Sequence[str] = ()
    drain_timeout_s: float = 25.0
    only_marked: bool = False
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("tests"))

    def holds(self) -> Sequence[Hold]:
        return self.fleet.holds_on(services=self.services)

    def report_failed(self, failed: int) -> None: ...

    def refused(self, service: str) -> None:
        pass

    def stop(self, reason: StopReason) -> NoReturn:
        sys.exit(f"stopped: {reason}")
