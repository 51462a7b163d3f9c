"""`tidegate runs`: how far campaign runs are, and what went wrong in one."""

from collections.abc import Sequence
from datetime import timedelta

import click
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dagster_tidegate.cli import output
from dagster_tidegate.cli.completion import CAMPAIGN, names
from dagster_tidegate.cli.reading import open_store, reading, url_option
from dagster_tidegate.cli.target import NAME
from dagster_tidegate.cli.why import TELLING, answer_for, run_hint, tell
from dagster_tidegate.control.models import RunDetailsOut, RunOut
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import run_details
from dagster_tidegate.store import runs as stored
from dagster_tidegate.store.run_details import LedgerRecord, LoopProgress
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.text import did_you_mean, length

BAR_WIDTH = 20


class _ListsByDefault(click.Group):
    """`tidegate runs outreach` is `tidegate runs list outreach`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # the shell completes what is there
            return super().parse_args(ctx, args)
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ListsByDefault)
def runs() -> None:
    """List campaign runs and how far they are; show one with all that went wrong.

    'tidegate runs [CAMPAIGN]' is 'tidegate runs list [CAMPAIGN]'.
    """


@runs.command("list")
@click.argument("campaign", required=False, type=NAME, shell_complete=names(CAMPAIGN))
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([status.value for status in RunStatus]),
    help="Only those that have this status; may be given more than once.",
)
@output.limit_option("How many at most, those that changed last.", most=10_000)
@output.json_option
@url_option
def list_(
    campaign: str | None, statuses: tuple[str, ...], limit: int, as_json: bool, url: str | None
) -> None:
    """List the campaign runs, of one campaign or of all, and how far each is."""
    with reading(open_store(url)) as (conn, seen):
        wanted = [RunStatus(status) for status in statuses]
        found = run_details.listed(
            conn, seen.now, campaign=campaign, statuses=wanted, by_change=True, limit=limit
        )
        if not found and campaign is not None and campaign not in seen.campaigns:
            hint = did_you_mean(campaign, seen.campaigns, "see 'tidegate campaigns'")
            message = output.text(f"no campaign is named {campaign!r}; {hint}").plain
            raise click.ClickException(message)
    if as_json:
        output.print_json([RunOut.of(each) for each in found])
        return
    listed = output.table(
        "Campaign runs", "run", "status", "attempt", "op", "", "records", "failed", "rate", "left",
        "why", less=("", "attempt", "op", "rate", "left", "failed"),
    )  # fmt: skip
    for each in found:
        at = current_op(each.progress)
        listed.add_row(
            output.text(each.run.name),
            _status(each.run),
            str(each.run.attempt),
            *_progress_cells(at, works=each.run.status is RunStatus.PROCESSING),
            output.text(each.run.reason if each.run.status in TELLING else ""),
        )
    output.console().print(listed if found else "no campaign runs")


@runs.command()
@click.argument("name", metavar="CAMPAIGN/PARTITION", type=NAME)
@output.limit_option("How many records of each kind are listed at most.", default=20)
@output.json_option
@url_option
def show(name: str, limit: int, as_json: bool, url: str | None) -> None:
    """Show one campaign run: attempts, progress, records in doubt, failed records."""
    campaign, _, partition = name.partition("/")
    with reading(open_store(url)) as (conn, seen):
        run = stored.find(conn, campaign, partition)
        if run is None:
            message = output.text(
                f"no campaign run is named {name!r}; {run_hint(conn, name)}"
            ).plain
            raise click.ClickException(message)
        details = run_details.details(conn, seen.now, run, limit=limit)
        answer = answer_for(conn, seen, run.name, "run")
    if as_json:
        output.print_json(RunDetailsOut.all_of(details, answer))
        return
    tell(answer, seen)
    out = output.console()
    ops = output.table(
        "Progress", "op", "", "records", "failed", "rate", "left", "updated", less=("",)
    )
    for each in details.progress:
        cells = _progress_cells(each, works=run.status is RunStatus.PROCESSING)
        ops.add_row(*cells, output.moment(each.updated_at))
    out.print(ops)
    attempts = output.table(
        "Attempts", "attempt", "Dagster run", "began", "ended", "ended as", less=("attempt",)
    )
    for attempt in details.attempts:
        attempts.add_row(
            str(attempt.number),
            output.text(attempt.dagster_run),
            output.moment(attempt.started_at),
            output.moment(attempt.ended_at),
            output.status(attempt.outcome),
        )
    out.print(attempts)
    if details.in_doubt:
        title = (
            f"In doubt ({len(details.in_doubt)} of {details.in_doubt_count}): sent again with the "
            "same idempotency key by the next attempt"
        )
        out.print(_records(title, details.in_doubt))
    if details.in_hand_count:
        out.print(f"records in hand: {details.in_hand_count}")
    if details.failed:
        title = f"Failed records ({len(details.failed)} of {details.failed_count}, newest first)"
        out.print(_records(title, details.failed))
    if not details.in_doubt and not details.failed:
        out.print("no record is in doubt, none has failed")


def current_op(progress: Sequence[LoopProgress]) -> LoopProgress | None:
    """Return how far the op is that a campaign run is at: the last that was heard of."""
    return max(progress, key=lambda each: each.updated_at, default=None)


def _status(run: CampaignRun) -> Text:
    found = output.status(run.status)
    return found.append(" (not started)") if run.waits_for_start else found


def _progress_cells(at: LoopProgress | None, *, works: bool) -> list:
    if at is None:
        return ["", "", "", "", "", ""]
    handled = at.done + at.failed
    bar = "" if at.total is None else ProgressBar(max(at.total, 1), handled, width=BAR_WIDTH)
    left = at.seconds_left()
    return [
        output.text(at.op),
        bar,
        f"{handled}/{'?' if at.total is None else at.total}",
        output.text(at.failed or "", "red"),
        f"{at.rate:.3g}/s" if works and at.rate else "",
        length(timedelta(seconds=left)) if works and left is not None else "",
    ]


def _records(title: str, found: Sequence[LedgerRecord]) -> Table:
    table = output.table(title, "op", "record", "attempt", "at", "error")
    for record in found:
        table.add_row(
            output.text(record.op),
            output.text(record.key),
            str(record.attempt),
            output.moment(record.at),
            output.text(record.error),
        )
    return table
