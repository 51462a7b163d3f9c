"""Backfills: a paused run must not make its backfill fail."""

import dagster as dg
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.storage.tags import BACKFILL_ID_TAG, PARENT_RUN_ID_TAG

from dagster_tidegate.dagster_api.runs import Runs

_CANCELLED = (BulkActionStatus.CANCELING, BulkActionStatus.CANCELED)


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
        backfill_id = run.tags.get(BACKFILL_ID_TAG)
        backfill = None if backfill_id is None else self.instance.get_backfill(backfill_id)
        if backfill is None or backfill.status not in _CANCELLED:
            return None
        return f"its backfill {backfill_id} was cancelled"

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
        self.add_tags(run_id, {BACKFILL_ID_TAG: f"{backfill_id} (paused)"})
        backfill = self.instance.get_backfill(backfill_id)
        if backfill is not None and backfill.status is BulkActionStatus.COMPLETED_FAILED:
            reopened = backfill._replace(
                status=BulkActionStatus.REQUESTED, backfill_end_timestamp=None
            )
            self.instance.update_backfill(reopened)
