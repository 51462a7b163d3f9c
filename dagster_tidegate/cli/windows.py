"""`tidegate windows`: the maintenance windows of services."""

from datetime import timedelta

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli.connections import open_store, reading
from dagster_tidegate.cli.options import json_option, url_option
from dagster_tidegate.cli.status import warnings
from dagster_tidegate.control.models import WindowOut
from dagster_tidegate.text import length


@click.command()
@json_option
@url_option
def windows(as_json: bool, url: str | None) -> None:
    """List the maintenance windows of services, the next one first."""
    with reading(open_store(url)) as (_, situation):
        pass
    if as_json:
        console.print_json([WindowOut.model_validate(each) for each in situation.windows])
        return
    table = console.table(
        "Maintenance windows", "service", "begins", "in", "lasts", "cron", "time zone", "reason",
        less=("time zone", "cron"),
    )  # fmt: skip
    for window in situation.windows:
        table.add_row(
            console.text(window.service),
            console.moment(window.starts_at),
            length(window.starts_at - situation.now),
            length(timedelta(seconds=window.duration_s)),
            console.text(window.cron),
            console.text(window.timezone),
            console.text(window.reason),
        )
    out = console.console()
    out.print(table if situation.windows else "no maintenance windows")
    for hold in situation.holds:
        if hold.is_of_window:
            until = console.moment(hold.expires_at)
            out.print(console.text(f"now: {hold.target} until {until} ({hold.reason})", "yellow"))
    for warning in warnings(situation):
        out.print(warning)
