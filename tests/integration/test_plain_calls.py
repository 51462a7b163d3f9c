"""Calls without a record loop: a breaker's refusal that ends the op pauses its run."""

import pickle
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml
from dagster._core.storage.runs.sqlite import sqlite_run_storage

from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.dagster_api.lineage import campaign_of, partition_of
from dagster_tidegate.plugin.step import BreakerOpenFailure
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store.database import Store
from tests.integration.executors_project import plain

CANCELED, FAILURE = dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE
STEP_FAILURE, RETRY = dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.STEP_UP_FOR_RETRY


class Project:
    """Executes jobs of `executors_project/plain.py`, and knows what came of it."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, store: Store) -> None:
        self.folder, self.instance, self.store = folder, instance, store

    def execute(self, name: str, **options) -> dg.DagsterRun:
        job = dg.build_reconstructable_job(plain.__name__, "job_named", (name,))
        result = dg.execute_job(job, instance=self.instance, **options)
        run = self.instance.get_run_by_id(result.run_id)
        assert run is not None
        return run

    def down(self) -> None:
        (self.folder / "down").touch()

    def calls(self) -> int:
        return len((self.folder / "calls").read_text().splitlines())

    def campaign_run(self, run: dg.DagsterRun) -> runs.CampaignRun | None:
        with self.store.read() as conn:
            return runs.find(conn, campaign_of(run), partition_of(run))

    def events(self, run: dg.DagsterRun, *kinds: dg.DagsterEventType) -> list[str]:
        return [entry.message for entry in self.instance.all_logs(run.run_id, of_type=set(kinds))]


@pytest.fixture
def project(
    tmp_path: Path, store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    home = tmp_path / "home"
    home.mkdir()
    settings = {"concurrency": {"pools": {"granularity": "run"}}, "telemetry": {"enabled": False}}
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("TIDEGATE_STORE_URL", store_url)
    monkeypatch.setenv("EXECUTORS_PROJECT_FOLDER", str(tmp_path))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield Project(tmp_path, instance, store)


@pytest.mark.database_time
@pytest.mark.parametrize(
    ("job", "assets"),
    [
        ("plain_op", None),
        ("async_op", None),
        ("generator_op", None),
        ("decorated_op", None),
        ("in_processes", None),
        ("assets_job", "plain_asset"),
        ("assets_job", "async_asset"),
    ],
)
def test_a_refusal_that_ends_an_op_or_asset_pauses_its_run_without_a_retry(
    project: Project, job: str, assets: str | None
) -> None:
    project.down()
    selected = {} if assets is None else {"asset_selection": [dg.AssetKey(assets)]}
    run = project.execute(job, **selected)
    assert run.status is CANCELED
    assert project.calls() == 1
    assert run.tags["tidegate/state"] == "paused"
    assert run.tags["tidegate/service"] == "mail"
    campaign_run = project.campaign_run(run)
    assert campaign_run is not None
    assert campaign_run.status is RunStatus.PAUSED
    assert campaign_run.reason is not None
    assert campaign_run.reason.startswith("Paused: mail is open (ConnectionError")
    assert project.events(run, STEP_FAILURE, RETRY) == []
    if assets is not None:
        assert project.instance.get_latest_materialization_event(dg.AssetKey(assets)) is None


@pytest.mark.database_time
def test_a_pause_waits_for_a_run_storage_that_others_have_locked(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sqlite_run_storage,
        "create_engine",
        partial(sa.create_engine, connect_args={"timeout": 0.05}),
    )
    others = sqlite3.connect(
        project.folder / "home" / "history" / "runs.db",
        isolation_level=None,
        check_same_thread=False,
    )
    unlock = threading.Timer(0.5, others.rollback)

    def locking_send() -> str:
        others.execute("BEGIN IMMEDIATE")
        unlock.start()
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(plain, "send", locking_send)
    run = project.execute("plain_op")
    unlock.join()
    others.close()
    assert run.status is CANCELED
    assert run.tags["tidegate/state"] == "paused"


@pytest.mark.database_time
def test_the_log_of_a_paused_run_has_the_details_and_a_link(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_PUBLIC_URL", "https://ops.example.org/")
    project.down()
    run = project.execute("plain_op")
    [details] = [
        event.engine_event_data.metadata
        for entry in project.instance.all_logs(run.run_id)
        if (event := entry.dagster_event) and event.message == "Details of the pause"
    ]
    assert details["service"].value == "mail"
    assert str(details["reason"].value).startswith("mail is open (ConnectionError")
    assert details["page"].value == f"https://ops.example.org/tidegate/run/plain_op/{run.run_id}"
    assert "'target': 'service mail'" in str(details["holds"].value)


@pytest.mark.database_time
@pytest.mark.parametrize(
    ("job", "status"),
    [
        ("catching_op", dg.DagsterRunStatus.SUCCESS),
        ("translating_op", FAILURE),
        ("op_without_pool", FAILURE),
    ],
)
def test_nothing_pauses_where_the_author_catches_the_refusal_or_the_op_has_no_pool(
    project: Project, job: str, status: dg.DagsterRunStatus
) -> None:
    project.down()
    run = project.execute(job)
    assert run.status is status
    assert project.calls() == 1
    assert project.campaign_run(run) is None
    assert "tidegate/state" not in run.tags
    assert len(project.events(run, STEP_FAILURE)) == (status is FAILURE)


def test_the_error_is_a_breaker_open_error_with_all_of_its_fields_and_a_picklable_failure() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    error = BreakerOpenFailure("mail", BreakerState.OPEN, now, "503 x5", None)
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, BreakerOpenError)
    assert isinstance(again, dg.Failure)
    assert (again.service, again.reason, again.allow_retries) == ("mail", "503 x5", False)
    assert str(again) == again.description == "mail is open since 00:00:00 UTC (503 x5)"


@pytest.mark.database_time
def test_a_paused_run_that_a_person_re_executed_is_not_shown_as_paused_any_more(
    project: Project,
) -> None:
    project.down()
    paused = project.execute("plain_op")
    assert paused.tags["tidegate/state"] == "paused"
    (project.folder / "down").unlink()
    plain.breakers.fleet.breaker("mail").close()
    again = project.execute(
        "plain_op", reexecution_options=dg.ReexecutionOptions(parent_run_id=paused.run_id)
    )
    assert again.status is dg.DagsterRunStatus.SUCCESS
    former = project.instance.get_run_by_id(paused.run_id)
    assert former is not None
    assert former.tags["tidegate/state"] == "resumed"
    row = project.campaign_run(paused)
    assert row is not None
    assert row.status is not RunStatus.PAUSED


@pytest.mark.database_time
def test_where_dagster_reads_the_end_of_a_step_from_its_log_the_log_has_it(
    project: Project,
) -> None:
    project.down()
    run = project.execute("plain_in_containers")
    assert run.status is CANCELED
    assert run.tags["tidegate/state"] == "paused"
    assert project.calls() == 1
    assert len(project.events(run, STEP_FAILURE)) == 1
