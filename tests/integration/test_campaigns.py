"""The campaigns of this deployment, against the sandbox and a real store."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
import sqlalchemy as sa

from dagster_tidegate.store.database import Store
from demo.sandbox.client import SandboxClient
from demo.sandbox.faults import Fault, Mode
from demo.sandbox.leads import write_lead_file
from pipelines.account_digest import ACCOUNTS_AN_HOUR, account_digest
from pipelines.list_hygiene import ADDRESSES_A_DAY, list_hygiene
from pipelines.outreach import lead_files, outreach
from resources.deployment import build_resources
from resources.results import addresses, digests, letters
from sensors.new_lead_files import RUN_KEY, RUN_KEY_TAG, new_lead_files
from tests.support.databases import both_databases

PROJECT = Path(__file__).parents[2]
VALIDATE = [sys.executable, "-m", "dagster", "definitions", "validate"]


@pytest.fixture
def leads(tmp_path: Path) -> Path:
    directory = tmp_path / "leads"
    directory.mkdir()
    return directory


@pytest.fixture
def resources(
    sandbox: SandboxClient, store_url: str, leads: Path, tmp_path: Path
) -> dict[str, Any]:
    return build_resources(
        sandbox_url=sandbox.url,
        leads=leads,
        home=tmp_path,
        results_url=store_url,
        store_url=store_url,
    )


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    directory = tmp_path / "dagster"
    directory.mkdir()
    (directory / "dagster.yaml").symlink_to(PROJECT / "dagster.yaml")
    with dg.DagsterInstance.from_config(str(directory)) as instance:
        yield instance


def run(
    job: dg.JobDefinition, partition: str, instance: dg.DagsterInstance, resources: dict[str, Any]
) -> dg.DagsterRunStatus:
    if job is outreach:
        instance.add_dynamic_partitions("lead_files", [partition])
    result = job.execute_in_process(
        partition_key=partition, instance=instance, resources=resources, raise_on_error=False
    )
    found = instance.get_run_by_id(result.run_id)
    assert found is not None
    return found.status


def rows(store_url: str, table: sa.Table) -> pd.DataFrame:
    store = Store(store_url)
    with store.read() as conn:
        found = pd.read_sql(sa.select(table), conn)
    store.dispose()
    return found


def test_outreach_writes_to_each_lead_once_and_sets_bad_lines_aside(
    sandbox: SandboxClient,
    leads: Path,
    instance: dg.DagsterInstance,
    resources: dict[str, Any],
    store_url: str,
    tmp_path: Path,
):
    name = "Spring & summer (3)"  # as a browser names a download
    (leads / f"{name}.CSV").write_text(
        "Email,First Name,Company Name,fax\n"
        "zoë@acme.example,Zoë,Acme,1\n"
        "no-address,Ann,Acme,\n"
        "bob@invalid.example,Bob,,\n"
        "cai@catchall.example,Cai,,\n"
        "dee@acme.example,Dee,a,b,c\n"
    )
    assert run(outreach, name, instance, resources) is dg.DagsterRunStatus.SUCCESS
    sent = {f"{name}/zoë@acme.example": 1, f"{name}/cai@catchall.example": 1}
    assert sandbox.effects("instantly") == sent
    results = rows(store_url, letters).set_index("email")
    assert results["status"].to_dict() == {
        "zoë@acme.example": "sent",
        "bob@invalid.example": "undeliverable",
        "cai@catchall.example": "sent",
    }
    assert "Acme" in results.loc["zoë@acme.example", "text"]
    rejects = pd.read_csv(tmp_path / "rejects" / f"{name}.csv")
    assert rejects[["file", "line"]].to_numpy().tolist() == [
        [f"{name}.CSV", 3],
        [f"{name}.CSV", 6],
    ]

    # Run again by hand, it is new work: each lead is written to once more, and listed once.
    assert run(outreach, name, instance, resources) is dg.DagsterRunStatus.SUCCESS
    assert sandbox.effects("instantly") == dict.fromkeys(sent, 2)
    again = rows(store_url, letters).set_index("email")
    assert again["status"].to_dict() == results["status"].to_dict()


@both_databases
def test_an_outage_pauses_outreach_and_the_next_run_goes_on_where_it_stopped(
    sandbox: SandboxClient,
    leads: Path,
    instance: dg.DagsterInstance,
    resources: dict[str, Any],
    store_url: str,
):
    write_lead_file(leads / "june.csv", 40)
    sandbox.place("openai", Fault(mode=Mode.OUTAGE))
    assert run(outreach, "june", instance, resources) is dg.DagsterRunStatus.CANCELED
    assert sandbox.stats()["perplexity"]["effects"] == 40
    assert sandbox.stats()["instantly"]["calls"] == 0

    sandbox.heal("openai")
    resources["breakers"].breaker("openai").close()
    assert run(outreach, "june", instance, resources) is dg.DagsterRunStatus.SUCCESS
    sent = sandbox.effects("instantly")
    assert (len(sent), set(sent.values())) == (40, {1})
    assert sandbox.stats()["perplexity"]["calls"] == 40  # what was done was not done again
    assert set(rows(store_url, letters)["status"]) == {"sent"}


def test_list_hygiene_checks_the_addresses_of_the_day(
    leads: Path, instance: dg.DagsterInstance, resources: dict[str, Any], store_url: str
):
    write_lead_file(leads / "a.csv", 2 * ADDRESSES_A_DAY)
    for day in ("2026-03-01", "2026-03-02"):
        assert run(list_hygiene, day, instance, resources) is dg.DagsterRunStatus.SUCCESS
    found = rows(store_url, addresses)
    assert len(set(found["email"])) == 2 * ADDRESSES_A_DAY
    assert found["partition"].value_counts().to_dict() == {
        "2026-03-01": ADDRESSES_A_DAY,
        "2026-03-02": ADDRESSES_A_DAY,
    }


def test_account_digest_sums_up_the_companies_of_the_hour(
    leads: Path, instance: dg.DagsterInstance, resources: dict[str, Any], store_url: str
):
    write_lead_file(leads / "a.csv", 100)
    hour = "2026-03-01-07:00"
    assert run(account_digest, hour, instance, resources) is dg.DagsterRunStatus.SUCCESS
    found = rows(store_url, digests)
    assert len(set(found["company"])) == ACCOUNTS_AN_HOUR
    assert all(found["text"])


def test_the_sensor_asks_for_a_run_of_each_new_file_until_there_is_one(
    leads: Path, instance: dg.DagsterInstance, resources: dict[str, Any]
):
    for name in ("a.csv", "b.csv", ".c.csv.unfinished", "notes.txt", "d e.csv"):
        (leads / name).write_text("email\n")

    def tick() -> Any:
        directory = {"lead_directory": resources["lead_directory"]}
        return new_lead_files(dg.build_sensor_context(instance=instance, resources=directory))

    names = ["a", "b", "d e"]
    assert [request.partition_key for request in tick().run_requests] == names
    (request,) = tick().dynamic_partitions_requests
    assert (request.partitions_def_name, request.partition_keys) == (lead_files.name, names)

    # b's request got lost after its partition was made.
    instance.add_dynamic_partitions("lead_files", names)
    for name in ("a", "d e"):
        instance.create_run_for_job(outreach, tags={RUN_KEY_TAG: f"{RUN_KEY}{name}"})
    lost = tick()
    assert [request.partition_key for request in lost.run_requests] == ["b"]
    assert lost.dynamic_partitions_requests[0].partition_keys == []

    instance.create_run_for_job(outreach, tags={RUN_KEY_TAG: f"{RUN_KEY}b"})
    assert tick().skip_message == (
        f"no new files among 3 in {leads}; left out: notes.txt (its name does not end in .csv)"
    )


def test_the_code_location_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").symlink_to(PROJECT / "dagster.yaml")
    monkeypatch.chdir(tmp_path)  # whatever directory it is started in
    loaded = subprocess.run(
        [*VALIDATE, "-w", str(PROJECT / "workspace.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stdout + loaded.stderr


def test_the_instance_is_one_that_the_gate_can_work_with(instance: dg.DagsterInstance):
    pools = instance.get_concurrency_config().pool_config
    assert pools.pool_granularity is not None
    assert pools.pool_granularity.value == "run"
    assert not pools.op_granularity_run_buffer
    assert instance.run_monitoring_enabled
    assert instance.get_settings("run_monitoring")["free_slots_after_run_end_seconds"] == 10
    assert not instance.telemetry_enabled
