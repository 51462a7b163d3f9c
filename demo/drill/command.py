"""`python -m demo drill`: run the campaigns through an outage and report."""

import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from demo.sandbox.command import SERVICES
from demo.up.command import explained, workspace_option

if TYPE_CHECKING:
    from demo.drill.report import Evidence, Report

DEFAULT_LEADS = 420


class _Screen:
    """Shows the phases of a drill and a progress bar of its records."""

    def __init__(self, console: Console) -> None:
        self._began = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("records sent", total=None)

    def __enter__(self) -> "_Screen":
        self._progress.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def phase(self, text: str) -> None:
        at = time.monotonic() - self._began
        self._progress.console.print(f"[dim]{at:6.1f} s[/]  {escape(text)}")

    def progress(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)


@click.command()
@workspace_option
@click.option(
    "--service",
    type=click.Choice(SERVICES),
    default="instantly",
    show_default=True,
    help="The service that fails.",
)
@click.option(
    "--outage",
    "outage_s",
    type=click.FloatRange(1, 3600),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="Minimum duration of the outage; it lasts until everything has paused.",
)
@click.option(
    "--leads",
    type=click.IntRange(70, 9000),
    default=DEFAULT_LEADS,
    show_default=True,
    help="Number of leads.",
)
@click.option(
    "--kill-daemon", is_flag=True, help="Kill and restart Dagster's daemon during the outage."
)
@click.option(
    "--url",
    help="SQLAlchemy URL of a store that nothing else uses (SQLite or PostgreSQL). Default: a "
    "temporary SQLite file. On PostgreSQL, Dagster's storage gets a schema in the same database.",
)
@click.option("--keep", is_flag=True, help="Keep the databases and logs, and print where they are.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Also write the report to this file.",
)
def drill(
    workspace: Path,
    service: str,
    outage_s: float,
    leads: int,
    kill_daemon: bool,
    url: str | None,
    keep: bool,
    json_file: Path | None,
) -> None:
    """Take the campaigns through an outage and report what happened.

    Starts the sandbox, Dagster's webserver and its daemon in a temporary DAGSTER_HOME, on free
    ports. The figures are what the sandbox received.

    Exit code 1 if a record was lost or sent twice, a run failed, or a pool or schedule was not
    restored. The databases and logs are then kept.
    """
    from demo.drill import report
    from demo.drill.deployment import drop, start_deployment
    from demo.drill.scenario import DrillError, DrillOptions, Scenario

    console = Console(highlight=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="tidegate-drill-"))
    plan = DrillOptions(service=service, outage_s=outage_s, leads=leads, kill_daemon=kill_daemon)
    try:
        with _Screen(console) as screen:
            screen.phase("starting the sandbox, Dagster's webserver and its daemon")
            with start_deployment(workspace, folder, store_url=url) as running:
                screen.phase(f"Dagster is at {running.web}")
                evidence, dagster_schema = (
                    Scenario(plan, running, screen).play(),
                    running.dagster_schema,
                )
    except (*explained(), DrillError) as error:
        raise click.ClickException(f"{error}\nDatabases and logs are kept in {folder}") from error
    figures, problems = report.summarize(evidence), report.violations(evidence)
    if json_file is not None:
        json_file.write_text(json.dumps(figures.as_dict(), indent=2) + "\n")
    _show(console, evidence, figures)
    if problems:
        console.print("\n[bold red]Violations:[/]")
        for problem in problems:
            console.print(f"  - {escape(problem)}")
        raise click.ClickException(f"databases and logs are kept in {folder}")
    console.print("\n[bold green]No violations.[/]")
    if keep:
        schema = f", Dagster's storage in the schema {dagster_schema}" if dagster_schema else ""
        console.print(f"Databases and logs are in {folder}{schema}")
        return
    shutil.rmtree(folder)
    if url is not None and dagster_schema is not None:
        drop(url, dagster_schema)


def _show(console: Console, evidence: "Evidence", figures: "Report") -> None:
    table = Table(show_header=False, box=None, padding=(0, 2))
    sections = {
        "records": f"{figures.records_done} of {figures.records_total} arrived; "
        f"{figures.records_lost} lost, {figures.records_duplicated} twice",
        "calls": f"{figures.calls_total}; {figures.calls_while_open} reached {evidence.service} "
        "while its breaker was open, the last "
        f"{_seconds(figures.trip_to_last_call_s)} after the trip",
        "Dagster runs": f"{figures.runs_paused} paused, {figures.runs_resumed} resumed, "
        f"{figures.runs_failed} failed",
        "paused": ", ".join(sorted(evidence.paused_campaigns)) or "nothing",
        "untouched": ", ".join(
            sorted((evidence.affected | evidence.unaffected) - evidence.paused_campaigns)
        ),
        "after the trip": f"queue stopped in {_seconds(figures.trip_to_queue_stopped_s)}, "
        f"schedules in {_seconds(figures.trip_to_schedules_stopped_s)}, "
        f"all work paused in {_seconds(figures.trip_to_all_paused_s)}",
        "after the recovery": f"first record in {_seconds(figures.recovery_to_first_record_s)}, "
        f"all done in {_seconds(figures.recovery_to_all_done_s)}",
        "restored": f"schedules {'exactly' if figures.schedules_restored else 'NOT'}, "
        f"pools {'exactly' if figures.pools_restored else 'NOT'}",
    }
    for name, text in sections.items():
        table.add_row(f"[bold]{name}[/]", escape(text))
    console.print()
    console.print(table)


def _seconds(value: float | None) -> str:
    return "(not observed)" if value is None else f"{value:.1f} s"
