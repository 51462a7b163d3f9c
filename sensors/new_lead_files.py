"""Starts an outreach run for each lead file that has none."""

import dagster as dg

from pipelines.outreach import lead_files, outreach
from resources.lead_directory import LeadDirectory

RUN_KEY = "lead-file/"
RUN_KEY_TAG = "dagster/run_key"
MAX_AT_ONCE = 50


@dg.sensor(
    job=outreach,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def new_lead_files(
    context: dg.SensorEvaluationContext, lead_directory: LeadDirectory
) -> dg.SensorResult | dg.SkipReason:
    """Make a partition of each new lead file, and ask for its run.

    It keeps no cursor and looks at the runs that there are: a request that got lost, because the
    sensor was stopped or the daemon died, is made again.
    """
    started = {
        key
        for _, keys in context.instance.get_run_tags([RUN_KEY_TAG], value_prefix=RUN_KEY)
        for key in keys
    }
    names = lead_directory.files()
    new = [name for name in names if f"{RUN_KEY}{name}" not in started]
    if not new:
        return dg.SkipReason(f"no new file among {len(names)} in {lead_directory.path}")
    partitions = set(lead_files.get_partition_keys(dynamic_partitions_store=context.instance))
    requested = new[:MAX_AT_ONCE]
    return dg.SensorResult(
        dynamic_partitions_requests=[
            lead_files.build_add_request([n for n in requested if n not in partitions])
        ],
        run_requests=[
            dg.RunRequest(run_key=f"{RUN_KEY}{name}", partition_key=name) for name in requested
        ],
    )
