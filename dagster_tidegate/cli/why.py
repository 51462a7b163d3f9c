"""`tidegate why`: the one answer to why something is paused."""

import re
from dataclasses import replace

import click
import sqlalchemy as sa

from dagster_tidegate.cli import output
from dagster_tidegate.cli import target as targets
from dagster_tidegate.cli.reading import open_store, reading, url_option
from dagster_tidegate.cli.status import ends
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.store import runs
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.views.shown import WhyShown
from dagster_tidegate.views.situation import Situation
from dagster_tidegate.views.why import Answer, UnknownNameError, Waiting, find, in_queue
from dagster_tidegate.views.why import why as explain
from dagster_tidegate.wording import length

RUN_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@click.command()
@click.argument("name", type=targets.NAME)
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
    with reading(store) as (conn, seen):
        if RUN_ID.fullmatch(name):
            answer = _of_dagster_run(conn, seen, name)
        else:
            answer = answer_for(conn, seen, name, kind)
    if as_json:
        output.print_json(WhyShown.of(answer))
    else:
        tell(answer, seen)


def answer_for(conn: sa.Connection, seen: Situation, name: str, kind: str | None = None) -> Answer:
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


def tell(answer: Answer, seen: Situation) -> None:
    """Print an answer for people."""
    out = output.console()
    name = str(answer.target).replace("campaign_run", "campaign run", 1)
    known = answer.status and not (answer.paused and answer.status == "paused")
    status = f" ({answer.status})" if known else ""
    out.print(output.text(f"{name}{status} is {answer.summary}"), soft_wrap=True)
    if answer.reasons:
        table = output.table("", "hold on", "by", "why", "since", "until")
        for reason in answer.reasons:
            hold = reason.hold
            if reason.being_tried:
                until = "being tried now"
            elif reason.retry_at is not None and reason.retry_at > seen.now:
                until = f"probed in {length(reason.retry_at - seen.now)}, then as it answers"
            elif reason.retry_at is not None:
                until = "due to be probed"
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
    if answer.last_word and answer.status in ("paused", "failed", "cancelled"):
        out.print(output.text(f"last word: {answer.last_word}"), soft_wrap=True)


def _of_dagster_run(conn: sa.Connection, seen: Situation, run_id: str) -> Answer:
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

    from dagster_tidegate.gate.plan import limit_of
    from dagster_tidegate.instance import UNSET, Dagster, partition_of, pools_of, tried_by

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
    except dg.DagsterInvariantViolationError as error:
        raise click.ClickException(
            f"the store knows no Dagster run {run_id}, and Dagster can't be asked: {error}"
        ) from error
