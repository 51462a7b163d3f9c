"""`tidegate why`: the one answer to why something is paused."""

import re
from dataclasses import replace

import click

from dagster_tidegate.cli import output
from dagster_tidegate.cli import target as targets
from dagster_tidegate.cli.completion import CAMPAIGN, SERVICE, names
from dagster_tidegate.cli.overview import ends, probed
from dagster_tidegate.cli.reading import open_store, reading, url_option
from dagster_tidegate.control.models import WhyOut
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.why import Answer, UnknownNameError, Waiting, find, in_queue
from dagster_tidegate.control.why import why as explain
from dagster_tidegate.holds import Target, TargetKind, run_name
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.text import did_you_mean, length

TELLING = {RunStatus.PENDING, RunStatus.PAUSED, RunStatus.FAILED, RunStatus.CANCELLED}
"""The reasons of campaign runs with these statuses say how they are now."""
RUN_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@click.command()
@click.argument("name", type=targets.NAME, shell_complete=names(SERVICE, CAMPAIGN))
@click.option(
    "--kind",
    type=click.Choice(list(targets.KINDS)),
    help="What NAME is, where a service and a campaign are called the same.",
)
@output.json_option
@url_option
def why(name: str, kind: str | None, as_json: bool, url: str | None) -> None:
    """Say why a service, campaign, run or Dagster run is paused, or that it is not.

    NAME is a service, a campaign, campaign/partition, the id of a Dagster run, or everything.
    """
    store = open_store(url)
    note = None
    with reading(store) as (conn, seen):
        if RUN_ID.fullmatch(name):
            answer = _of_dagster_run(conn, seen, name)
        else:
            answer = answer_for(conn, seen, name, kind)
            if answer.target.kind is TargetKind.CAMPAIGN_RUN and answer.status is None:
                note = f"there is no such campaign run yet; {run_hint(conn, name)}"
    if as_json:
        output.print_json(WhyOut.of(answer))
    else:
        tell(answer, seen, note)


def answer_for(conn: Connection, seen: Situation, name: str, kind: str | None = None) -> Answer:
    """Return why what has a name is paused.

    Raises:
        click.ClickException: If nothing has the name, or several things have it.
    """
    campaign, _, partition = name.partition("/")
    run = runs.find(conn, campaign, partition)
    found = {} if run is None else {run.name: run}
    try:
        target = find(seen, name, found, None if kind is None else targets.KINDS[kind])
    except UnknownNameError as error:
        message = output.text(str(error).replace("say which kind", "say with --kind which")).plain
        raise click.ClickException(message) from error
    return explain(seen, target, run)


def run_hint(conn: Connection, name: str) -> str:
    """Return the campaign runs that have a name like this one; else where they are listed."""
    campaign = name.partition("/")[0]
    there = [run_name(campaign, each) for each in runs.newest_partitions(conn, campaign)]
    return did_you_mean(name, there, "see 'tidegate runs'")


def tell(answer: Answer, seen: Situation, note: str | None = None) -> None:
    """Print an answer for people.

    Args:
        answer: The answer.
        seen: The situation.
        note: What is to be said of a thing that is not there: the answer is that of a new one.
    """
    out = output.console()
    name = str(answer.target)
    known = answer.status and not (answer.paused and answer.status == "paused")
    is_ = f"{name} ({answer.status}) is" if known else f"{name} is"
    if note is not None:
        out.print(output.text(f"{name} ({note})"), soft_wrap=True)
        is_ = "a new one would be"
    out.print(output.text(f"{is_} {answer.summary}"), soft_wrap=True)
    if answer.reasons:
        table = output.table("", "hold on", "by", "why", "since", "until")
        for reason in answer.reasons:
            hold = reason.hold
            if reason.being_tried:
                until = "being tried now"
            elif reason.retry_at is not None:
                until = f"{ends(hold)}; probe {probed(reason.retry_at, seen.now)}"
            else:
                until = ends(hold)
            table.add_row(
                output.text(hold.target),
                output.text(hold.actor),
                output.text(hold.reason),
                f"{output.moment(hold.placed_at)} ({length(seen.now - hold.placed_at)})",
                until,
            )
        out.print(table)
    for obstacle in answer.obstacles:
        out.print(output.text(f"- {obstacle.text}", "yellow"), soft_wrap=True)
    if answer.last_word and answer.status in TELLING:
        out.print(output.text(f"last word: {answer.last_word}"), soft_wrap=True)


def _of_dagster_run(conn: Connection, seen: Situation, run_id: str) -> Answer:
    attempt = runs.attempt_of(conn, run_id)
    run = None if attempt is None else runs.get(conn, attempt.campaign_run)
    if run is not None:
        return explain(seen, Target(TargetKind.CAMPAIGN_RUN, run.name), run)
    waits = _in_dagster(run_id)
    if waits.job not in seen.campaigns:
        message = f"Dagster run {run_id} is of job {waits.job!r}, which is no campaign"
        raise click.ClickException(output.text(message).plain)
    found: CampaignRun | None = runs.find(conn, waits.job, waits.partition)
    target = Target(TargetKind.CAMPAIGN_RUN, f"{waits.job}/{waits.partition}")
    answer = explain(seen, target, found)
    return replace(answer, obstacles=(*answer.obstacles, *in_queue(waits)))


def _in_dagster(run_id: str) -> Waiting:
    """What Dagster says of a run that has not begun to work yet."""
    import dagster as dg

    from dagster_tidegate.dagster_api.instance import Dagster
    from dagster_tidegate.dagster_api.lineage import partition_of, tried_by
    from dagster_tidegate.dagster_api.pools import pools_of
    from dagster_tidegate.gate.plan import limit_of
    from dagster_tidegate.store.takeovers import UNSET

    try:
        with dg.DagsterInstance.get() as instance:
            run = instance.get_run_by_id(run_id)
            if run is None:
                raise click.ClickException(f"neither the store nor Dagster knows a run {run_id}")
            dagster = Dagster(instance)
            limits, pools = dagster.pools(), pools_of(run)
            used = dagster.in_progress(pools)
            return Waiting(
                job=run.job_name,
                partition=partition_of(run),
                queued=run.status is dg.DagsterRunStatus.QUEUED,
                pools={
                    pool: (limit_of(limits.get(pool, UNSET), dagster.default_limit()), used[pool])
                    for pool in sorted(pools)
                },
                tries=tried_by(run),
            )
    except dg.DagsterError as error:
        why_not = str(error).splitlines()[0].strip()
        raise click.ClickException(
            f"the store knows no Dagster run {run_id}, and Dagster can't be asked: {why_not}"
        ) from error
