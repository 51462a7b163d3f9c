"""Triggers: the schedules and sensors that start runs, and whether they are switched on."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickStatus,
)

from dagster_tidegate.dagster_api.repository import Repository
from dagster_tidegate.store.takeovers import RUNNING, UNSET, TakeoverKind


@dataclass(frozen=True)
class TriggerState:
    """What Dagster has stored about a schedule or sensor.

    Attributes:
        status: `RUNNING`, `STOPPED` or `DECLARED_IN_CODE`.
        started_at: When it was last switched on (UTC), if Dagster knows.
    """

    status: str
    started_at: datetime | None = None


class Triggers:
    """The schedules and sensors of a Dagster instance, by Dagster's selector id.

    Args:
        repository: The repository of the caller; without it, only triggers that Dagster already
            has a row for can be switched.
    """

    def __init__(self, instance: dg.DagsterInstance, repository: Repository | None = None) -> None:
        self.instance = instance
        self.repository = repository

    def triggers(self) -> Mapping[str, TriggerState]:
        """Return all stored states, by selector id."""
        return {
            state.selector_id: TriggerState(state.status.value, _started_at(state))
            for state in self.instance.all_instigator_state()
        }

    def set_trigger(
        self,
        kind: TakeoverKind,
        name: str,
        selector_id: str,
        status: str,
        now: datetime,
        *,
        expected: Collection[str],
    ) -> str | None:
        """Switch a trigger to a status. A restarted schedule has ticks from `now` (UTC) on.

        Args:
            expected: The stored statuses, or `unset`, from which it is switched; from any other it
                is not.

        Returns:
            The stored status before, `unset` if nothing was stored; None if it then is not defined
                in this code location either.
        """
        state = self.instance.get_instigator_state(selector_id, selector_id)
        before = UNSET if state is None else state.status.value
        if before not in expected:
            return before
        if state is None:
            state = self.repository.stopped_state(kind, name) if self.repository else None
            if state is None:
                return None
            self.instance.add_instigator_state(state)
        data = state.instigator_data
        if isinstance(data, ScheduleInstigatorData):
            start = None if status == InstigatorStatus.STOPPED.value else now.timestamp()
            # Without a recent checkpoint the scheduler would write one at its next iteration: into
            # the whole row as it read it before, with the former status.
            checkpoint = now.timestamp()
            state = state.with_data(ScheduleInstigatorData(data.cron_schedule, start, checkpoint))
        elif isinstance(data, SensorInstigatorData) and status == RUNNING:
            state = state.with_data(data.with_sensor_start_timestamp(now.timestamp()))
        self.instance.update_instigator_state(state.with_status(InstigatorStatus(status)))
        return before

    def latest_tick(self, name: str, selector_id: str) -> datetime | None:
        """Return the time (UTC) of the latest tick of a schedule that Dagster evaluated."""
        if self.repository is None:
            return None
        origin = self.repository.origin.get_instigator_origin(name)
        for tick in self.instance.get_ticks(origin.get_id(), selector_id, limit=2):
            if tick.status is not TickStatus.STARTED:  # an interrupted tick has to be redone
                return datetime.fromtimestamp(tick.timestamp, UTC)
        return None


def _started_at(state: InstigatorState) -> datetime | None:
    data, started = state.instigator_data, None
    if isinstance(data, ScheduleInstigatorData):
        started = data.start_timestamp
    elif isinstance(data, SensorInstigatorData):
        started = data.last_sensor_start_timestamp
    return None if started is None else datetime.fromtimestamp(started, UTC)
