"""The campaigns: jobs that pause and resume with the services that their ops need."""

from dagster_tidegate import Campaign, CatchUp
from pipelines.account_digest import account_digest
from pipelines.list_hygiene import list_hygiene
from pipelines.outreach import outreach

CAMPAIGNS = [
    Campaign(job=outreach, triggers=["new_lead_files"], priority=10),
    # The next day's run looks at other addresses, so a missed day is made up for.
    Campaign(job=list_hygiene, catch_up=CatchUp.ALL),
    # Yesterday's news is no news.
    Campaign(job=account_digest, catch_up=CatchUp.LATEST),
]
