"""Schedules of some Definitions, before they are resolved."""

from collections.abc import Callable, Mapping

import dagster as dg
from dagster_shared.record import copy


def with_schedule_metadata(
    defs: dg.Definitions, of_job: Callable[[dg.JobDefinition], Mapping[str, str]]
) -> dg.Definitions:
    """Return Definitions whose schedules have more metadata; nothing else about them changes.

    Jobs can't be given any: schedules and sensors refer to a job by its object.

    Args:
        of_job: The metadata of a schedule, given its job. Jobs that are not built yet, as those of
            a selection of assets, are not asked for.
    """
    jobs = {job.name: job for job in defs.jobs or () if isinstance(job, dg.JobDefinition)}
    schedules = []
    for schedule in defs.schedules or ():
        # Of a subclass, Dagster would make a plain schedule.
        job = jobs.get(schedule.job_name) if type(schedule) is dg.ScheduleDefinition else None
        added = {} if job is None else of_job(job)
        if added and isinstance(schedule, dg.ScheduleDefinition):
            merged = {**schedule.metadata, **added}
            schedules.append(schedule.with_attributes(metadata=merged))
        else:
            schedules.append(schedule)
    return copy(defs, schedules=schedules) if schedules else defs
