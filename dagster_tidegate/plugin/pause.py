"""Ends a Dagster run as paused or cancelled: neither a success nor a failure."""

from typing import NoReturn

import dagster as dg

from dagster_tidegate import holds
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.dagster_api.instance import Dagster
from dagster_tidegate.dagster_api.lineage import SUPERSEDED_TAG
from dagster_tidegate.gate import tighten_now
from dagster_tidegate.holds import TargetKind
from dagster_tidegate.records.loop import Stop, Stopping
from dagster_tidegate.records.retry import retry_while_unreachable
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.ledger import AttemptOverError
from dagster_tidegate.store.runs import AttemptRow, CampaignRun

STATE_TAG = "tidegate/state"
SERVICE_TAG = "tidegate/service"
REASON_TAG = "tidegate/reason"
MAX_TAG = 250


class CampaignPaused(dg.Failure, Stopping):
    """Raised in an op to end its run as paused.

    Dagster calls op failure hooks for it, and for nothing else of a pause: a hook that should
    stay quiet looks for this type in `context.op_exception`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(description=message, allow_retries=False)


class CampaignCancelled(dg.Failure, Stopping):
    """Raised in an op to end its run when it was terminated in Dagster, between two records.

    As with `CampaignPaused`, Dagster calls op failure hooks for it and nothing else.
    """

    def __init__(self, message: str) -> None:
        super().__init__(description=message, allow_retries=False)


def end(
    context: dg.OpExecutionContext,
    store: Store,
    fleet: Fleet,
    run: CampaignRun,
    attempt: AttemptRow,
    stop: Stop,
) -> NoReturn:
    """Write down that a campaign run is paused or cancelled, and end its Dagster run as CANCELED.

    The store is first: should the process die in between, the campaign run is paused and resumes,
    whatever Dagster makes of its run.

    Args:
        context: Context of the op that stopped.
        store: The store.
        fleet: The breakers.
        run: The campaign run.
        attempt: The attempt that stops.
        stop: Why and where: as cancelled for a signal that somebody asked Dagster for; as paused
            for any other signal, for holds, or for an outdated version.

    Raises:
        CampaignPaused: If it is paused.
        CampaignCancelled: If it is cancelled.
        AttemptOverError: If another attempt has taken over.
    """
    if stop.ended is not None:
        raise _raised(
            stop.ended, f"{run.name} is {stop.ended} already; this op stops at {stop.done}"
        )
    to = RunStatus.PAUSED
    if stop.signal is not None and Dagster(context.instance).is_canceling(context.run_id):
        to, why = RunStatus.CANCELLED, "it was terminated in Dagster"
    elif stop.holds:
        why = holds.describe(stop.holds)
    elif stop.signal is not None:
        why = f"its process was told to end ({stop.signal.name}); it goes on by itself"
    else:
        why = stop.outdated or ""
    where = f"at {stop.done}" + ("" if stop.total is None else f"/{stop.total}")
    wanted = to
    to = retry_while_unreachable(
        lambda: _move(store, run, attempt, wanted, f"{wanted.capitalize()} {where}: {why}"),
        context.log,
    )
    message = f"{to.capitalize()} {where}: {why}"
    tags = {STATE_TAG: to.value, REASON_TAG: why[:MAX_TAG]}
    if stop.holds:
        _stop_the_queue(context, store, fleet)
        services = [h.target.name for h in stop.holds if h.target.kind is TargetKind.SERVICE]
        if services:
            tags[SERVICE_TAG] = ",".join(services)[:MAX_TAG]
    context.log.info(message)
    Dagster(context.instance).end_as_canceled(context.run, message, tags)
    raise _raised(to, message)


def _raised(status: RunStatus, message: str) -> CampaignPaused | CampaignCancelled:
    return (CampaignPaused if status is RunStatus.PAUSED else CampaignCancelled)(message)


def _move(
    store: Store, run: CampaignRun, attempt: AttemptRow, to: RunStatus, message: str
) -> RunStatus:
    """Return the status with which the attempt ends: another op of it may have been first.

    That op tells Dagster to end the run, which then looks as if a person had asked for it.
    """
    with store.begin() as conn:
        current = runs.get(conn, run.id)
        if current is None or current.attempt != attempt.number:
            raise AttemptOverError(f"{run.name} belongs to a newer attempt than {attempt.number}")
        if current.status is RunStatus.PROCESSING:
            now = store.now(conn)
            runs.move(conn, now, current, to, reason=message, actor=attempt.dagster_run)
        return current.status if current.status in (RunStatus.PAUSED, RunStatus.CANCELLED) else to


def end_as_superseded(context: dg.OpExecutionContext, newest: AttemptRow) -> NoReturn:
    """End a Dagster run that was to resume what another has resumed already, as CANCELED.

    Args:
        context: Context of the op that was to begin.
        newest: The attempt that was faster.

    Raises:
        CampaignCancelled: Always.
    """
    message = (
        f"Not resumed twice: Dagster run {newest.dagster_run} was faster, as attempt "
        f"{newest.number}. Nothing is left to do here"
    )
    tags = {SUPERSEDED_TAG: newest.dagster_run}
    Dagster(context.instance).end_as_canceled(context.run, message, tags)
    raise CampaignCancelled(message)


def end_as_cancelled(context: dg.OpExecutionContext, run: CampaignRun) -> NoReturn:
    """End a Dagster run that was to resume what a person has cancelled meanwhile, as CANCELED.

    Args:
        context: Context of the op that was to begin.
        run: The campaign run.

    Raises:
        CampaignCancelled: Always.
    """
    message = f"Not resumed: {run.name} was cancelled meanwhile ({run.reason})"
    tags = {STATE_TAG: RunStatus.CANCELLED.value}
    Dagster(context.instance).end_as_canceled(context.run, message, tags)
    raise CampaignCancelled(message)


def resumed(context: dg.OpExecutionContext, attempt: AttemptRow) -> None:
    """Mark the Dagster run of a paused attempt as resumed: who looks for paused runs finds others.

    A backfill that it belongs to goes on with the run that follows it.

    Args:
        context: Context of the op that goes on.
        attempt: The attempt that the present one follows.
    """
    if attempt.outcome is not RunStatus.PAUSED:
        return
    dagster = Dagster(context.instance)
    run = dagster.run(attempt.dagster_run)
    # Each loop of the run comes here: the tag, written last, says that one of them was first.
    if run is None or run.tags.get(STATE_TAG) == "resumed":
        return
    try:
        dagster.hand_backfill_over(attempt.dagster_run)
        dagster.add_tags(attempt.dagster_run, {STATE_TAG: "resumed"})
    except Exception as error:  # noqa: BLE001 -- the records must not wait for a tag
        context.log.warning("Run %s is not marked as resumed: %r", attempt.dagster_run, error)


def _stop_the_queue(context: dg.OpExecutionContext, store: Store, fleet: Fleet) -> None:
    """Hold back what is queued before this run's place becomes free for it."""
    try:
        for change in tighten_now(context.instance, store, fleet):
            context.log.info("The gate: %s", change)
    except Exception as error:  # noqa: BLE001 -- a pause must not fail for it
        context.log.warning("The gate's sensors will stop the queue; this run could not: %r", error)
