"""`tidegate runbook`: what an alert, a finding or a rule means, and what to do."""

from difflib import get_close_matches

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli.options import json_option
from dagster_tidegate.control.runbooks import runbooks


def _names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return sorted({each.name for each in runbooks() if each.name.startswith(incomplete)})


@click.command()
@click.argument("name", required=False, shell_complete=_names)
@json_option
def runbook(name: str | None, as_json: bool) -> None:
    """Show what an alert or a finding means, and what to do about it.

    NAME is the kind of the alert, such as `trip`, the code of the finding, or the name of a
    Prometheus rule. Without NAME, all names are listed. Needs neither the store nor Dagster.
    """
    entries = [each for each in runbooks() if name in (None, each.name)]
    if not entries:
        near = get_close_matches(str(name), [each.name for each in runbooks()], n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise console.failure(
            f"no alert, finding or rule is named {name!r}: {hint}'tidegate runbook' lists them all"
        )
    if as_json:
        console.print_json(entries)
        return
    if name is None:
        for each in entries:
            console.say(f"{each.subject} {each.name}")
        return
    out = console.console()
    for each in entries:
        out.print(console.text(f"{each.subject} {each.name}", "bold"), soft_wrap=True)
        for title, text in each.parts.items():
            out.print(console.text(f"  {title}: {text.replace('`', '')}"), soft_wrap=True)
