"""`tidegate runs` and `tidegate start`: campaign runs, their progress and their start."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import click
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dagster_tidegate.cli import console
from dagster_tidegate.cli import options as o
from dagster_tidegate.cli.connections import explained, loaded, open_store, reading
from dagster_tidegate.cli.why import WITH_REASON, answer_for, find_run, show_answer
from dagster_tidegate.control import operations
from dagster_tidegate.control.models import RunDetailsOut, RunOut, VerdictOut
from dagster_tidegate.control.records import HeldError
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.starting import Refusal, StartVerdict, verdict
from dagster_tidegate.control.why import why_waiting
from dagster_tidegate.dagster_api import LaunchError
from dagster_tidegate.dagster_api.project import CodeOptions
from dagster_tidegate.holds import run_name
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import run_details
from dagster_tidegate.store import runs as campaign_runs
from dagster_tidegate.store.run_details import LedgerRecord, ListedRun, LoopProgress
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.text import did_you_mean, length

BAR_WIDTH = 20
HELD = 3
UNDER_WAY = 4
EXIT_CODES = {Refusal.HELD: HELD, Refusal.UNDER_WAY: UNDER_WAY}


@contextmanager
def refusals_exit() -> Iterator[None]:
    """End a command with the exit code of a refusal: held, or under way."""
    try:
        yield
    except (HeldError, operations.UnderWayError) as error:
        console.say(error, err=True)
        code = HELD if isinstance(error, HeldError) else UNDER_WAY
        raise click.exceptions.Exit(code) from error


@click.group(cls=o.ListingGroup)
def runs() -> None:
    """List campaign runs and their progress, or show one in detail.

    'tidegate runs [CAMPAIGN]' is 'tidegate runs list [CAMPAIGN]'.
    """


@runs.command("list")
@click.argument("campaign", required=False, type=o.PART, shell_complete=o.completing(o.CAMPAIGN))
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([status.value for status in RunStatus]),
    help="Only runs with this status. Repeatable.",
)
@o.limit_option("Maximum number of runs, the most recently changed first.", most=10_000)
@o.json_option
@o.url_option
def list_(
    campaign: str | None, statuses: tuple[str, ...], limit: int, as_json: bool, url: str | None
) -> None:
    """List campaign runs and their progress."""
    with reading(open_store(url)) as (conn, situation):
        wanted = [RunStatus(status) for status in statuses]
        newest = campaign_runs.newest(
            conn, campaign=campaign, statuses=wanted, by_change=True, limit=limit
        )
        listed = run_details.with_progress(conn, situation.now, newest)
    if not listed and campaign is not None and campaign not in situation.campaigns:
        hint = did_you_mean(campaign, situation.campaigns, "see 'tidegate campaigns'")
        raise console.failure(f"no campaign is named {campaign!r}; {hint}")
    if as_json:
        console.print_json([RunOut.of(each) for each in listed])
        return
    table = console.table(
        "Campaign runs", "run", "status", "attempt", "op", "", "records", "failed", "rate", "left",
        "why", less=("", "attempt", "op", "rate", "left", "failed"),
    )  # fmt: skip
    for each in listed:
        current = max(each.progress, key=lambda progress: progress.updated_at, default=None)
        table.add_row(
            each.run.name,
            _status(each.run, each.failed),
            each.run.attempt,
            *_progress_cells(current, running=each.run.status is RunStatus.PROCESSING),
            why_waiting(situation, each.run) if each.run.status in WITH_REASON else "",
        )
    console.console().print(table if listed else "no campaign runs")


@runs.command()
@click.argument("name", metavar="CAMPAIGN/PARTITION", type=o.NAME)
@o.limit_option("Maximum number of records of each kind.", default=20)
@o.json_option
@o.url_option
def show(name: str, limit: int, as_json: bool, url: str | None) -> None:
    """Show one campaign run: attempts, progress, records in doubt, failed records."""
    with reading(open_store(url)) as (conn, situation):
        run = find_run(conn, name)
        details = run_details.details(conn, situation.now, run, limit=limit)
        answer = answer_for(conn, situation, run.name, "run")
    if as_json:
        console.print_json(RunDetailsOut.all_of(details, answer))
        return
    failed = ListedRun(run, details.progress).failed
    show_answer(answer, situation, beside_status=f", {failed} failed" if failed else "")
    out = console.console()
    ops = console.table(
        "Progress", "op", "", "records", "failed", "rate", "left", "updated", less=("",)
    )
    for each in details.progress:
        cells = _progress_cells(each, running=run.status is RunStatus.PROCESSING)
        ops.add_row(*cells, each.updated_at)
    out.print(ops)
    attempts = console.table(
        "Attempts", "attempt", "Dagster run", "started", "ended", "outcome", less=("attempt",)
    )
    for attempt in details.attempts:
        attempts.add_row(
            attempt.number,
            attempt.dagster_run,
            attempt.started_at,
            attempt.ended_at,
            console.status(attempt.outcome),
        )
    out.print(attempts)
    if details.in_doubt:
        title = (
            f"In doubt ({len(details.in_doubt)} of {details.in_doubt_count}): the next attempt "
            "sends them again with the same idempotency key"
        )
        out.print(_records(title, details.in_doubt))
    if details.in_hand_count:
        out.print(f"records in flight: {details.in_hand_count}")
    if details.failed:
        title = f"Failed records ({len(details.failed)} of {details.failed_count}, newest first)"
        out.print(_records(title, details.failed))
    if not details.in_doubt and not details.failed:
        out.print("no records are in doubt or failed")


@runs.command()
@click.argument("name", metavar="CAMPAIGN[/PARTITION]", type=o.NAME)
@o.change_options
def cancel(name: str, dry_run: bool, actor: str, as_json: bool, url: str | None) -> None:
    """Cancel a paused campaign run, so that it does not resume.

    Without a partition: all paused runs of a campaign that no code location defines.
    """
    store = open_store(url)
    campaign, _, partition = name.partition("/")
    with reading(store) as (conn, situation):
        if partition:
            run = find_run(conn, name)
            if run.status is not RunStatus.PAUSED:
                raise console.failure(
                    f"{name} is {run.status}: only a paused run is cancelled by this command. "
                    "Terminate its Dagster run instead"
                )
            paused = [run]
        elif campaign in situation.campaigns:
            raise console.failure(
                f"{campaign} is defined by {situation.campaigns[campaign].spec.location}: name a "
                f"run of it, {campaign}/PARTITION"
            )
        else:
            paused = campaign_runs.with_status(conn, RunStatus.PAUSED, campaigns=[campaign])
    with explained():
        if not dry_run:
            for run in paused:
                operations.cancel(store, None, run, actor=actor)
    if as_json:
        console.print_json({"dry_run": dry_run, "cancelled": [run.name for run in paused]})
        return
    verb = "would be cancelled" if dry_run else "cancelled"
    for run in paused:
        console.say(f"{verb}: {run.name}")
    if not paused:
        console.say(f"no run of {campaign} is paused")


def _status(run: CampaignRun, failed: int) -> Text:
    status = console.status(run.status)
    if failed:
        status.append(f", {failed} failed", "red")
    return status.append(" (not started)") if run.waits_for_start else status


def _progress_cells(progress: LoopProgress | None, *, running: bool) -> list:
    if progress is None:
        return ["", "", "", "", "", ""]
    handled, total = progress.done + progress.failed, progress.total
    left = progress.seconds_left()
    return [
        console.text(progress.op),
        "" if total is None else ProgressBar(max(total, 1), handled, width=BAR_WIDTH),
        f"{handled}/{'?' if total is None else total}",
        console.text(progress.failed or "", "red"),
        f"{progress.rate:.3g}/s" if running and progress.rate else "",
        length(timedelta(seconds=left)) if running and left is not None else "",
    ]


def _records(title: str, records: Sequence[LedgerRecord]) -> Table:
    table = console.table(title, "op", "record", "attempt", "at", "error")
    for record in records:
        table.add_row(record.op, record.key, record.attempt, record.at, record.error)
    return table


@click.command()
@click.argument("campaign", type=o.NAME, shell_complete=o.completing(o.CAMPAIGN))
@click.option("--partition", type=o.PART, help="The partition, if the job has partitions.")
@click.option("--queue", is_flag=True, help="Queue it even if it is held; it waits in the queue.")
@click.option("--validate", is_flag=True, help="Only say whether it could start.")
@o.actor_option
@o.code_options
@o.json_option
@o.url_option
def start(
    campaign: str,
    partition: str | None,
    queue: bool,
    validate: bool,
    actor: str,
    code: CodeOptions,
    as_json: bool,
    url: str | None,
) -> None:
    """Start a run of a campaign, or say why it can't start.

    CAMPAIGN/PARTITION names the partition too.

    Exit codes: 0 queued, or could be; 1 failure; 2 invalid command line; 3 held, without --queue;
    4 already running, or paused and about to resume.
    """
    if "/" in campaign:  # the name of a run, as in every other command
        campaign, named = campaign.split("/", 1)
        if partition is not None:
            raise click.UsageError(
                f"{campaign}/{named} names the partition {named!r} already: leave out --partition, "
                f"or use {campaign} --partition {partition}"
            )
        partition = named
    store = open_store(url)
    with reading(store) as (conn, situation):
        of_run = partition is not None and campaign in situation.campaigns
        name, kind = (run_name(campaign, partition or ""), "run") if of_run else (
            campaign, "campaign"
        )  # fmt: skip
        decision = verdict(answer_for(conn, situation, name, kind))
        spec = situation.campaigns[campaign].spec
    refused = decision.refuses(queue=queue)
    run_id = None
    if validate or not refused:
        with (
            loaded(code, known={spec.location}) as workspace,
            explained(LaunchError, operations.ChangedMeanwhileError),
            refusals_exit(),  # somebody else may be faster
        ):
            if validate:
                workspace.check(campaign, partition, spec.location)
            else:
                run_id = operations.start(store, workspace, spec, partition, actor=actor)
    if run_id is not None:
        with reading(store) as (conn, situation):  # it is queued now
            decision = replace(decision, answer=answer_for(conn, situation, name, kind))
    if as_json:
        shown = VerdictOut.of(decision, queue=queue).model_dump()
        console.print_json({**shown, "dagster_run": run_id})
    elif refused:
        _show_refusal(decision, situation)
    else:
        name = decision.answer.target.name
        console.say(
            f"{name} can start" if run_id is None else f"{name} is queued: Dagster run {run_id}"
        )
        if decision.answer.paused or decision.answer.obstacles:
            show_answer(decision.answer, situation)
    if refused and decision.refusal is not None:
        raise click.exceptions.Exit(EXIT_CODES[decision.refusal])


def _show_refusal(decision: StartVerdict, situation: Situation) -> None:
    console.say(decision.text, err=True)
    if decision.refusal is Refusal.HELD:
        show_answer(decision.answer, situation)
        hint = "with --queue it waits in Dagster's queue and starts when nothing holds it"
        console.say(hint, err=True)
