"""`tidegate why`: why something is paused."""

import re
from dataclasses import replace

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli.connections import open_store, reading
from dagster_tidegate.cli.options import (
    CAMPAIGN,
    KINDS,
    NAME,
    SERVICE,
    completing,
    json_option,
    url_option,
)
from dagster_tidegate.cli.status import ends, probe_in
from dagster_tidegate.control.models import WhyOut
from dagster_tidegate.control.service_state import service_state
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.why import (
    Explanation,
    QueuedRun,
    Reason,
    UnknownNameError,
    campaigns_of_asset,
    find,
    in_queue,
)
from dagster_tidegate.control.why import why as explain
from dagster_tidegate.holds import Target, TargetKind, run_name
from dagster_tidegate.statuses import UNFINISHED, RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.text import did_you_mean, length, words

WITH_REASON = {RunStatus.PENDING, RunStatus.PAUSED, RunStatus.FAILED, RunStatus.CANCELLED}
"""The statuses of campaign runs whose recorded reason explains the status."""
MAX_UNFINISHED = 1_000
"""Among how many unfinished campaign runs one of an asset is looked for."""
RUN_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@click.command()
@click.argument("name", type=NAME, shell_complete=completing(SERVICE, CAMPAIGN))
@click.option(
    "--kind",
    type=click.Choice(list(KINDS)),
    help="What NAME is, if a service and a campaign have the same name.",
)
@json_option
@url_option
def why(name: str, kind: str | None, as_json: bool, url: str | None) -> None:
    """Explain why a service, campaign, run or Dagster run is paused.

    NAME is a service, a campaign, campaign/partition, the id of a Dagster run, or everything. Of
    an asset, it is the latest of its unfinished runs.
    """
    store = open_store(url)
    missing = None
    with reading(store) as (conn, situation):
        if RUN_ID.fullmatch(name):
            answer = _of_dagster_run(conn, situation, name)
        else:
            name = _run_of_asset(conn, situation, name) or name
            answer = answer_for(conn, situation, name, kind)
            if answer.target.kind is TargetKind.CAMPAIGN_RUN and answer.status is None:
                missing = f"there is no {answer.target} yet; {_run_hint(conn, name)}"
    if as_json:
        console.print_json(WhyOut.of(answer))
    else:
        show_answer(answer, situation, missing)


def answer_for(
    conn: Connection, situation: Situation, name: str, kind: str | None = None
) -> Explanation:
    """Return why the thing with a name is paused.

    Raises:
        click.ClickException: If nothing has the name, or several things have it.
    """
    campaign, _, partition = name.partition("/")
    run = runs.find(conn, campaign, partition)
    if kind == "run" and name in situation.campaigns:
        example = next(iter(runs.newest_partitions(conn, name)), "PARTITION")
        raise console.failure(
            f"{name!r} is a campaign; a run is CAMPAIGN/PARTITION, such as "
            f"{run_name(name, example)}: name one, or leave out --kind"
        )
    by_name = {} if run is None else {run.name: run}
    try:
        target = find(situation, name, by_name, None if kind is None else KINDS[kind])
    except UnknownNameError as error:
        raise console.failure(str(error).replace("name the kind", "use --kind")) from error
    return explain(situation, target, run)


def _run_of_asset(conn: Connection, situation: Situation, name: str) -> str | None:
    """Return the unfinished campaign run of an asset that changed last; None if it has none."""
    campaigns = campaigns_of_asset(situation, name)
    if not campaigns or name in situation.services or name in situation.campaigns:
        return None
    unfinished = runs.newest(conn, statuses=UNFINISHED, by_change=True, limit=MAX_UNFINISHED)
    of_asset = (
        run.name
        for run in unfinished
        if run.campaign in campaigns and (name in run.assets or not run.assets)
    )
    return next(of_asset, None)


def find_run(conn: Connection, name: str) -> CampaignRun:
    """Return the campaign run with a name.

    Raises:
        click.ClickException: If there is none.
    """
    campaign, _, partition = name.partition("/")
    run = runs.find(conn, campaign, partition)
    if run is None:
        raise console.failure(f"no campaign run is named {name!r}; {_run_hint(conn, name)}")
    return run


def _run_hint(conn: Connection, name: str) -> str:
    """Return the campaign runs with names like this one, or the command that lists them."""
    campaign = name.partition("/")[0]
    names = [run_name(campaign, each) for each in runs.newest_partitions(conn, campaign)]
    return did_you_mean(name, names, "see 'tidegate runs'")


