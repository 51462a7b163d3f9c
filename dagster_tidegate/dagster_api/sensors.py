"""Sensors whose jobs are known by name only, and the names of the jobs of some Definitions."""

from collections.abc import Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.target import AutomationTarget, ExecutableDefinition

from dagster_tidegate.dagster_api.repository import IMPLICIT_JOB


class NamedJobsSensor(dg.SensorDefinition):
    """A sensor that may launch runs of several jobs by their names.

    A sensor may request runs only of the jobs that it targets. Dagster takes several only as
    definitions, of which the job that it generates of all assets has none.

    Args:
        job_names: The jobs; each must be in the repository.
        options: As for `dg.SensorDefinition`.
    """

    def __init__(self, *, job_names: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self._targets = [AutomationTarget(name) for name in job_names]
        self._options = {"job_names": job_names, **options}

    def with_attributes(
        self,
        *,
        jobs: Sequence[ExecutableDefinition] | None = None,  # noqa: ARG002 -- it has names
        metadata: Any = None,
    ) -> "NamedJobsSensor":
        """Return a copy with other metadata. Its jobs are names, which don't change."""
        changed = {} if metadata is None else {"metadata": metadata}
        return NamedJobsSensor(**{**self._options, **changed})


def job_names(definitions: dg.Definitions) -> Sequence[str]:
    """Return the names of the jobs of some Definitions, without resolving them."""
    names = [job.name for job in definitions.jobs or ()]
    has_assets = bool(definitions.assets) or bool(definitions.asset_checks)
    for schedule in definitions.schedules or ():
        if isinstance(schedule, dg.ScheduleDefinition):
            names.append(schedule.target.job_name)
            has_assets = has_assets or bool(schedule.target.assets_defs)
        else:  # of an asset job whose partitions are not known yet
            names.append(schedule.job.name)
    for sensor in definitions.sensors or ():
        for target in sensor.targets:
            names.append(target.job_name)
            has_assets = has_assets or bool(target.assets_defs)
    return sorted({*names, *([IMPLICIT_JOB] if has_assets else [])})
