"""Lineage: which campaign run a Dagster run works on, what it follows, and what it tries.

Dagster keeps all of it in the tags of runs.
"""

from collections.abc import Collection, Mapping

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.definitions.materialize import EPHEMERAL_JOB_NAME
from dagster._core.definitions.target import ANONYMOUS_ASSET_JOB_PREFIX
from dagster._core.storage.tags import (
    ASSET_RESUME_RETRY_TAG,
    AUTO_RETRY_RUN_ID_TAG,
    BACKFILL_ID_TAG,
    PARENT_RUN_ID_TAG,
    PARTITION_NAME_TAG,
    PRIORITY_TAG,
    RESUME_RETRY_TAG,
    RETRY_NUMBER_TAG,
    ROOT_RUN_ID_TAG,
    RUN_FAILURE_REASON_TAG,
    RUN_KEY_TAG,
    SCHEDULED_EXECUTION_TIME_TAG,
    SENSOR_NAME_TAG,
    STEP_SELECTION_TAG,
    TICK_ID_TAG,
    WILL_RETRY_TAG,
)

from dagster_tidegate.dagster_api import CONTINUES_TAG
from dagster_tidegate.holds import part_name

PARTITION_TAG = "tidegate/partition"
AFRESH_TAG = "tidegate/afresh"
"""Why a run does not continue the work of the paused run whose next attempt it is."""
REASON_TAG = "tidegate/reason"
MAX_TAG = 250  # characters of a tag for people
MAX_RETRIES = 20
CANARY_TAG = "tidegate/canary"
RECORDS_TAG = "tidegate/records"
ONLY_MARKED = "marked"
"""Value of `RECORDS_TAG`: the run does only the records that were marked to be done again."""
SUPERSEDED_TAG = "tidegate/superseded_by"
NOT_NEEDED_TAG = "tidegate/not_needed"
FORMER_PRIORITY_TAG = "tidegate/former_priority"
# Above what people use; a canary waits for a slot that is opened for it alone.
CANARY_PRIORITY = 1_000_000
RUN_KEY = "tidegate/"
IMPLICIT_CAMPAIGN = "assets"
IN_PROCESS_CAMPAIGN = "dg.materialize"
# Behind the id of the backfill that a paused run has left to its next attempt.
_LEFT = " (paused)"
_ANONYMOUS = f"{ANONYMOUS_ASSET_JOB_PREFIX}_"

# Tags about how a run came to be, which the run that follows it must not inherit.
_OF_ONE_RUN = {
    ASSET_RESUME_RETRY_TAG,
    AUTO_RETRY_RUN_ID_TAG,
    PARENT_RUN_ID_TAG,
    RESUME_RETRY_TAG,
    RETRY_NUMBER_TAG,
    ROOT_RUN_ID_TAG,
    RUN_FAILURE_REASON_TAG,
    RUN_KEY_TAG,
    SENSOR_NAME_TAG,
    STEP_SELECTION_TAG,
    TICK_ID_TAG,
    WILL_RETRY_TAG,
}


def campaign_of(run: dg.DagsterRun) -> str:
    """Return the campaign of a run: its job, or for an implicit asset job a name that says where.

    "Materialize", backfills and automation run as one implicit job per code location, and a
    schedule or sensor with a target of assets as another; their own names mean nothing to people.

    Example:
        `outreach`, `analytics:assets` or, of a schedule or sensor, `analytics:nightly`.
    """
    origin = run.remote_job_origin
    return campaign_name(run.job_name, None if origin is None else origin.location_name)


def campaign_name(job: str, location: str | None) -> str:
    """Return the name of the campaign of a job in a code location; see `campaign_of`."""
    if job == EPHEMERAL_JOB_NAME:
        return IN_PROCESS_CAMPAIGN
    if job == IMPLICIT_ASSET_JOB_NAME:
        what = IMPLICIT_CAMPAIGN
    elif job.startswith(_ANONYMOUS):
        what = job.removeprefix(_ANONYMOUS)
    else:
        return job
    # A slash would end the name of the campaign in that of a campaign run.
    return f"{(location or 'local').replace('/', '.')}:{what}"


def job_of(campaign: str) -> str:
    """Return the Dagster job of a campaign, the inverse of `campaign_of`.

    Example:
        >>> job_of("outreach"), job_of("analytics:assets")
        ('outreach', '__ASSET_JOB')
    """
    if campaign == IN_PROCESS_CAMPAIGN:
        return EPHEMERAL_JOB_NAME
    _, colon, what = campaign.rpartition(":")
    if not colon:  # the name of a job has none
        return campaign
    return IMPLICIT_ASSET_JOB_NAME if what == IMPLICIT_CAMPAIGN else f"{_ANONYMOUS}{what}"


