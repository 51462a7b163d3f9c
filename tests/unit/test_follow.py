"""Which status a campaign run gets from a Dagster run."""

from datetime import UTC, datetime

import dagster as dg
import pytest

from dagster_tidegate.gate.follow import next_status
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store.runs import AttemptRow

SUCCESS, FAILURE = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE
QUEUED, STARTED = dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def became(
    run: dg.DagsterRunStatus, status: RunStatus, outcome: RunStatus | None, *, owns: bool = True
) -> RunStatus | None:
    attempt = AttemptRow(1, 1, "run-1", NOW, None if outcome is None else NOW, outcome)
    return next_status(run, status, owns=owns, attempt=attempt, newer=False)


def test_an_attempt_ends_as_its_run_does() -> None:
    assert became(SUCCESS, RunStatus.PROCESSING, None) is RunStatus.COMPLETED
    assert became(FAILURE, RunStatus.PROCESSING, None) is RunStatus.FAILED


@pytest.mark.parametrize("given_up_as", [RunStatus.FAILED, RunStatus.CANCELLED])
def test_a_run_that_succeeds_after_dagster_gave_up_on_it_is_completed(
    given_up_as: RunStatus,
) -> None:
    assert became(SUCCESS, given_up_as, given_up_as) is RunStatus.COMPLETED


def test_a_paused_run_is_not_completed_by_its_dagster_run() -> None:
    assert became(SUCCESS, RunStatus.PAUSED, RunStatus.PAUSED) is None


@pytest.mark.parametrize(
    ("status", "attempted", "becomes"),
    [
        (RunStatus.PROCESSING, True, RunStatus.PAUSED),
        (RunStatus.PENDING, False, RunStatus.PAUSED),  # the next attempt, which had not begun yet
        (RunStatus.PAUSED, False, None),
    ],
)
def test_a_run_interrupted_outside_a_record_loop_is_paused(
    status: RunStatus, attempted: bool, becomes: RunStatus | None
) -> None:
    attempt = AttemptRow(1, 1, "run-1", NOW, None, None) if attempted else None
    to = next_status(
        FAILURE, status, owns=attempted, attempt=attempt, newer=False, interrupted=True
    )
    assert to is becomes


@pytest.mark.parametrize("run", [QUEUED, STARTED, FAILURE])
def test_a_cancelled_campaign_run_is_not_resumed_by_an_earlier_request(
    run: dg.DagsterRunStatus,
) -> None:
    def of(*, resumes: bool) -> RunStatus | None:
        return next_status(
            run, RunStatus.CANCELLED, owns=False, attempt=None, newer=True, resumes=resumes
        )

    assert of(resumes=True) is None
    assert of(resumes=False) is not None


def test_an_older_attempt_changes_nothing() -> None:
    assert became(SUCCESS, RunStatus.FAILED, RunStatus.FAILED, owns=False) is None
