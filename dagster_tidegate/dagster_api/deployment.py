"""The settings of a Dagster instance that the gate depends on, and the daemons that it needs."""

from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg


@dataclass(frozen=True)
class InstanceSettings:
    """The settings of a Dagster instance that the gate depends on.

    Attributes:
        run_coordinator: Class name of the run coordinator.
        queues: Whether it has a queue that the daemon dequeues runs from.
        pool_granularity: `run`, `op`, or None if it is not set.
        run_buffer: How many runs the queue lets through beyond a pool's limit.
        free_slots_after_s: Seconds until a finished run's pool slots are freed; None: never.
    """

    run_coordinator: str
    queues: bool
    pool_granularity: str | None
    run_buffer: int
    run_monitoring: bool
    free_slots_after_s: int | None


@dataclass(frozen=True)
class Daemon:
    """A daemon that the instance needs.

    Attributes:
        name: Dagster's name for it: `SENSOR`, `QUEUED_RUN_COORDINATOR`, ...
        last: Its last heartbeat (UTC); None if there was never one.
        error: The first error of its last heartbeat, if any.
    """

    name: str
    alive: bool
    last: datetime | None
    error: str | None


def settings(instance: dg.DagsterInstance) -> InstanceSettings:
    """Return the settings that the gate depends on."""
    concurrency = instance.get_concurrency_config()
    pools, queue = concurrency.pool_config, concurrency.run_queue_config
    monitoring = instance.run_monitoring_settings or {}
    return InstanceSettings(
        run_coordinator=type(instance.run_coordinator).__name__,
        queues=queue is not None,
        pool_granularity=None if pools.pool_granularity is None else pools.pool_granularity.value,
        run_buffer=(0 if queue is None else queue.op_concurrency_slot_buffer)
        or pools.op_granularity_run_buffer
        or 0,
        run_monitoring=instance.run_monitoring_enabled,
        free_slots_after_s=monitoring.get("free_slots_after_run_end_seconds"),
    )


def holds_runs_back(settings: InstanceSettings) -> bool:
    """Return whether a run whose pool is at 0 waits in the queue."""
    return settings.queues and settings.pool_granularity == "run" and not settings.run_buffer


def lacking(settings: InstanceSettings) -> list[str]:
    """Return the settings, by their path in dagster.yaml, that the gate needs and does not have."""
    needed = {
        "run_coordinator: QueuedRunCoordinator": settings.queues,
        "concurrency.pools.granularity: run": settings.pool_granularity == "run",
        "a run buffer of 0": not settings.run_buffer,
        "run_monitoring.enabled": settings.run_monitoring,
        "run_monitoring.free_slots_after_run_end_seconds": settings.free_slots_after_s is not None,
    }
    return [name for name, is_set in needed.items() if not is_set]


def daemons(instance: dg.DagsterInstance) -> list[Daemon]:
    """Return the daemons that the instance needs, by name."""
    daemons = []
    for name, status in sorted(instance.get_daemon_statuses().items()):
        beat = status.last_heartbeat
        errors = [] if beat is None else beat.errors or []
        daemons.append(
            Daemon(
                name=name,
                alive=bool(status.healthy),
                last=None if beat is None else datetime.fromtimestamp(beat.timestamp, UTC),
                error=errors[0].message.strip() if errors else None,
            )
        )
    return daemons