def partition_key_of(run: dg.DagsterRun) -> str | None:
    """Return the partition key of a run; None if it has none."""
    return run.tags.get(PARTITION_NAME_TAG)


def partition_of(run: dg.DagsterRun) -> str:
    """Return which campaign run of its campaign a run works on.

    That is its partition, or else its first ancestor, and its assets if it selects some.
    """
    return part_name(dagster_partition_of(run), assets_of(run))


def assets_of(run: dg.DagsterRun) -> tuple[str, ...]:
    """Return the assets that a run selects, or else the asset checks; empty: all of its job."""
    if run.asset_selection:
        return tuple(sorted(key.to_user_string() for key in run.asset_selection))
    checks = run.asset_check_selection or ()
    return tuple(sorted(f"{check.asset_key.to_user_string()}:{check.name}" for check in checks))


def selection_of(assets: Collection[str]) -> tuple[list[dg.AssetKey], list[dg.AssetCheckKey]]:
    """Return the assets and the asset checks that names from `assets_of` stand for."""
    keys, checks = [], []
    for name in assets:
        asset, colon, check = name.rpartition(":")
        if colon:
            checks.append(dg.AssetCheckKey(dg.AssetKey.from_user_string(asset), check))
        else:
            keys.append(dg.AssetKey.from_user_string(name))
    return keys, checks


def dagster_partition_of(run: dg.DagsterRun) -> str:
    """Return the partition key of a run, or else the id of its first ancestor.

    A run that the gate requested is tagged with it, since Dagster makes it a root of its own.
    """
    tags = run.tags
    return (
        tags.get(PARTITION_NAME_TAG)
        or tags.get(PARTITION_TAG)
        or tags.get(ROOT_RUN_ID_TAG)
        or run.root_run_id
        or run.run_id
    )


def parent_of(run: dg.DagsterRun) -> str | None:
    """Return the id of the run that a run was made from."""
    return run.parent_run_id or run.tags.get(PARENT_RUN_ID_TAG)


def why_it_continues(run: dg.DagsterRun) -> str | None:
    """Return why a run continues the work of its parent; None if it starts afresh.

    "Re-execute all", or some steps, asks for all of their work again, as does every run without a
    parent: a new materialization, a tick, a backfill, a launch by hand.
    """
    tags = run.tags
    if does_only_marked(run):
        return "it does only the records that were marked"
    if was_started_to_continue(run):
        return "it was started by hand after a failure"
    if is_resume(run):
        return "the gate resumed it"
    if RETRY_NUMBER_TAG in tags:
        return "Dagster retried it"
    if RESUME_RETRY_TAG in tags or ASSET_RESUME_RETRY_TAG in tags:
        return "it was re-executed from failure"
    return None


def starts_afresh(run: dg.DagsterRun) -> bool:
    """Return whether a run starts afresh though it is the next attempt of a paused one."""
    return AFRESH_TAG in run.tags and run.parent_run_id is None


def was_started_to_continue(run: dg.DagsterRun) -> bool:
    """Return whether a person started a run to continue a failed one.

    A re-execution of it inherits the tag.
    """
    return CONTINUES_TAG in run.tags and run.parent_run_id is None


def retries_assets_of(run: dg.DagsterRun) -> str | None:
    """Return the run whose failed assets a run does again; it selects fewer of them itself."""
    return parent_of(run) if ASSET_RESUME_RETRY_TAG in run.tags else None


def backfill_of(run: dg.DagsterRun) -> str | None:
    """Return the id of a run's backfill, also of one that the run left to its next attempt."""
    backfill_id = run.tags.get(BACKFILL_ID_TAG)
    return None if backfill_id is None else backfill_id.removesuffix(_LEFT)


def left_backfill(backfill_id: str) -> str:
    """Return what the tag of a run says that has left its backfill to its next attempt."""
    return f"{backfill_id}{_LEFT}"


def ancestors(run: dg.DagsterRun) -> set[str]:
    """Return the ids of the run's parent and root run."""
    ids = {
        run.parent_run_id,
        run.root_run_id,
        run.tags.get(PARENT_RUN_ID_TAG),
        run.tags.get(ROOT_RUN_ID_TAG),
    }
    return {run_id for run_id in ids if run_id is not None}


