"""What the routes that start campaign runs have in common."""

from dagster_tidegate.control import operations
from dagster_tidegate.control.models import Started, VerdictOut, WhyOut
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.starting import Refusal, Verdict, verdict
from dagster_tidegate.control.why import why
from dagster_tidegate.holds import Target, TargetKind, run_name
from dagster_tidegate.store import runs
from dagster_tidegate.store.database import Connection
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.api import lookup
from dagster_tidegate.web.api.authentication import require_owner
from dagster_tidegate.web.api.context import Context
from dagster_tidegate.web.api.models import StartCampaign
from dagster_tidegate.web.api.problems import Code, Problem

REFUSALS = (
    Code.HELD,
    Code.UNDER_WAY,
    Code.CHANGED_MEANWHILE,
    Code.IDEMPOTENCY_KEY_IN_USE,
    Code.NOT_LAUNCHABLE,
    Code.IDEMPOTENCY_KEY_REUSED,
    Code.DAGSTER_UNAVAILABLE,
)
"""The codes with which a start may be refused, whatever it starts."""
_CODES = {Refusal.HELD: Code.HELD, Refusal.UNDER_WAY: Code.UNDER_WAY}


def start(
    here: Context,
    identity: Identity,
    campaign: str,
    partition: str | None,
    *,
    queue: bool,
    run_id: str | None,
) -> Started:
    """Start a run of a campaign.

    Args:
        here: What the routes work with.
        identity: Who starts it.
        campaign: Name of the campaign.
        partition: The partition, where the job has any.
        queue: Start it though it is held.
        run_id: The id that its Dagster run is to have, so that it is launched once; None: any.

    Raises:
        Problem: Why it can't start.
    """
    with here.reading() as (conn, seen):
        shape = lookup.campaign_in(seen, campaign).spec
        require_owner(identity, shape)
        judged = _judged(conn, seen, campaign, partition)
    shown = WhyOut.of(judged.answer)
    # Perhaps the server that launched it died before it answered.
    if run_id is not None and here.open_workspace is not None and here.workspace().has_run(run_id):
        name = run_name(campaign, partition or run_id)
        return Started(name=name, dagster_run=run_id, why=shown)
    if judged.refusal is not None and judged.refuses(queue=queue):
        raise Problem(_CODES[judged.refusal], judged.text, holds=shown.holds, why=shown)
    with lookup.refusals(), lookup.launching():
        run = operations.start(
            here.store, here.workspace(), shape, partition, actor=identity.name, run_id=run_id
        )
    return Started(name=run_name(campaign, partition or run), dagster_run=run, why=shown)


def validate(here: Context, campaign: str, body: StartCampaign) -> VerdictOut:
    """Say whether a run of a campaign could start.

    Raises:
        Problem: If there is no such campaign or partition.
    """
    with here.reading() as (conn, seen):
        shape = lookup.campaign_in(seen, campaign).spec
        judged = _judged(conn, seen, campaign, body.partition)
    if here.open_workspace is not None:
        with lookup.launching():
            here.open_workspace().check(campaign, body.partition, shape.location)
    refused = judged.refuses(queue=body.queue)
    return VerdictOut(
        name=judged.answer.target.name,
        can_start=not refused,
        refusal=judged.refusal if refused else None,
        text=judged.text,
        why=WhyOut.of(judged.answer),
    )


def _judged(conn: Connection, seen: Situation, campaign: str, partition: str | None) -> Verdict:
    if partition is None:
        return verdict(why(seen, Target(TargetKind.CAMPAIGN, campaign)))
    target = Target(TargetKind.CAMPAIGN_RUN, run_name(campaign, partition))
    return verdict(why(seen, target, runs.find(conn, campaign, partition)))
