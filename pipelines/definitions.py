"""The code location of this deployment."""

import dagster as dg

from dagster_tidegate import Campaign, CatchUp, build_definitions
from pipelines.account_digest import account_digest, account_digest_schedule
from pipelines.list_hygiene import list_hygiene, list_hygiene_schedule
from pipelines.outreach import outreach
from resources.deployment import resources_from_environment
from sensors.new_lead_files import new_lead_files

defs = build_definitions(
    dg.Definitions(
        jobs=[outreach, list_hygiene, account_digest],
        schedules=[list_hygiene_schedule, account_digest_schedule],
        sensors=[new_lead_files],
        # The services are in the BreakerResource that their clients use.
        resources=resources_from_environment(),
    ),
    campaigns=[
        Campaign(job=outreach, priority=10),
        # Each day verifies other addresses, so every missed day is caught up.
        Campaign(job=list_hygiene, catch_up=CatchUp.ALL),
        # Old news is worthless: only the latest missed hour is caught up.
        Campaign(job=account_digest, catch_up=CatchUp.LATEST),
    ],
)
