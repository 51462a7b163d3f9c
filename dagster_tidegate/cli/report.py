"""`tidegate report`: outages, and what happened in them."""

from datetime import datetime, timedelta

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli import options as o
from dagster_tidegate.cli.connections import open_store, reading
from dagster_tidegate.control import report_reader
from dagster_tidegate.control.report import period
from dagster_tidegate.control.report_models import OutageReport
from dagster_tidegate.control.report_text import outage_text, service_text, summary_text
from dagster_tidegate.text import did_you_mean


@click.command()
@click.option(
    "--service",
    type=o.PART,
    shell_complete=o.completing(o.SERVICE),
    help="The outages of this service, with the reports of the newest.",
)
@click.option("--outage", type=click.IntRange(min=1), help="The report of one outage, by its id.")
@click.option(
    "--since",
    type=o.Since(),
    help="Beginning of the period: 7d, 2026-03-01T00:00Z. Default: 30 days ago.",
)
@click.option("--until", type=o.Moment(), help="End of the period. Default: now.")
@o.limit_option("Maximum number of reports with --service.", default=3, most=100)
@o.json_option
@o.url_option
def report(
    service: str | None,
    outage: int | None,
    since: datetime | timedelta | None,
    until: datetime | None,
    limit: int,
    as_json: bool,
    url: str | None,
) -> None:
    """Report outages: when, why, what was paused, who did what.

    Without --service and --outage: the outages of every service in the last 30 days. The output is
    Markdown.
    """
    if outage is not None and (service is not None or since is not None or until is not None):
        raise click.UsageError("use --outage alone: it names one outage of one service")
    with reading(open_store(url)) as (conn, situation):
        now = situation.now
        if outage is not None:
            report = report_reader.of_outage(conn, now, outage)
            if report is None:
                raise console.failure(
                    f"there is no outage {outage}: see 'tidegate report --service ...'"
                )
            _show(report, as_json)
            return
        try:
            start, end = period(now, o.since(now, since), until)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        if service is None:
            summary = report_reader.summary(conn, start, end)
            if as_json:
                console.print_json(summary)
            else:
                click.echo(summary_text(summary), nl=False)
            return
        if service not in situation.services:
            known = ", ".join(sorted(situation.services)) or "none"
            hint = did_you_mean(service, situation.services, f"known: {known}")
            raise console.failure(f"no service is named {service!r}; {hint}")
        listed = report_reader.of_service(conn, service, start, end)
        reports = [
            detailed
            for each in listed.outages[:limit]
            if (detailed := report_reader.of_outage(conn, now, each.id)) is not None
        ]
    if as_json:
        console.print_json({**listed.model_dump(), "reports": reports})
    else:
        click.echo("\n".join([service_text(listed), *map(outage_text, reports)]), nl=False)


def _show(report: OutageReport, as_json: bool) -> None:
    if as_json:
        console.print_json(report)
    else:
        click.echo(outage_text(report), nl=False)
