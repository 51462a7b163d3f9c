"""The code location of this deployment."""

import dagster as dg

from pipelines.account_digest import account_digest, account_digest_schedule
from pipelines.list_hygiene import list_hygiene, list_hygiene_schedule
from pipelines.outreach import outreach
from resources.deployment import resources_from_environment
from sensors.breaker import breaker_sensor
from sensors.new_lead_files import new_lead_files
from sensors.pause import pause_sensor
from sensors.resume import resume_sensor

defs = dg.Definitions(
    jobs=[outreach, list_hygiene, account_digest],
    schedules=[list_hygiene_schedule, account_digest_schedule],
    sensors=[new_lead_files, pause_sensor, resume_sensor, breaker_sensor],
    resources=resources_from_environment(),
)
