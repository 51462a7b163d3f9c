"""Concurrency pools: their limits, and which of them a run uses."""

from collections.abc import Mapping

import dagster as dg

from dagster_tidegate.store.takeovers import DEFAULT, UNSET


class Pools:
    """The pools of a Dagster instance. A limit is a number, `default` or `unset`."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance

    def default_limit(self) -> int | None:
        """Return the limit of pools that have none of their own; None where there is none."""
        return self.instance.global_op_concurrency_default_limit

    def pools(self) -> Mapping[str, str]:
        """Return the limit of each pool that has one, by name."""
        return {
            pool.name: DEFAULT if pool.from_default else str(pool.limit)
            for pool in self.instance.event_log_storage.get_pool_limits()
        }

    def set_pool(self, name: str, value: str) -> None:
        """Give a pool a limit."""
        storage = self.instance.event_log_storage
        if value in (UNSET, DEFAULT):
            # An explicit limit only becomes one that follows the default if its row is recreated.
            storage.delete_concurrency_limit(name)
        if value == DEFAULT:
            storage.initialize_concurrency_limit_to_default(name)
        elif value != UNSET:
            storage.set_concurrency_slots(name, int(value))


def pools_of(run: dg.DagsterRun) -> frozenset[str]:
    """Return the pools that a run uses, as they were when it was created."""
    concurrency = run.run_op_concurrency
    return frozenset(concurrency.all_pools or ()) if concurrency is not None else frozenset()
