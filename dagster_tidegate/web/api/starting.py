"""Starts campaign runs, or says why not."""

from dagster_tidegate.control import operations
from dagster_tidegate.control.models import Started, VerdictOut, WhyOut
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.starting import StartVerdict, verdict
from dagster_tidegate.control.why import why
from dagster_tidegate.holds import Target, TargetKind, run_name
from dagster_tidegate.store import runs
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.api import lookup
from dagster_tidegate.web.api.authentication import require_owner
from dagster_tidegate.web.api.context import AppContext
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
"""The problems with which a start may be refused."""


def start(
    context: AppContext,
    identity: Identity,
    campaign: str,
    partition: str | None,
    *,
    queue: bool,
    run_id: str | None,
) -> Started:
    """Start a run of a campaign.

    Args:
        partition: Required for a partitioned job.
        run_id: The id for its Dagster run, which makes a repeated launch harmless. None: any.

    Raises:
        Problem: If it can't start.
        LaunchError: If Dagster can't launch it.
    """
    with context.reading() as (conn, situation):
        spec = lookup.campaign_in(situation, campaign).spec
        require_owner(identity, spec)
        run = None if partition is None else runs.find(conn, campaign, partition)
        decision = _verdict(situation, campaign, partition, run)
        is_claimed = run is not None and operations.is_claimed(
            run, operations.begun(conn, run.name, run_id)
        )
    answer = WhyOut.of(decision.answer)
    if run_id is not None and context.has_run(run_id):
        name = run_name(campaign, partition or run_id)
        return Started(name=name, dagster_run=run_id, why=answer)
    if decision.refusal is not None and decision.refuses(queue=queue) and not is_claimed:
        raise Problem(Code(decision.refusal), decision.text, holds=answer.holds, why=answer)
    dagster_run = operations.start(
        context.store, context.workspace(), spec, partition, actor=identity.name, run_id=run_id
    )
    name = run_name(campaign, partition or dagster_run)
    return Started(name=name, dagster_run=dagster_run, why=answer)


def validate(context: AppContext, campaign: str, body: StartCampaign) -> VerdictOut:
    """Return whether a run of a campaign could start.

    Raises:
        Problem: If the campaign does not exist.
        LaunchError: If the partition does not exist.
    """
    with context.reading() as (conn, situation):
        spec = lookup.campaign_in(situation, campaign).spec
        partition = body.partition
        run = None if partition is None else runs.find(conn, campaign, partition)
        decision = _verdict(situation, campaign, partition, run)
    if context.open_workspace is not None:
        context.workspace().check(campaign, body.partition, spec.location)
    return VerdictOut.of(decision, queue=body.queue)


def _verdict(
    situation: Situation, campaign: str, partition: str | None, run: CampaignRun | None
) -> StartVerdict:
    if partition is None:
        return verdict(why(situation, Target(TargetKind.CAMPAIGN, campaign)))
    target = Target(TargetKind.CAMPAIGN_RUN, run_name(campaign, partition))
    return verdict(why(situation, target, run))
