"""Backfills: a paused run must not make its backfill fail."""

from collections.abc import Sequence

import dagster as dg
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.storage.tags import BACKFILL_ID_TAG, PARENT_RUN_ID_TAG

from dagster_tidegate.dagster_api.deployment import holds_runs_back, settings
from dagster_tidegate.dagster_api.lineage import backfill_of, left_backfill
from dagster_tidegate.dagster_api.runs import Runs

IN_BACKFILL_TAG = "tidegate/in_backfill"
"""Tag of a paused run of a backfill: `paused`, or `resumed` once its next attempt replaces it."""
PAUSED = "paused"
RESUMED = "resumed"

_CANCELLED = (BulkActionStatus.CANCELING, BulkActionStatus.CANCELED)
# Dagster ends a backfill as failed if all that is left of it is paused.
_GOES_ON = (BulkActionStatus.REQUESTED, BulkActionStatus.COMPLETED_FAILED)


def is_in_backfill(run: dg.DagsterRun) -> bool:
    """Return whether a run belongs to a backfill."""
    return BACKFILL_ID_TAG in run.tags


class Backfills(Runs):
    """The backfills of a Dagster instance."""

    def given_up(self, run: dg.DagsterRun | None) -> str | None:
        """Return why a person does not want a paused run to go on, or None.

        Args:
            run: The run; None if Dagster does not have it any more.
        """
        if run is None:
            return "its Dagster run was deleted"
        backfill_id = backfill_of(run)
        backfill = None if backfill_id is None else self.instance.get_backfill(backfill_id)
        if backfill is None or backfill.status not in _CANCELLED:
            return None
        return f"its backfill {backfill_id} was cancelled"

    def paused_in_backfills(self) -> Sequence[dg.DagsterRun]:
        """Return the paused runs whose next attempts should wait in the queue, the newest first.

        To Dagster, a backfill without an unfinished run is over. A next attempt in the queue keeps
        it in progress, and can be cancelled with it. Nothing is returned if the instance would
        launch such a run although its pool is at 0.
        """
        if not holds_runs_back(settings(self.instance)):
            return []
        paused = self.runs(tags={IN_BACKFILL_TAG: PAUSED})
        goes_on = {
            backfill_id: backfill is not None and backfill.status in _GOES_ON
            for backfill_id in {backfill_of(run) for run in paused}
            if backfill_id is not None
            for backfill in [self.instance.get_backfill(backfill_id)]
        }
        return [run for run in paused if goes_on.get(backfill_of(run) or "")]

    def hand_backfill_over(self, run_id: str) -> None:
        """Let the run that follows a paused one replace it in their backfill.

        To Dagster a backfill has failed if one of its runs is CANCELED, as a paused run is, and is
        over if none of its runs is unfinished, as while all are paused. Tags can't be removed, so
        the paused run's tag is changed to name a backfill that does not exist.

        Args:
            run_id: The paused run. Nothing happens if no run of its backfill follows it.
        """
        run = self.run(run_id)
        if run is None or BACKFILL_ID_TAG not in run.tags:
            return
        backfill_id = run.tags[BACKFILL_ID_TAG]
        following = {PARENT_RUN_ID_TAG: run_id, BACKFILL_ID_TAG: backfill_id}
        if not self.runs(tags=following, unfinished=True):
            return
        # The tag last: if the process dies in between, this is done again.
        backfill = self.instance.get_backfill(backfill_id)
        if backfill is not None and backfill.status is BulkActionStatus.COMPLETED_FAILED:
            reopened = backfill._replace(
                status=BulkActionStatus.REQUESTED, backfill_end_timestamp=None
            )
            self.instance.update_backfill(reopened)
        self.add_tags(
            run_id, {BACKFILL_ID_TAG: left_backfill(backfill_id), IN_BACKFILL_TAG: RESUMED}
        )
