"""`tidegate start`, `why` and `doctor` against a real Dagster instance and a real code server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from dagster import DagsterRunStatus

from dagster_tidegate.cli import main
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import holds, runs, schema
from dagster_tidegate.store.database import Store
from tests.integration.gate_deployment import LOCATION, PROJECT, Deployment

MAIL = Target(TargetKind.SERVICE, "mail")
QUEUED = DagsterRunStatus.QUEUED


def workspace(*files: Path) -> str:
    return yaml.safe_dump(
        {
            "load_from": [
                {
                    "python_file": {
                        "relative_path": str(file),
                        "working_directory": str(file.parent),
                        "location_name": LOCATION if file == PROJECT else file.stem,
                    }
                }
                for file in files
            ]
        }
    )


@pytest.fixture
def tidegate(deployed: Deployment) -> Iterator[Callable[..., Result]]:
    (deployed.home / "workspace.yaml").write_text(workspace(PROJECT))

    def tidegate(*arguments: str) -> Result:
        options = ["--url", deployed.store.url.render_as_string(hide_password=False)]
        if arguments[0] in ("start", "doctor", "services") or "retry" in arguments:
            options += ["--workspace", str(deployed.home / "workspace.yaml")]
        return CliRunner().invoke(main, [*arguments, *options])

    yield tidegate
    with deployed.store.begin() as conn:
        for target in {hold.target for hold in holds.live(conn, deployed.store.now(conn))}:
            holds.release(
                conn, deployed.store.now(conn), target, source=HoldSource.OPERATOR, actor="test"
            )


def hold(deployed: Deployment, target: Target = MAIL) -> None:
    with deployed.store.begin() as conn:
        now = deployed.store.now(conn)
        holds.place(conn, now, target, source=HoldSource.OPERATOR, reason="quota", actor="ana")


def release(deployed: Deployment, target: Target = MAIL) -> None:
    with deployed.store.begin() as conn:
        now = deployed.store.now(conn)
        holds.release(conn, now, target, source=HoldSource.OPERATOR, actor="ana")


def codes(result: Result) -> set[str]:
    return {finding["code"] for finding in json.loads(result.stdout)["findings"]}


def test_a_run_starts_and_its_campaign_run_completes(
    deployed: Deployment, tidegate: Callable[..., Result]
) -> None:
    result = tidegate("start", "letters", "--partition", "a", "--actor", "bo", "--json")
    assert result.exit_code == 0, result.output
    run_id = json.loads(result.stdout)["dagster_run"]
    run = deployed.instance.get_run_by_id(run_id)
    assert run is not None
    assert (run.status, run.job_name) == (QUEUED, "letters")
    assert run.tags["dagster/partition"] == "a"
    assert run.tags["tidegate/started_by"] == "bo"
    assert run.tags["team"] == "post"
    again = tidegate("start", "letters/a")
    deployed.gate()
    assert "letters/a (pending) is not paused" in tidegate("why", run_id).output
    assert again.exit_code in (0, 4)  # 4 as soon as the gate has seen the first
    assert tidegate("start", "letters", "--partition", "a").exit_code == 4

    def completed() -> bool:
        with deployed.store.read() as conn:
            found = runs.find(conn, "letters", "a")
        return found is not None and found.status is RunStatus.COMPLETED

    deployed.until(completed)
    events = json.loads(tidegate("history", "letters/a", "--kind", "start", "--json").stdout)
    assert events[0]["actor"] == "bo"


def test_records_are_done_again_by_one_run_of_their_partition(
    deployed: Deployment, tidegate: Callable[..., Result]
) -> None:
    started = json.loads(tidegate("start", "letters/c", "--json").stdout)

    def completed() -> bool:
        with deployed.store.read() as conn:
            found = runs.find(conn, "letters", "c")
        return found is not None and found.status is RunStatus.COMPLETED

    deployed.until(completed)
    hold(deployed)
    chosen = ("records", "retry", "letters/c", "--key", "c-3", "--reason", "a wrong answer")
    assert tidegate(*chosen).exit_code == 3
    release(deployed)
    retried = tidegate(*chosen, "--actor", "bo", "--json")
    assert retried.exit_code == 0, retried.output
    said = json.loads(retried.stdout)
    assert said["marked"] == {"send": 1}
    run = deployed.instance.get_run_by_id(said["dagster_run"])
    assert run is not None
    assert run.status is QUEUED
    assert run.tags["dagster/partition"] == "c"
    assert run.tags["tidegate/records"] == "marked"
    assert run.tags["dagster/parent_run_id"] == started["dagster_run"]
    assert run.tags["tidegate/started_by"] == "bo"
    assert tidegate(*chosen).exit_code == 4
    deployed.until(completed)
    records = json.loads(tidegate("records", "letters/c", "--done", "--json").stdout)[0]["records"]
    assert {each["key"]: each["attempt"] for each in records} == {
        **{f"c-{number}": 1 for number in range(10)},
        "c-3": 2,
    }


def test_what_is_held_is_refused_with_the_reason_and_starts_after_release_from_the_queue(
    deployed: Deployment, tidegate: Callable[..., Result]
) -> None:
    hold(deployed)
    refused = tidegate("start", "letters", "--partition", "b")
    assert refused.exit_code == 3
    assert "service mail is held by ana (quota)" in refused.stderr
    validated = tidegate("start", "letters", "--partition", "b", "--validate", "--json")
    assert validated.exit_code == 3
    said = json.loads(validated.stdout)
    assert (said["can_start"], said["refusal"]) == (False, "held")
    assert [hold["reason"] for hold in said["why"]["holds"]] == ["quota"]

    deployed.gate()
    queued = tidegate("start", "letters", "--partition", "b", "--queue", "--json")
    assert queued.exit_code == 0, queued.output
    run_id = json.loads(queued.stdout)["dagster_run"]
    for _ in range(3):
        deployed.gate()
        deployed.dequeue()
        assert deployed.status(run_id) is QUEUED
    why = json.loads(tidegate("why", run_id, "--json").stdout)
    assert (why["target_name"], why["paused"]) == ("letters/b", True)
    assert "pool_full" in [obstacle["kind"] for obstacle in why["obstacles"]]

    release(deployed)
    deployed.until(lambda: deployed.status(run_id) is DagsterRunStatus.SUCCESS)


def test_what_a_start_of_a_failed_run_shows_is_the_state_after_it(
    deployed: Deployment, tidegate: Callable[..., Result]
) -> None:
    with deployed.store.begin() as conn:
        now = deployed.store.now(conn)
        reason = "Dagster run 1 is FAILURE"
        for status in (RunStatus.PROCESSING, RunStatus.FAILED):
            run = runs.ensure(conn, now, "letters", "f")
            assert runs.move(conn, now, run, status, reason=reason, actor="dagster")
    deployed.gate()
    asked = tidegate("why", "letters/f").output.replace("\n", " ")
    assert "letters/f (failed) is over: it failed; start it again with 'tidegate start" in asked
    hold(deployed)
    said = tidegate("start", "letters/f", "--queue")
    assert said.exit_code == 0, said.output
    assert "letters/f (pending) is paused: service mail is held by ana (quota)" in said.output
    assert "FAILURE" not in said.output
    run_id = said.output.partition("Dagster run ")[2].split()[0]
    release(deployed)
    deployed.until(lambda: deployed.status(run_id) is DagsterRunStatus.SUCCESS)


def test_a_run_from_dagsters_own_buttons_waits_and_starts_after_release(
    deployed: Deployment, tidegate: Callable[..., Result]
) -> None:
    hold(deployed, Target(TargetKind.CAMPAIGN, "letters"))
    deployed.gate()
    run_id = deployed.launch("letters", "c")
    for _ in range(3):
        deployed.gate()
        deployed.dequeue()
        assert deployed.status(run_id) is QUEUED
    assert tidegate("start", "letters", "--partition", "c").exit_code == 4
    release(deployed, Target(TargetKind.CAMPAIGN, "letters"))
    deployed.until(lambda: deployed.status(run_id) is DagsterRunStatus.SUCCESS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["letters"], "has partitions: specify one; the latest are d, e, f"),
        (["letters", "--partition", "aa"], "no partition 'aa'; did you mean a?"),
        (["postcard", "--partition", "a", "--validate"], "has no partitions: omit the partition"),
        (["leters"], "did you mean letters"),
        (["prepared_postcard"], "no campaign is named 'prepared_postcard'"),
    ],
)
def test_what_can_t_be_started_says_what_would_be_right(
    tidegate: Callable[..., Result], arguments: list[str], says: str
) -> None:
    result = tidegate("start", *arguments)
    assert (result.exit_code, says in result.output) == (1, True), result.output


def test_a_campaign_without_partitions_and_one_of_assets_start_too(
    deployed: Deployment, tidegate: Callable[..., Result]
) -> None:
    for job in ("postcard", "atlas_job"):
        result = tidegate("start", job, "--json")
        assert result.exit_code == 0, result.output
        run_id = json.loads(result.stdout)["dagster_run"]
        deployed.until(lambda run_id=run_id: deployed.status(run_id) is DagsterRunStatus.SUCCESS)


def test_the_policies_are_read_from_the_code(tidegate: Callable[..., Result]) -> None:
    result = tidegate("services", "--json")
    assert result.exit_code == 0, result.output
    listed = {service["name"]: service for service in json.loads(result.stdout)}
    policy = listed["mail"]["policies"][LOCATION]
    assert (policy["consecutive_failures"], policy["reset_timeout_s"]) == (2, 0.5)
    assert "2 failures in a row" in tidegate("services").output
    assert "Time from the trip to the first trial call" in tidegate("services", "mail").output


def test_doctor_finds_what_is_wrong_with_the_code_and_the_daemon(tidegate) -> None:
    result = tidegate("doctor", "--json")
    assert result.exit_code == 1
    # No daemon runs here, so that the gate may be stale.
    assert "daemon_dead" in codes(result)
    assert codes(result) <= {"daemon_dead", "gate_stale"}
    said = tidegate("doctor").output
    assert "fix: start the daemon: dagster-daemon run" in said


def test_doctor_works_with_a_broken_code_location_and_a_sensor_that_is_off(
    deployed: Deployment, tidegate: Callable[..., Result], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('no such table')\n")
    (deployed.home / "workspace.yaml").write_text(workspace(PROJECT, broken))
    sensor = deployed.repository.get_sensor("tidegate_pause")
    state = sensor.get_current_instigator_state(
        deployed.instance.get_instigator_state(sensor.get_remote_origin_id(), sensor.selector_id)
    )
    deployed.instance.stop_sensor(state.instigator_origin_id, state.selector_id, None)
    try:
        result = tidegate("doctor", "--json")
    finally:
        deployed.instance.start_sensor(sensor)
    assert result.exit_code == 1
    found = {finding["code"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert found["location_broken"]["about"] == "broken"
    assert "no such table" in found["location_broken"]["what"]
    assert found["sensor_stopped"]["about"] == f"{LOCATION}: tidegate_pause"
    assert found["sensor_stopped"]["runbook"] == "tidegate runbook sensor_stopped"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("load_from: [", "can't be read as a workspace"),
        ("load_from: 3", "can't be read as a workspace"),
        (None, "no workspace file"),
    ],
)
def test_doctor_works_without_a_workspace(
    deployed: Deployment, tmp_path: Path, text: str | None, says: str
) -> None:
    path = tmp_path / "workspace.yaml"
    if text is not None:
        path.write_text(text)
    url = deployed.store.url.render_as_string(hide_password=False)
    arguments = ["doctor", "--json", "--url", url, "--workspace", str(path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1, result.output
    found = {finding["code"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert says in found["workspace_unreadable"]["what"]


def test_doctor_works_without_an_instance_and_without_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for home in ("", str(tmp_path)):
        monkeypatch.setenv("DAGSTER_HOME", home)
        (tmp_path / "dagster.yaml").write_text("run_coordinator: 3\n")
        result = CliRunner().invoke(
            main, ["doctor", "--json", "--url", "postgresql://127.0.0.1:9/none"]
        )
        assert result.exit_code == 1, result.output
        assert codes(result) == {"instance_unreadable", "store_unreachable"}
        assert len(json.loads(result.stdout)["unchecked"]) > 3


def test_doctor_names_each_setting_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(f"sqlite:///{tmp_path / 'tidegate.db'}")
    schema.upgrade(store, "0001")
    (tmp_path / "dagster.yaml").write_text(
        "run_coordinator:\n"
        "  module: dagster.core.run_coordinator\n"
        "  class: DefaultRunCoordinator\n"
        "concurrency: {pools: {granularity: op, op_granularity_run_buffer: 1}}\n"
        "run_monitoring: {enabled: false}\n"
    )
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("TIDEGATE_ENABLED", "false")
    monkeypatch.delenv("TIDEGATE_STORE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert {
        "run_coordinator",
        "pool_granularity",
        "run_buffer",
        "run_monitoring",
        "kill_switch",
        "store_revision",
    } <= codes(result)
    store.dispose()