def show_answer(
    answer: Explanation,
    situation: Situation,
    missing: str | None = None,
    *,
    beside_status: str = "",
) -> None:
    """Print an answer for people.

    Args:
        missing: A sentence saying that the run does not exist; the answer is that of a new one.
        beside_status: Text that follows the status.
    """
    out = console.console()
    name, status = str(answer.target), answer.status
    if answer.target.kind is TargetKind.SERVICE and status is not None:
        # As on the other surfaces: a service that denied this client is not merely open.
        state = service_state(situation, answer.target.name).status
        status = status if state == "held" else words(state)
    if missing is not None:
        out.print(console.text(missing), soft_wrap=True)
        verb = "would be" if answer.paused else "would not be"
        line = f"a new run {verb} {answer.summary.removeprefix('not ')}"
    elif status and not (answer.paused and status == "paused"):
        line = f"{name} ({status}{beside_status}) is {answer.summary}"
    else:
        line = f"{name} is {answer.summary}"
    out.print(console.text(line), soft_wrap=True)
    if answer.reasons:
        table = console.table("", "hold on", "by", "why", "since", "ends")
        for reason in answer.reasons:
            hold = reason.hold
            table.add_row(
                hold.target,
                hold.actor,
                hold.reason,
                f"{console.moment(hold.placed_at)} ({length(situation.now - hold.placed_at)})",
                _ends(reason, situation),
            )
        out.print(table)
        for reason in answer.reasons:
            if reason.breaker is not None and reason.breaker.answer:
                line = f"{reason.breaker.name} answered: {reason.breaker.answer}"
                out.print(console.text(line), soft_wrap=True)
    # The sentence above has the first, unless holds come before it.
    for obstacle in answer.obstacles[0 if answer.paused else 1 :]:
        out.print(console.text(f"- {obstacle.text}", "yellow"), soft_wrap=True)
    if answer.last_word and answer.status in WITH_REASON:
        out.print(console.text(f"recorded reason: {answer.last_word}"), soft_wrap=True)


def _ends(reason: Reason, situation: Situation) -> str:
    if reason.being_tried and reason.breaker is not None:
        in_flight = situation.trials.get(reason.breaker.name, 0)
        return "being probed now" if in_flight else "once a trial call succeeds"
    if reason.retry_at is None:
        return ends(reason.hold, reason.breaker)
    end = ends(reason.hold, reason.breaker)
    return f"{end}; next probe {probe_in(reason.retry_at, situation.now)}"


def _of_dagster_run(conn: Connection, situation: Situation, run_id: str) -> Explanation:
    attempt = runs.attempt_of(conn, run_id)
    run = None if attempt is None else runs.get(conn, attempt.campaign_run)
    if run is not None:
        return explain(situation, Target(TargetKind.CAMPAIGN_RUN, run.name), run)
    queued = _in_dagster(run_id)
    if queued.job not in situation.campaigns:
        raise console.failure(
            f"Dagster run {run_id} is of job {queued.job!r}, which is not a campaign"
        )
    target = Target(TargetKind.CAMPAIGN_RUN, run_name(queued.job, queued.partition))
    answer = explain(situation, target, runs.find(conn, queued.job, queued.partition))
    return replace(answer, obstacles=(*answer.obstacles, *in_queue(queued)))


def _in_dagster(run_id: str) -> QueuedRun:
    """Return what Dagster knows about a run that has not begun an op."""
    import dagster as dg

    from dagster_tidegate.dagster_api.instance import Dagster
    from dagster_tidegate.dagster_api.lineage import campaign_of, partition_of, tried_by
    from dagster_tidegate.dagster_api.pools import pools_of
    from dagster_tidegate.dagster_api.workspace import open_instance
    from dagster_tidegate.gate.plan import limit_of
    from dagster_tidegate.store.takeovers import UNSET

    try:
        with open_instance() as instance:
            run = instance.get_run_by_id(run_id)
            if run is None:
                raise console.failure(f"no run {run_id} in the store or in Dagster")
            dagster = Dagster(instance)
            limits, pools = dagster.pools(), pools_of(run)
            used = dagster.in_progress(pools)
            return QueuedRun(
                job=campaign_of(run),
                partition=partition_of(run),
                queued=run.status is dg.DagsterRunStatus.QUEUED,
                pools={
                    pool: (limit_of(limits.get(pool, UNSET), dagster.default_limit()), used[pool])
                    for pool in sorted(pools)
                },
                tries=tried_by(run),
            )
    except dg.DagsterError as error:
        reason = str(error).splitlines()[0].strip()
        raise console.failure(
            f"Dagster run {run_id} is not in the store, and Dagster is unreachable: {reason}"
        ) from error
