"""`tidegate records`: what went wrong with the records of campaign runs, and doing them again."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli import options as o
from dagster_tidegate.cli.connections import explained, loaded, open_store, reading
from dagster_tidegate.cli.runs import refusals_exit
from dagster_tidegate.cli.why import answer_for, find_run
from dagster_tidegate.control import operations
from dagster_tidegate.control import records as control
from dagster_tidegate.control.models import (
    ErrorGroupOut,
    RecordOut,
    RecordsMarked,
    RecordsSkipped,
)
from dagster_tidegate.control.starting import verdict
from dagster_tidegate.dagster_api import LaunchError
from dagster_tidegate.dagster_api.project import CodeOptions
from dagster_tidegate.store import records as store_records
from dagster_tidegate.store import runs as campaign_runs
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.records import RecordState, Selection
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.text import MAX_REASON, alike, did_you_mean, plural

MAX_RUNS = 100
STATES = {
    RecordState.FAILED: "Failed records, suspects included.",
    RecordState.SUSPECT: "Records that failed while others succeeded.",
    RecordState.IN_DOUBT: "Records whose effect may or may not have reached the service.",
    RecordState.WAITING: "Records that were tried without a result, or are marked for a retry.",
    RecordState.DONE: "Records that are done.",
    RecordState.SKIPPED: "Records that were skipped by hand.",
}
"""What may be asked for, each with the help of its option."""
RUN = click.argument("name", metavar="CAMPAIGN/PARTITION", type=o.NAME)


def selecting(*states: RecordState) -> o.Decorator:
    """Return the options that select records: `states` may be asked for."""
    return o.together(
        *(
            click.option(f"--{state.replace('_', '-')}", is_flag=True, help=STATES[state])
            for state in states
        ),
        click.option(
            "--error",
            type=o.Words("error", MAX_REASON),
            help="Records with this text in their error.",
        ),
        click.option(
            "--key",
            "keys",
            multiple=True,
            type=o.Words("key", 512),
            help="The record with this key. Repeatable.",
        ),
        click.option(
            "--since", type=o.Since(), help="Records written since then: 2h, 2026-03-01T18:00Z."
        ),
    )


def selected(
    now: datetime, since: datetime | timedelta | None, options: Mapping[str, Any]
) -> Selection:
    """Return the selection that the options of `selecting` mean."""
    flags = tuple(state for state in STATES if options.get(state))
    return Selection(flags, options["error"], options["keys"], o.since(now, since))


@click.group(cls=o.ListingGroup)
def records() -> None:
    """List the records of campaign runs, grouped by error; retry or skip them.

    'tidegate records NAME' is 'tidegate records list NAME'.
    """


@records.command("list")
@click.argument(
    "name", metavar="CAMPAIGN[/PARTITION]", type=o.NAME, shell_complete=o.completing(o.CAMPAIGN)
)
@selecting(*STATES)
@o.limit_option("Maximum number of records.", most=100_000)
@o.json_option
@o.url_option
def list_(
    name: str,
    since: datetime | timedelta | None,
    limit: int,
    as_json: bool,
    url: str | None,
    **options: Any,
) -> None:
    """List records, grouped by what the service said.

    Without an option, all records that are not done.
    """
    with reading(open_store(url)) as (conn, situation):
        selection = selected(situation.now, since, options)
        summed_up = selection
        if selection == Selection():
            selection = Selection([state for state in RecordState if state is not RecordState.DONE])
        answer = []
        for run in _runs(conn, name, situation.campaigns):
            groups = store_records.summary(conn, situation.now, run, summed_up)
            rows = store_records.read(conn, situation.now, run, selection, limit=limit)
            limit = max(0, limit - len(rows))
            answer.append((run, groups, rows))
    if as_json:
        console.print_json(
            [
                {
                    "run": run.name,
                    "groups": [ErrorGroupOut.model_validate(group) for group in groups],
                    "records": [RecordOut.model_validate(record) for record in rows],
                }
                for run, groups, rows in answer
            ]
        )
        return
    out = console.console()
    summary = console.table("", "run", "records", "status", "said", "such as")
    table = console.table(
        "Records", "run", "op", "record", "status", "tries", "served by", "at", "error",
        less=("served by", "run", "op", "at"),
    )  # fmt: skip
    for run, groups, rows in answer:
        for group in groups:
            said = None if group.error is None else alike(group.error)
            summary.add_row(run.name, group.count, console.status(group.state), said, group.key)
        for record in rows:
            table.add_row(
                run.name,
                record.op,
                record.key,
                console.status(record.state),
                record.tries,
                record.service,
                record.at,
                record.error,
            )
    out.print(summary if any(groups for _, groups, _ in answer) else "no such records")
    if any(rows for *_, rows in answer):
        out.print(table)


@records.command()
@RUN
@selecting(RecordState.FAILED, RecordState.SUSPECT, RecordState.DONE)
@o.reason_option
@o.code_options
@o.change_options
def retry(
    name: str,
    since: datetime | timedelta | None,
    reason: str,
    dry_run: bool,
    actor: str,
    code: CodeOptions,
    as_json: bool,
    url: str | None,
    **options: Any,
) -> None:
    """Retry records in one Dagster run that processes nothing else.

    Without a status option or --key, only failed records. They keep their idempotency keys, and
    their tries are counted from 0. Use --done with --since for records that were recorded as done
    by mistake.

    Exit codes: 0 queued; 1 failure; 2 invalid command line; 3 held; 4 in progress, or about to
    resume.
    """
    store = open_store(url)
    with reading(store) as (conn, situation):
        run = find_run(conn, name)
        selection = selected(situation.now, since, options)
        decision = verdict(answer_for(conn, situation, run.name, "run"))
        if run.campaign not in situation.campaigns:
            raise console.failure(
                f"no code location defines the campaign {run.campaign}: add its job again, or "
                f"skip the records with 'tidegate records skip {run.name}'"
            )
        spec = situation.campaigns[run.campaign].spec
    with explained(control.NoRecordsError, LaunchError), refusals_exit(), ExitStack() as stack:
        workspace = None
        if not dry_run and decision.refusal is None:
            workspace = stack.enter_context(loaded(code, known={spec.location}))
        again = control.retry(
            store,
            workspace,
            spec,
            run,
            selection,
            decision,
            reason=reason,
            actor=actor,
            dry_run=workspace is None,
        )
    marked, dagster_run = again.marked, again.dagster_run
    if as_json:
        answer = {"run": run.name, "dry_run": dry_run, "marked": marked, "dagster_run": dagster_run}
        console.print_json(RecordsMarked.model_validate(answer))
        return
    done = "would be retried" if dry_run else f"will be retried by Dagster run {dagster_run}"
    console.say(f"{_counted(marked)} of {run.name} {done}")


@records.command()
@RUN
@selecting(RecordState.FAILED, RecordState.SUSPECT, RecordState.IN_DOUBT, RecordState.WAITING)
@o.reason_option
@o.change_options
def skip(
    name: str,
    since: datetime | timedelta | None,
    reason: str,
    dry_run: bool,
    actor: str,
    as_json: bool,
    url: str | None,
    **options: Any,
) -> None:
    """Mark records as needing no result, so that the campaign run can complete without them.

    Without a status option or --key, only failed records. Records that are done stay done.
    """
    store = open_store(url)
    with reading(store) as (conn, situation):
        run = find_run(conn, name)
        selection = selected(situation.now, since, options)
    with (
        explained(control.NoRecordsError),
        refusals_exit(),
        operations.writing(store, dry_run=dry_run) as conn,
    ):
        skipped = control.skip(conn, store, run, selection, reason=reason, actor=actor)
    if as_json:
        answer = {"run": run.name, "dry_run": dry_run, "skipped": skipped}
        console.print_json(RecordsSkipped.model_validate(answer))
        return
    console.say(f"{'would skip' if dry_run else 'skipped'} {_counted(skipped)} of {run.name}")


def _counted(changed: Mapping[str, int]) -> str:
    """Return how many records were changed, in all and by op, for people."""
    total = plural(sum(changed.values()), "record")
    if len(changed) == 1:
        return total
    return f"{total} ({', '.join(f'{op} {count}' for op, count in changed.items())})"


def _runs(conn: Connection, name: str, campaigns: Mapping[str, Any]) -> Sequence[CampaignRun]:
    """Return the campaign run with a name, or the newest runs of the campaign with that name.

    Raises:
        click.ClickException: If there are none.
    """
    if "/" in name:
        return [find_run(conn, name)]
    newest = campaign_runs.newest(conn, campaign=name, by_change=True, limit=MAX_RUNS)
    if not newest and name not in campaigns:
        hint = did_you_mean(name, campaigns, "see 'tidegate campaigns'")
        raise console.failure(f"no campaign is named {name!r}; {hint}")
    return newest
