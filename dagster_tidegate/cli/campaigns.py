"""`tidegate campaigns`: what the campaigns need, and how their runs are."""

from typing import Any

import click

from dagster_tidegate.cli import output
from dagster_tidegate.cli.completion import SERVICE, names
from dagster_tidegate.cli.reading import open_store, reading, url_option
from dagster_tidegate.cli.status import run_counts, warnings, why_of
from dagster_tidegate.control.situation import CampaignSituation, Situation
from dagster_tidegate.statuses import CampaignStatus, RunStatus
from dagster_tidegate.text import did_you_mean


@click.command()
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([status.value for status in CampaignStatus]),
    help="Only those that have this status; may be given more than once.",
)
@click.option("--service", shell_complete=names(SERVICE), help="Only those that need this service.")
@output.json_option
@url_option
def campaigns(
    statuses: tuple[str, ...], service: str | None, as_json: bool, url: str | None
) -> None:
    """List the campaigns: what they need, and how their runs are."""
    with reading(open_store(url)) as (_, seen):
        if service is not None:
            _require_needed(seen, service)
        found = [
            campaign
            for campaign in seen.campaigns.values()
            if (not statuses or campaign.status in statuses)
            and (service is None or service in campaign.services)
        ]
    if as_json:
        output.print_json([as_dict(campaign, seen) for campaign in found])
        return
    out = output.console()
    listed = output.table(
        "Campaigns", "campaign", "status", "needs", "runs", "triggers", "catch-up", "priority",
        "why", less=("priority", "catch-up", "triggers", "needs"),
    )  # fmt: skip
    for campaign in found:
        shape = campaign.spec
        listed.add_row(
            output.text(shape.name),
            output.status(campaign.status),
            output.text(", ".join(sorted(campaign.services))),
            run_counts(campaign.runs),
            output.text(", ".join(trigger.name for trigger in shape.triggers)),
            output.text(shape.catch_up),
            str(shape.priority),
            output.text(why_of(seen, shape.name)),
        )
    out.print(listed if found or not seen.campaigns else "no campaigns")
    for warning in warnings(seen):
        out.print(warning)


def _require_needed(seen: Situation, service: str) -> None:
    needed = {name for campaign in seen.campaigns.values() for name in campaign.services}
    if service not in needed | seen.services:
        listed = f"they need {', '.join(sorted(needed)) or 'none'}"
        message = f"no campaign needs {service!r}; {did_you_mean(service, needed, listed)}"
        raise click.ClickException(output.text(message).plain)


def as_dict(campaign: CampaignSituation, seen: Situation) -> dict[str, Any]:
    """Return a campaign as JSON shows it."""
    shape = campaign.spec
    return {
        "name": shape.name,
        "location": shape.location,
        "status": campaign.status,
        "services": campaign.services,
        "ops": shape.ops,
        "triggers": [{"kind": t.kind, "name": t.name} for t in shape.triggers],
        "catch_up": shape.catch_up,
        "priority": shape.priority,
        "runs": {status.value: campaign.runs.get(status, 0) for status in RunStatus},
        "holds": [hold.id for hold in campaign.holds],
        "why": why_of(seen, shape.name),
    }
