"""`tidegate init` sets what the gate needs, and touches nothing else of a dagster.yaml."""

import difflib
from pathlib import Path

import dagster as dg
import pytest
import yaml
from click.testing import CliRunner

from dagster_tidegate.cli import main
from dagster_tidegate.dagster_api.deployment import lacking, settings
from dagster_tidegate.doctor.dagster_yaml import NotEditableError, with_settings

ROOT = Path(__file__).parents[2]
WANTED = {
    "run_coordinator": {
        "module": "dagster.core.run_coordinator",
        "class": "QueuedRunCoordinator",
    },
    "concurrency": {"pools": {"granularity": "run"}},
    "run_monitoring": {"enabled": True, "free_slots_after_run_end_seconds": 10},
}
THEIRS = """\
# our instance
storage:
  postgres:  # managed
    postgres_url: {env: PG_URL}

concurrency:
  # two at once
  runs:
    max_concurrent_runs: 2   # no more!

run_monitoring:
    poll_interval_seconds: 30
telemetry: {enabled: false}
"""


def contained(wanted: object, config: object) -> bool:
    if isinstance(wanted, dict):
        return isinstance(config, dict) and all(
            contained(value, config.get(key)) for key, value in wanted.items()
        )
    return wanted == config


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing yet\n",
        THEIRS,
        THEIRS.rstrip("\n"),
        "concurrency: {pools: {granularity: op, default_limit: 3}}\n",
        "concurrency: {}\nrun_monitoring:\n",
        "concurrency:\nrun_monitoring: {enabled: false}\n",
        "{telemetry: {enabled: false}}\n",
        "run_coordinator:\n  module: dagster._core.run_coordinator\n  class: DefaultRunCoordinator",
        "run_monitoring:\n  enabled: false # off\n  free_slots_after_run_end_seconds: 10\n",
        "concurrency:\n  pools:\n    granularity: 'op'\n    op_granularity_run_buffer: 2\n",
    ],
)
def test_the_settings_are_there_and_the_rest_is_as_it_was(text: str) -> None:
    changed = with_settings(text)
    config = yaml.safe_load(changed)
    assert contained(WANTED, config), changed
    assert with_settings(changed) == changed
    before = yaml.safe_load(text) or {}
    for key in {*before} - {*WANTED}:
        assert config[key] == before[key]


def test_no_line_of_the_users_is_removed() -> None:
    lines = difflib.ndiff(THEIRS.splitlines(), with_settings(THEIRS).splitlines())
    assert not [line for line in lines if line.startswith("- ")]


def test_a_longer_time_and_a_coordinator_of_the_users_stay() -> None:
    text = (
        "run_coordinator: {module: ours, class: OurCoordinator}\n"
        "run_monitoring: {enabled: true, free_slots_after_run_end_seconds: 300}\n"
    )
    config = yaml.safe_load(with_settings(text))
    assert config["run_coordinator"] == {"module": "ours", "class": "OurCoordinator"}
    assert config["run_monitoring"]["free_slots_after_run_end_seconds"] == 300


def test_the_repositorys_own_has_them_all() -> None:
    text = (ROOT / "dagster.yaml").read_text()
    assert with_settings(text) == text


@pytest.mark.parametrize("text", ["a: [", "- a\n", "just text"])
def test_what_is_no_dagster_yaml_is_left_alone(text: str) -> None:
    with pytest.raises(NotEditableError):
        with_settings(text)


def test_the_command_shows_the_difference_and_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    path = tmp_path / "dagster.yaml"
    path.write_text(THEIRS)
    declined = CliRunner().invoke(main, ["init"], input="n\n")
    assert declined.exit_code == 1
    assert "+    granularity: run" in declined.output
    assert path.read_text() == THEIRS
    assert CliRunner().invoke(main, ["init"], input="y\n").exit_code == 0
    assert contained(WANTED, yaml.safe_load(path.read_text()))
    again = CliRunner().invoke(main, ["init", "--yes"])
    assert "has all settings" in again.output


def test_what_an_instance_lacks_is_named_as_in_the_file(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        lacks = lacking(settings(instance))
    assert "concurrency.pools.granularity: run" in lacks
    assert "run_monitoring.free_slots_after_run_end_seconds" in lacks
    (tmp_path / "dagster.yaml").write_text(with_settings(""))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert lacking(settings(instance)) == []


def test_without_a_home_it_is_the_file_that_dg_dev_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    (tmp_path / "dg.toml").write_text('directory_type = "workspace"\n')
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert CliRunner().invoke(main, ["init", "--yes"]).exit_code == 0
    assert (tmp_path / "dagster.yaml").is_file()
