"""Starts an outreach run for each new lead file."""

from collections.abc import Mapping

import dagster as dg

from pipelines.outreach import lead_files, outreach
from resources.lead_directory import LeadDirectory

RUN_KEY = "lead-file/"
RUN_KEY_TAG = "dagster/run_key"
MAX_AT_ONCE = 50
MAX_NAMED = 10


@dg.sensor(
    job=outreach,
    description="Starts a run of outreach for each new lead file.",
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def new_lead_files(
    context: dg.SensorEvaluationContext, lead_directory: LeadDirectory
) -> dg.SensorResult | dg.SkipReason:
    """Add a partition for each new lead file and request its run.

    Compares with existing runs instead of keeping a cursor, so that a request lost while the
    sensor was stopped or the daemon died is repeated.
    """
    started = {
        key
        for _, keys in context.instance.get_run_tags([RUN_KEY_TAG], value_prefix=RUN_KEY)
        for key in keys
    }
    names = lead_directory.files()
    left_out = _left_out(lead_directory.left_out())
    new = [name for name in names if f"{RUN_KEY}{name}" not in started]
    if not new:
        return dg.SkipReason(f"no new files among {len(names)} in {lead_directory.path}{left_out}")
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


def _left_out(reasons: Mapping[str, str]) -> str:
    """Return the files that are not lead files, as the end of a skip reason."""
    if not reasons:
        return ""
    named = [f"{name} ({reason})" for name, reason in list(reasons.items())[:MAX_NAMED]]
    if len(reasons) > MAX_NAMED:
        named.append(f"and {len(reasons) - MAX_NAMED} more")
    return f"; left out: {', '.join(named)}"
