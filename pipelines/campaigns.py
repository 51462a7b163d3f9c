"""The campaigns of this deployment."""

from dagster_tidegate import Campaign, CatchUp
from pipelines.account_digest import account_digest
from pipelines.list_hygiene import list_hygiene
from pipelines.outreach import outreach

CAMPAIGNS = [
    Campaign(job=outreach, triggers=["new_lead_files"], priority=10),
    # Each day verifies other addresses, so every missed day is caught up.
    Campaign(job=list_hygiene, catch_up=CatchUp.ALL),
    # Old news is worthless: only the latest missed hour is caught up.
    Campaign(job=account_digest, catch_up=CatchUp.LATEST),
]
