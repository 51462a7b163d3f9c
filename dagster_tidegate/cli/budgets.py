"""`tidegate budgets`: how much of the budgets of services is spent, and by whom."""

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli import options as o
from dagster_tidegate.cli.connections import open_store, reading
from dagster_tidegate.cli.status import warnings
from dagster_tidegate.store import budgets as store

HISTORY = 100


@click.command()
@click.argument("name", required=False, type=o.PART, shell_complete=o.completing(o.SERVICE))
@o.json_option
@o.url_option
def budgets(name: str | None, as_json: bool, url: str | None) -> None:
    """List the budgets of services, and how much of each is spent.

    With NAME, what each campaign has spent on one service, the latest period first.
    """
    with reading(open_store(url)) as (conn, situation):
        spent = [] if name is None else store.history(conn, name, HISTORY)
    out, usages = console.console(), situation.budgets
    if name is not None and name not in usages:
        known = ", ".join(usages) or "none"
        raise console.failure(f"no service {name!r} has a budget; those that have one: {known}")
    if as_json:
        console.print_json(usages if name is None else spent)
        return
    if name is not None:
        out.print(console.text(usages[name]))
        table = console.table(f"Spent on {name}", "since", "campaign", "spent", "unit")
        for each in spent:
            table.add_row(each.period, each.campaign or "(none)", f"{each.amount:,.10g}", each.unit)
        out.print(table if spent else f"nothing was spent on {name}")
        return
    table = console.table("Budgets", "service", "spent", "of", "unit", "per", "left", "resets")
    for service, usage in usages.items():
        table.add_row(
            service,
            console.text(f"{usage.spent:,.10g}", "yellow" if usage.is_nearly_spent else ""),
            f"{usage.amount:,.10g}",
            usage.unit,
            usage.per,
            f"{usage.left:,.10g}",
            usage.resets_at,
        )
    out.print(table if usages else "no budgets")
    for warning in warnings(situation):
        out.print(warning)
