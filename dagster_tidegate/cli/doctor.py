"""`tidegate doctor`: problems of a deployment, and their fixes."""

from dataclasses import asdict

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli.connections import read_environment
from dagster_tidegate.cli.options import code_options, json_option, url_option
from dagster_tidegate.control.runbooks import where
from dagster_tidegate.dagster_api.project import CodeOptions
from dagster_tidegate.settings import GeneralSettings, load
from dagster_tidegate.text import plural


@click.command()
@code_options
@json_option
@url_option
def doctor(code: CodeOptions, as_json: bool, url: str | None) -> None:
    """Check Dagster, the store and the code locations, and suggest fixes.

    Exit codes: 0 no errors, though there may be warnings; 1 at least one error; 2 invalid command
    line.
    """
    read_environment()
    with console.working("checking Dagster, the store and the code locations"):
        from dagster_tidegate.doctor.checks import Severity, diagnose, unchecked
        from dagster_tidegate.doctor.gather import gather

        facts = gather(code, url)
    pages = load(GeneralSettings).page_url("")
    findings, blind = diagnose(facts), unchecked(facts)
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    if as_json:
        listed = [
            {**asdict(finding), "runbook": where("finding", finding.code, pages)}
            for finding in findings
        ]
        console.print_json({"healthy": not errors, "findings": listed, "unchecked": blind})
    else:
        out = console.console()
        for finding in findings:
            head = console.text(f"{finding.severity}: ", console.COLOURS[finding.severity])
            out.print(head.append(console.text(f"{finding.about}: {finding.what}")), soft_wrap=True)
            out.print(console.text(f"  fix: {finding.do}"), soft_wrap=True)
            runbook = where("finding", finding.code, pages)
            out.print(console.text(f"  ({finding.code}; {runbook})", "dim"), soft_wrap=True)
        if not findings:
            out.print(console.text("no problems found", "green"))
        else:
            warnings = len(findings) - errors
            out.print(f"{plural(errors, 'error')}, {plural(warnings, 'warning')}")
        out.print("Not checked:")
        for line in blind:
            out.print(console.text(f"- {line}", "dim"), soft_wrap=True)
    if errors:
        raise click.exceptions.Exit(1)
