"""Sensors whose jobs are known by name only, and the names of the jobs of some Definitions."""

from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.target import AutomationTarget, ExecutableDefinition

from dagster_tidegate.dagster_api.repository import IMPLICIT_JOB


class NamedJobsSensor(dg.SensorDefinition):
    """A sensor that may launch runs of several jobs by their names.

    A sensor may request runs only of the jobs that it targets. Dagster takes several only as
    definitions, of which the job that it generates of all assets has none.

    Its resources are built only if it asks for them: Dagster builds those of any other sensor at
    each tick, which can take longer than the tick.

    Args:
        job_names: The jobs; each must be in the repository.
        evaluation_fn: Evaluates a tick.
        options: As for `dg.SensorDefinition`.
    """

    def __init__(
        self,
        *,
        job_names: Sequence[str],
        evaluation_fn: Callable[[dg.SensorEvaluationContext], dg.SensorResult],
        **options: Any,
    ) -> None:
        super().__init__(evaluation_fn=evaluation_fn, **options)
        self._evaluation_fn = lambda context: [evaluation_fn(context)]
        self._targets = [AutomationTarget(name) for name in job_names]
        self._options = {"job_names": job_names, "evaluation_fn": evaluation_fn, **options}

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
