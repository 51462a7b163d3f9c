"""`tidegate config`: the settings that are in force, and where each comes from."""

import json
import os
from dataclasses import asdict

import click
import sqlalchemy as sa
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.exc import ArgumentError

from dagster_tidegate.cli.reading import url_option, use_local_home
from dagster_tidegate.settings import (
    GROUPS,
    Effective,
    GeneralSettings,
    Settings,
    SettingsError,
    effective,
    unknown,
    variable,
)
from dagster_tidegate.store.database import default_url

STORE_VARIABLE = variable(GeneralSettings, "store_url")


@click.command()
@url_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def config(url: str | None, as_json: bool) -> None:
    """Show the settings that are in force here, and where each comes from.

    Secrets are not shown. Exit code 1 if a variable is unknown or has a value that can't be used.
    """
    use_local_home()
    found: list[Effective] = []
    problems = unknown(os.environ)
    for group in GROUPS:
        try:
            found += effective(group, **_given(group, url))
        except SettingsError as error:
            problems.append(str(error))
    store = _store(url)
    if as_json:
        settings = {each.variable: asdict(each) for each in found}
        click.echo(json.dumps({"settings": settings, "store": store, "problems": problems}))
    else:
        _print(found, store)
    if problems:
        raise click.ClickException("\n".join(problems))


def _given(group: type[Settings], url: str | None) -> dict[str, str | None]:
    return {"store_url": url} if group is GeneralSettings else {}


def _store(url: str | None) -> str | None:
    """Return where the store is, without its password; None where it has no place."""
    try:
        place = sa.make_url(url or default_url())
    except (ValueError, ArgumentError):
        return None
    return place.difference_update_query(["password", "passfile"]).render_as_string()


def _print(found: list[Effective], store: str | None) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table("setting", "value", "from", box=SIMPLE)
    for each in found:
        value = "[dim](not set)[/]" if each.value is None else escape(each.value)
        table.add_row(each.variable, value, f"[dim]{each.source}[/]")
    console.print(table)
    console.print(f"The store: {escape(store or 'has no place here')}")
