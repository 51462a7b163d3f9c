"""What the gate reads and writes in a Dagster instance."""

from dagster_tidegate.dagster_api.assets import Assets
from dagster_tidegate.dagster_api.backfills import Backfills
from dagster_tidegate.dagster_api.pools import Pools
from dagster_tidegate.dagster_api.triggers import Triggers


class Dagster(Triggers, Assets, Backfills, Pools):
    """The pools, schedules, sensors, runs and backfills of a Dagster instance.

    Args:
        repository: The repository of the caller, if it is a sensor.
    """
