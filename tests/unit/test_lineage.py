"""Which campaign and campaign run a Dagster run works on."""

import dagster as dg
import pytest
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

from dagster_tidegate.dagster_api.lineage import campaign_of, job_of, partition_of
from dagster_tidegate.holds import part_name
from dagster_tidegate.text import MAX_PART


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
        ("__ephemeral_asset_job__", None, "dg.materialize"),
    ],
)
def test_a_campaign_is_named_for_people(job: str, location: str | None, campaign: str) -> None:
    assert campaign_of(run_of(job, location)) == campaign
    assert job_of(campaign) == job


@pytest.mark.parametrize(
    ("partition", "assets", "name"),
    [
        ("2026-03-01", [], "2026-03-01"),
        ("ada@example.org", [], "ada@example.org"),
        ("2026-03-01", ["b", "a/x"], "2026-03-01@a/x+b"),
    ],
)
def test_a_campaign_run_has_a_name_that_can_be_typed(
    partition: str, assets: list[str], name: str
) -> None:
    keys = frozenset(dg.AssetKey.from_user_string(asset) for asset in assets)
    run = dg.DagsterRun(
        "outreach", tags={"dagster/partition": partition}, asset_selection=keys or None
    )
    assert partition_of(run) == name


def test_names_of_campaign_runs_are_unique_and_bounded() -> None:
    names = {
        part_name("ada@example.org", ["a"]),
        part_name("ada", ["example.org", "a"]),
        part_name("ada", ["example.org+a"]),
        part_name("x" * 513),
        part_name("x" * 514),
        part_name("2026-03-01", [f"asset_{n}" for n in range(100)]),
        part_name("2026-03-01", [f"asset_{n}" for n in range(101)]),
    }
    assert len(names) == 7
    assert max(map(len, names)) <= MAX_PART
    assert part_name("x" * 512) == "x" * 512
