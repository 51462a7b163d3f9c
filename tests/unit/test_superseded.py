"""Which runs come too late for what they were asked for."""

import dagster as dg

from dagster_tidegate.dagster_api.lineage import (
    is_superseded,
    request_key,
    superseded_tags,
    was_superseded,
)

ASKED = {"dagster/run_key": request_key(7, 1), "dagster/parent_run_id": "first"}


def run(parent: str | None = None, **tags: str) -> dg.DagsterRun:
    return dg.DagsterRun(
        job_name="letters", run_id="mine", parent_run_id=parent, root_run_id=parent, tags=tags
    )


def test_a_run_that_is_to_follow_another_than_the_newest_is_superseded():
    assert is_superseded(run(**ASKED), "second")
    assert not is_superseded(run(**ASKED), "first")
    assert not is_superseded(run(**ASKED), "mine")


def test_runs_that_the_gate_did_not_ask_for_are_not():
    assert not is_superseded(run(), "second")
    assert not is_superseded(run(**{"dagster/run_key": "a file"}), "second")


def test_a_retry_follows_the_run_that_it_retries_whatever_tags_it_inherited():
    retry = run(parent="second", **{**ASKED, "dagster/parent_run_id": "second"})
    assert not is_superseded(retry, "second")
    # The run that it retries never began.
    assert not is_superseded(retry, "first")


def test_a_retry_or_re_execution_of_a_superseded_run_is_not_superseded_by_its_inherited_tags():
    """Or the gate would not follow it, and take its campaign run for one without a run."""
    mine = run(**ASKED)
    tags = {**ASKED, **superseded_tags(mine, "second")}
    assert was_superseded(run(**tags))
    again = dg.DagsterRun(
        job_name="letters", run_id="again", parent_run_id="mine", root_run_id="mine", tags=tags
    )
    assert not was_superseded(again)
