"""`tidegate start`: start a run of a campaign, or say why it can't start."""

from pathlib import Path

import click

from dagster_tidegate.cli import output
from dagster_tidegate.cli import target as targets
from dagster_tidegate.cli.completion import CAMPAIGN, names
from dagster_tidegate.cli.deployment import loaded, workspace_option
from dagster_tidegate.cli.reading import explained, open_store, reading, url_option
from dagster_tidegate.cli.why import answer_for, tell
from dagster_tidegate.control import operations
from dagster_tidegate.control.models import WhyOut
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.starting import Refusal, Verdict, verdict
from dagster_tidegate.holds import run_name
from dagster_tidegate.store.database import Connection

HELD = 3
UNDER_WAY = 4
EXIT_CODES = {Refusal.HELD: HELD, Refusal.UNDER_WAY: UNDER_WAY}


@click.command()
@click.argument("campaign", type=targets.NAME, shell_complete=names(CAMPAIGN))
@click.option("--partition", type=targets.NAME, help="The partition, where the job has any.")
@click.option("--queue", is_flag=True, help="Start it though it is held: it waits in the queue.")
@click.option("--validate", is_flag=True, help="Only say whether it could start.")
@targets.actor_option
@workspace_option
@output.json_option
@url_option
def start(
    campaign: str,
    partition: str | None,
    queue: bool,
    validate: bool,
    actor: str,
    workspace: Path,
    as_json: bool,
    url: str | None,
) -> None:
    """Start a run of a campaign, or say why it can't start.

    CAMPAIGN/PARTITION says the partition, too.

    Exit codes: 0 it is in the queue, or could be; 1 it failed; 2 the command line is wrong; 3 it
    is held, and --queue was not said; 4 it is under way already, or paused and about to resume.
    """
    store = open_store(url)
    if partition is None and "/" in campaign:  # as every other command names a run
        campaign, partition = campaign.split("/", 1)
    with reading(store) as (conn, seen):
        judged = _judged(conn, seen, campaign, partition)
        shape = seen.campaigns[campaign].spec
    refused = judged.refuses(queue=queue)
    if refused and not validate:
        _refuse(judged, seen, as_json=as_json)
    from dagster_tidegate.dagster_api import LaunchError

    run_id = None
    try:
        with loaded(workspace) as (_, code), explained():
            if validate:
                code.check(campaign, partition, shape.location)
            else:
                run_id = operations.start(store, code, shape, partition, actor=actor)
    except LaunchError as error:
        raise click.ClickException(output.text(str(error)).plain) from error
    except operations.UnderWayError as error:  # somebody else was faster
        click.echo(output.text(str(error)).plain, err=True)
        raise click.exceptions.Exit(UNDER_WAY) from error
    except operations.ChangedMeanwhileError as error:
        raise click.ClickException(output.text(str(error)).plain) from error
    if refused:
        _refuse(judged, seen, as_json=as_json)
    _tell(judged, seen, run_id, as_json=as_json)


def _judged(conn: Connection, seen: Situation, campaign: str, partition: str | None) -> Verdict:
    if partition is None or campaign not in seen.campaigns:  # which says what would be right
        return verdict(answer_for(conn, seen, campaign, "campaign"))
    return verdict(answer_for(conn, seen, run_name(campaign, partition), "run"))


def _refuse(judged: Verdict, seen: Situation, *, as_json: bool) -> None:
    assert judged.refusal is not None
    if as_json:
        output.print_json(
            {
                "can_start": False,
                "name": judged.answer.target.name,
                "refusal": judged.refusal,
                "text": judged.text,
                "why": WhyOut.of(judged.answer),
            }
        )
    else:
        click.echo(output.text(judged.text).plain, err=True)
        if judged.refusal is Refusal.HELD:
            tell(judged.answer, seen)
            hint = "with --queue it waits in Dagster's queue, and starts when nothing holds it"
            click.echo(hint, err=True)
    raise click.exceptions.Exit(EXIT_CODES[judged.refusal])


def _tell(judged: Verdict, seen: Situation, run_id: str | None, *, as_json: bool) -> None:
    answer = judged.answer
    name = answer.target.name
    if as_json:
        found = {
            "can_start": True,
            "name": name,
            "dagster_run": run_id,
            "why": WhyOut.of(answer),
        }
        output.print_json(found)
        return
    done = f"{name} can start" if run_id is None else f"{name} is queued: Dagster run {run_id}"
    click.echo(output.text(done).plain)
    if answer.paused or answer.obstacles:
        tell(answer, seen)
