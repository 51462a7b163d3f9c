"""`tidegate doctor`: what is wrong with a deployment, and what to do about it."""

from pathlib import Path

import click

from dagster_tidegate.cli import output
from dagster_tidegate.cli.deployment import working, workspace_option
from dagster_tidegate.cli.reading import url_option, use_local_home


@click.command()
@workspace_option
@output.json_option
@url_option
def doctor(workspace: Path, as_json: bool, url: str | None) -> None:
    """Check Dagster and the store, and say what to do about what is wrong.

    Exit codes: 0 nothing is wrong, or there are only warnings; 1 an error was found; 2 the command
    line is wrong.
    """
    use_local_home()
    with working("looking at Dagster, the store and the code locations"):
        from dagster_tidegate.doctor.checks import Severity, diagnose, unchecked
        from dagster_tidegate.doctor.gather import gather

        facts = gather(workspace, url)
    found, blind = diagnose(facts), unchecked(facts)
    errors = sum(finding.severity is Severity.ERROR for finding in found)
    if as_json:
        output.print_json({"healthy": not errors, "findings": found, "unchecked": blind})
    else:
        out = output.console()
        for finding in found:
            head = output.text(f"{finding.severity}: ", output.COLOURS[finding.severity])
            out.print(head.append(output.text(f"{finding.about}: {finding.what}")), soft_wrap=True)
            out.print(output.text(f"  do: {finding.do}"), soft_wrap=True)
            out.print(output.text(f"  ({finding.code})", "dim"), soft_wrap=True)
        if not found:
            out.print(output.text("all well", "green"))
        else:
            out.print(f"{errors} errors, {len(found) - errors} warnings")
        out.print("What was not looked at:")
        for line in blind:
            out.print(output.text(f"- {line}", "dim"), soft_wrap=True)
    if errors:
        raise click.exceptions.Exit(1)
