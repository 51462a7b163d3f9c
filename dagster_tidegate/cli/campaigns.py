"""`tidegate campaigns`: what the campaigns need, and the state of their runs."""

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli.connections import open_store, reading
from dagster_tidegate.cli.options import SERVICE, completing, json_option, url_option
from dagster_tidegate.cli.status import run_counts, warnings, why_of
from dagster_tidegate.control.models import CampaignDetails
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.statuses import CampaignStatus
from dagster_tidegate.text import did_you_mean


@click.command()
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([status.value for status in CampaignStatus]),
    help="Only campaigns with this status. Repeatable.",
)
@click.option(
    "--service",
    shell_complete=completing(SERVICE),
    help="Only campaigns that need this service.",
)
@json_option
@url_option
def campaigns(
    statuses: tuple[str, ...], service: str | None, as_json: bool, url: str | None
) -> None:
    """List campaigns: their services, runs and holds."""
    with reading(open_store(url)) as (_, situation):
        pass
    if service is not None:
        _require_needed(situation, service)
    listed = [
        campaign
        for campaign in situation.campaigns.values()
        if (not statuses or campaign.status in statuses)
        and (service is None or service in campaign.services)
    ]
    if as_json:
        console.print_json([CampaignDetails.all_of(situation, each) for each in listed])
        return
    table = console.table(
        "Campaigns", "campaign", "status", "needs", "runs", "triggers", "catch-up", "priority",
        "why", less=("priority", "catch-up", "triggers", "needs"),
    )  # fmt: skip
    for campaign in listed:
        spec = campaign.spec
        table.add_row(
            spec.name,
            console.status(campaign.status),
            ", ".join(sorted(campaign.services)),
            run_counts(campaign),
            ", ".join(trigger.name for trigger in spec.triggers),
            spec.catch_up,
            spec.priority,
            why_of(situation, spec.name),
        )
    out = console.console()
    out.print(table if listed or not situation.campaigns else "no campaigns")
    for warning in warnings(situation):
        out.print(warning)


def _require_needed(situation: Situation, service: str) -> None:
    needed = {name for campaign in situation.campaigns.values() for name in campaign.services}
    if service not in needed | situation.services:
        hint = did_you_mean(service, needed, f"they need {', '.join(sorted(needed)) or 'none'}")
        raise console.failure(f"no campaign needs {service!r}; {hint}")
