"""`python -m demo drill`: the campaigns through an outage, and a report."""

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
from demo.up.command import EXPLAINED, workspace_option

if TYPE_CHECKING:
    from demo.drill.report import Evidence, Report

DEFAULT_LEADS = 420


class _Screen:
    """Shows a drill while it is played: a line for each phase, and a bar for the records."""

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
    help="For how long it fails at least; until all has paused in any case.",
)
@click.option(
    "--leads",
    type=click.IntRange(70, 9000),
    default=DEFAULT_LEADS,
    show_default=True,
    help="How many leads there are to write to.",
)
@click.option("--kill-daemon", is_flag=True, help="Kill Dagster's daemon during the outage.")
@click.option(
    "--url",
    help="SQLAlchemy URL of a store (SQLite or PostgreSQL) that nothing else uses. Default: a "
    "SQLite file of its own. On PostgreSQL Dagster's storage is there too, in its own schema.",
)
@click.option("--keep", is_flag=True, help="Keep the databases and logs, and say where.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write the report there, too.",
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

    Real processes in a temporary DAGSTER_HOME, on free ports: the sandbox, Dagster's webserver
    and its daemon. What arrived is what the sandbox counted.

    Exit code 1 if something was lost, sent twice, failed, or is not as it was before; the place
    with all databases and logs is kept then.
    """
    from demo.drill import report
    from demo.drill.stage import drop, stage
    from demo.drill.story import DrillError, Plan, Story

    console = Console(highlight=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    place = Path(tempfile.mkdtemp(prefix="tidegate-drill-"))
    plan = Plan(service=service, outage_s=outage_s, leads=leads, kill_daemon=kill_daemon)
    try:
        with _Screen(console) as screen:
            screen.phase("starting the sandbox, Dagster's webserver and its daemon")
            with stage(workspace, place, store_url=url) as set_up:
                screen.phase(f"Dagster is at {set_up.web} meanwhile")
                seen, dagster_schema = Story(plan, set_up, screen).play(), set_up.dagster_schema
    except (*EXPLAINED, DrillError) as error:
        raise click.ClickException(f"{error}\nDatabases and logs are kept in {place}") from error
    found, problems = report.report(seen), report.broken(seen)
    if json_file is not None:
        json_file.write_text(json.dumps(found.as_dict(), indent=2) + "\n")
    _show(console, seen, found)
    if problems:
        console.print("\n[bold red]Broken:[/]")
        for problem in problems:
            console.print(f"  - {escape(problem)}")
        raise click.ClickException(f"databases and logs are kept in {place}")
    console.print("\n[bold green]Everything held.[/]")
    if keep:
        schema = f", Dagster's storage in the schema {dagster_schema}" if dagster_schema else ""
        console.print(f"Databases and logs are in {place}{schema}")
        return
    shutil.rmtree(place)
    if url is not None and dagster_schema is not None:
        drop(url, dagster_schema)


def _show(console: Console, seen: "Evidence", found: "Report") -> None:
    table = Table(show_header=False, box=None, padding=(0, 2))
    sections = {
        "records": f"{found.records_done} of {found.records_total} arrived; "
        f"{found.records_lost} lost, {found.records_duplicated} twice",
        "calls": f"{found.calls_total}; {found.calls_while_open} reached {seen.service} while its "
        f"breaker was open, the last {_seconds(found.trip_to_last_call_s)} after the trip",
        "Dagster runs": f"{found.runs_paused} paused, {found.runs_resumed} resumed, "
        f"{found.runs_failed} failed",
        "paused": ", ".join(sorted(seen.ever_paused)) or "nothing",
        "untouched": ", ".join(sorted((seen.needing | seen.not_needing) - seen.ever_paused)),
        "after the trip": f"queue stopped in {_seconds(found.trip_to_queue_stopped_s)}, "
        f"schedules in {_seconds(found.trip_to_schedules_stopped_s)}, "
        f"all work paused in {_seconds(found.trip_to_all_paused_s)}",
        "after the recovery": f"first record in {_seconds(found.recovery_to_first_record_s)}, "
        f"all done in {_seconds(found.recovery_to_all_done_s)}",
        "put back": f"schedules {'exactly' if found.schedules_restored else 'NOT'}, "
        f"pools {'exactly' if found.pools_restored else 'NOT'}",
    }
    for name, text in sections.items():
        table.add_row(f"[bold]{name}[/]", escape(text))
    console.print()
    console.print(table)


def _seconds(value: float | None) -> str:
    return "(never seen)" if value is None else f"{value:.1f} s"
