"""What the gate reads and writes in a Dagster instance."""

import dagster as dg

from dagster_tidegate.dagster_api.backfills import Backfills
from dagster_tidegate.dagster_api.pools import Pools
from dagster_tidegate.dagster_api.repository import Repository
from dagster_tidegate.dagster_api.triggers import Triggers


class Dagster(Pools, Triggers, Backfills):
    """The pools, schedules, sensors, runs and backfills of a Dagster instance.

    Args:
        repository: The repository of the caller, if it is a sensor.
    """

    def __init__(self, instance: dg.DagsterInstance, repository: Repository | None = None) -> None:
        self.instance = instance
        self.repository = repository
