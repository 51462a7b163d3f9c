"""What a gate works with."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Protocol

import dagster as dg

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api.runs import RunChange
from dagster_tidegate.dagster_api.triggers import TriggerState
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.takeovers import TakeoverKind


class _Dagster(Protocol):
    """What a gate reads and writes in Dagster; `dagster_api.instance.Dagster` documents it."""

    def default_limit(self) -> int | None: ...
    def pools(self) -> Mapping[str, str]: ...
    def set_pool(self, name: str, value: str) -> None: ...
    def triggers(self) -> Mapping[str, TriggerState]: ...
    def trigger(self, selector_id: str) -> str: ...
    def set_trigger(
        self, kind: TakeoverKind, name: str, selector_id: str, status: str, now: datetime
    ) -> bool: ...
    def latest_tick(self, name: str, selector_id: str) -> datetime | None: ...
    def run(self, run_id: str) -> dg.DagsterRun | None: ...
    def given_up(self, run: dg.DagsterRun | None) -> str | None: ...
    def runs(
        self, *, tags: Mapping[str, str], job: str | None = None, unfinished: bool = False
    ) -> Sequence[dg.DagsterRun]: ...
    def runs_of(self, campaign: str, partition: str) -> Sequence[dg.DagsterRun]: ...
    def unfinished(self, run_ids: Collection[str]) -> Sequence[dg.DagsterRun]: ...
    def unfinished_of(self, partitions: Collection[str]) -> Sequence[dg.DagsterRun]: ...
    def canaries(self) -> Sequence[dg.DagsterRun]: ...
    def ended_canaries(self, since: datetime, limit: int) -> Sequence[dg.DagsterRun]: ...
    def queued(self, limit: int, campaign: str | None = None) -> Sequence[dg.DagsterRun]: ...
    def in_progress(self, pools: frozenset[str]) -> Mapping[str, int]: ...
    def changes(self, since: datetime, limit: int) -> Sequence[RunChange]: ...
    def was_interrupted(self, run: dg.DagsterRun) -> bool: ...
    def add_tags(self, run_id: str, tags: Mapping[str, str]) -> None: ...
    def create_with_ops(self, request: dg.RunRequest, like: dg.DagsterRun) -> None: ...


@dataclass(frozen=True)
class Gate:
    """A gate.

    Attributes:
        dagster: The Dagster instance.
        location: The gate's code location; empty outside the sensors.
        specs: The campaigns of the code location; if empty, the plan covers all in the store.
        enabled: False if Tidegate is switched off: then no hold counts.
    """

    dagster: _Dagster
    store: Store
    policies: Mapping[str, ServicePolicy]
    location: str = ""
    specs: Sequence[CampaignSpec] = ()
    enabled: bool = True

    @cached_property
    def campaigns(self) -> Mapping[str, CampaignSpec]:
        """The campaigns of the code location, by name."""
        return {spec.name: spec for spec in self.specs}
