"""Which campaign and campaign run a Dagster run works on."""

import dagster as dg
import pytest
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

from dagster_tidegate.dagster_api.lineage import campaign_of, job_of


def run_of(job: str, location: str | None = "analytics") -> dg.DagsterRun:
    origin = None
    if location is not None:
        repository = RemoteRepositoryOrigin(
            RegisteredCodeLocationOrigin(location), "__repository__"
        )
        origin = RemoteJobOrigin(repository, job)
    return dg.DagsterRun(job, remote_job_origin=origin)


@pytest.mark.parametrize(
    ("job", "location", "campaign"),
    [
        ("outreach", "analytics", "outreach"),
        ("__ASSET_JOB", "analytics", "analytics:assets"),
        ("__ASSET_JOB", "grpc:host:4000", "grpc:host:4000:assets"),
        ("__ASSET_JOB", "teams/a.py", "teams.a.py:assets"),
        ("__anonymous_asset_job_nightly", "analytics", "analytics:nightly"),
        ("__ASSET_JOB", None, "local:assets"),
    ],
)
def test_a_campaign_is_named_for_people(job: str, location: str | None, campaign: str) -> None:
    assert campaign_of(run_of(job, location)) == campaign
    assert job_of(campaign) == job
