"""`tidegate config`: the settings in effect, and where each comes from."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dagster_tidegate.cli.connections import loaded, read_environment
from dagster_tidegate.cli.console import print_json
from dagster_tidegate.cli.options import code_options, json_option, url_option
from dagster_tidegate.dagster_api.project import CodeOptions
from dagster_tidegate.settings import (
    GROUPS,
    Effective,
    GeneralSettings,
    Settings,
    SettingsError,
    effective,
    unknown,
)
from dagster_tidegate.store.database import locate, shown_url

if TYPE_CHECKING:
    from dagster_tidegate.dagster_api.locations import LocationCode


@click.command()
@code_options
@json_option
@url_option
def config(code: CodeOptions, as_json: bool, url: str | None) -> None:
    """Show the settings in effect and where each comes from.

    Secrets are hidden. With an option that names code, also shows the configuration of its code
    locations. Exit code 1 if a variable is unknown or its value is invalid.
    """
    read_environment()
    settings: list[Effective] = []
    problems = unknown(os.environ)
    for group in GROUPS:
        try:
            settings += effective(group, **_given(group, url))
        except SettingsError as error:
            problems.append(str(error))
    locations = _locations(code) if code else {}
    store = _store(url)
    if as_json:
        print_json(
            {
                "settings": _by_name(settings),
                "locations": {name: _by_name(resource) for name, resource in locations.items()},
                "store": store,
                "problems": problems,
            }
        )
    else:
        console = Console(highlight=False, soft_wrap=True)
        _print(console, "setting", settings)
        for name, resource in locations.items():
            _print(console, f"BreakerResource of {name}", resource)
        console.print(f"Store: {escape(store or 'none; set DAGSTER_HOME or TIDEGATE_STORE_URL')}")
    if problems:
        raise click.ClickException("\n".join(problems))


def _given(group: type[Settings], url: str | None) -> dict[str, str | None]:
    return {"store_url": url} if group is GeneralSettings else {}


def _store(url: str | None) -> str | None:
    """Return the URL of the store without its password, or None if there is none."""
    try:
        return shown_url(locate(url)[0])
    except ValueError:
        return None


def _locations(code: CodeOptions) -> dict[str, list[Effective]]:
    """Return the configuration of each code location, by name."""
    with loaded(code) as workspace:
        return {location.name: _resource(location) for location in workspace.locations()}


def _resource(location: "LocationCode") -> list[Effective]:
    from dagster_tidegate.plugin.resource import BreakerResource

    fields = BreakerResource.model_fields
    default = fields["drain_timeout_s"].default
    drain = default if location.drain_timeout_s is None else location.drain_timeout_s
    own = None if location.store_url is None else shown_url(location.store_url)
    named = {
        "services": (" ".join(sorted(location.policies)) or None, "code"),
        "store_url": (own, "its environment" if own is None else "code"),
        "drain_timeout_s": (f"{drain:g}", "default" if drain == default else "code"),
    }
    return [
        Effective(name, value, source, fields[name].description or "")
        for name, (value, source) in named.items()
    ]


def _by_name(settings: Sequence[Effective]) -> dict[str, Effective]:
    return {each.variable: each for each in settings}


def _print(console: Console, title: str, settings: Sequence[Effective]) -> None:
    table = Table(escape(title), "value", "from", box=SIMPLE)
    for each in settings:
        value = "[dim](not set)[/]" if each.value is None else escape(each.value)
        table.add_row(each.variable, value, f"[dim]{each.source}[/]")
    console.print(table)