def tags_for_next(run: dg.DagsterRun) -> dict[str, str]:
    """Return the tags of the run that follows a paused one.

    The Dagster UI shows the lineage. Dagster's retries read the run's own record instead of these
    tags, so the new run has a full retry budget.
    """
    tags = {
        key: value
        for key, value in run.tags.items()
        if key not in _OF_ONE_RUN and not key.startswith((".dagster/", "tidegate/"))
    }
    tags |= {
        PARENT_RUN_ID_TAG: run.run_id,
        ROOT_RUN_ID_TAG: run.tags.get(ROOT_RUN_ID_TAG) or run.root_run_id or run.run_id,
        PARTITION_TAG: dagster_partition_of(run),
    }
    if (backfill_id := backfill_of(run)) is not None:
        tags[BACKFILL_ID_TAG] = backfill_id
    if does_only_marked(run):
        tags[RECORDS_TAG] = ONLY_MARKED
    if scheduled := run.tags.get(SCHEDULED_EXECUTION_TIME_TAG):
        tags[SCHEDULED_EXECUTION_TIME_TAG] = scheduled
    if tried_by(run):
        tags.pop(PRIORITY_TAG, None)
        former = run.tags.get(FORMER_PRIORITY_TAG)
        tags |= {PRIORITY_TAG: former} if former else {}
    return tags


def canary_tags(tags: Mapping[str, str], services: Collection[str]) -> dict[str, str]:
    """Return the tags that make a run the canary of half-open services, first in the queue."""
    # The priority of a run that already is a canary is a canary's, and not its former one.
    former = tags.get(FORMER_PRIORITY_TAG if CANARY_TAG in tags else PRIORITY_TAG)
    return {
        CANARY_TAG: ",".join(sorted(services)),
        PRIORITY_TAG: str(CANARY_PRIORITY),
        **({FORMER_PRIORITY_TAG: former} if former else {}),
    }


def tried_by(run: dg.DagsterRun) -> frozenset[str]:
    """Return the services that a run is the canary of."""
    tag = run.tags.get(CANARY_TAG)
    return frozenset(tag.split(",") if tag else ())


def does_only_marked(run: dg.DagsterRun) -> bool:
    """Return whether a run does only the records that were marked to be done again."""
    return run.tags.get(RECORDS_TAG) == ONLY_MARKED


def request_key(campaign_run: int, number: int) -> str:
    """Return the run key of the nth request for a run of a campaign run."""
    return f"{RUN_KEY}{campaign_run}/{number}"


def request_number(run: dg.DagsterRun) -> int:
    """Return n of the run key of `request_key`; 0 if the gate did not request the run."""
    prefix, _, number = run.tags.get(RUN_KEY_TAG, "").rpartition("/")
    return int(number) if prefix.startswith(RUN_KEY) and number.isdecimal() else 0


def is_resume(run: dg.DagsterRun) -> bool:
    """Return whether the gate requested a run to resume a paused campaign run."""
    return request_number(run) > 0 and run.parent_run_id is None


def superseded_tags(run: dg.DagsterRun, newest: str) -> dict[str, str]:
    """Return the tags of a run that is not needed, since another one did what it was for."""
    return {SUPERSEDED_TAG: newest, NOT_NEEDED_TAG: run.run_id}


def was_superseded(run: dg.DagsterRun) -> bool:
    """Return whether a run has its own `superseded_tags`: Dagster copies them to its retries."""
    return run.tags.get(NOT_NEEDED_TAG) == run.run_id


def is_automatic_retry(run: dg.DagsterRun) -> bool:
    """Return whether Dagster's run retries launched a run, and not a person."""
    return RETRY_NUMBER_TAG in run.tags and run.parent_run_id is not None


def retry_is_due(run: dg.DagsterRun, instance: dg.DagsterInstance, *, is_recent: bool) -> bool:
    """Return whether Dagster's run retries are about to retry a run, or are at it.

    Args:
        is_recent: Whether it has just failed; Dagster gives some retries up without a word.
    """
    for _ in range(MAX_RETRIES):
        if run.tags.get(WILL_RETRY_TAG) != "true":
            return False
        retry_id = run.tags.get(AUTO_RETRY_RUN_ID_TAG)
        if retry_id is None:
            return is_recent
        retry = instance.get_run_by_id(retry_id)
        if retry is None:
            return False
        if not retry.is_finished:
            return True
        run = retry  # it never began, else it would be the latest attempt
    return False


def is_superseded(run: dg.DagsterRun, newest: str) -> bool:
    """Return whether another run already resumed what the gate requested a run for.

    Two daemons may each launch the gate's request, and a person may be faster. A retry or a
    re-execution follows the run that it names, whatever tags it inherited.

    Args:
        newest: Id of the run of the latest attempt.
    """
    parent = run.tags.get(PARENT_RUN_ID_TAG)
    return is_resume(run) and parent is not None and newest not in (parent, run.run_id)
