"""The way out: what the gate took over goes back, and stays back."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import yaml
from click.testing import CliRunner, Result
from dagster import DagsterRunStatus

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.cli import main
from dagster_tidegate.gate import tighten_now
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.store import holds, takeovers
from dagster_tidegate.store.breakers import SqlBackend
from tests.integration.gate_deployment import LOCATION, PROJECT, Deployment

MAIL = Target(TargetKind.SERVICE, "mail")
OURS = ("tidegate_breaker", "tidegate_pause", "tidegate_resume")
Detach = Callable[..., Result]


def release(deployed: Deployment) -> None:
    with deployed.store.begin() as conn:
        now = deployed.store.now(conn)
        holds.release(conn, now, MAIL, source=HoldSource.OPERATOR, actor="ana")


def triggers(deployed: Deployment) -> dict[str, str]:
    """The states of schedules and sensors that somebody has switched."""
    return {
        name: state
        for name, state in deployed.trigger_states().items()
        if name not in OURS and state != "DECLARED_IN_CODE"
    }


@pytest.fixture
def detach(deployed: Deployment) -> Iterator[Detach]:
    path = deployed.home / "workspace.yaml"
    location = {"relative_path": str(PROJECT), "location_name": LOCATION}
    location["working_directory"] = str(PROJECT.parent)
    path.write_text(yaml.safe_dump({"load_from": [{"python_file": location}]}))

    def detach(*options: str) -> Result:
        url = deployed.store.url.render_as_string(hide_password=False)
        options = ("--url", url, "--workspace", str(path), *options)
        return CliRunner().invoke(main, ["detach", *options])

    yield detach
    release(deployed)
    for name in OURS:
        deployed.instance.start_sensor(deployed.repository.get_sensor(name))
    deployed.gate()
    deployed.gate()


@pytest.fixture
def held(deployed: Deployment) -> tuple[dict, dict]:
    """Pools and triggers as they were before the gate of a held service took them."""
    deployed.instance.event_log_storage.set_concurrency_slots("mail", 4)
    deployed.start("hourly_letters")
    before = dict(deployed.dagster.pools()), triggers(deployed)
    with deployed.store.begin() as conn:
        now = deployed.store.now(conn)
        holds.place(conn, now, MAIL, source=HoldSource.OPERATOR, reason="quota", actor="ana")
    deployed.gate()
    assert deployed.dagster.pools()["mail"] == "0"
    assert triggers(deployed)["hourly_letters"] == "STOPPED"
    return before


def test_while_held_everything_goes_back_and_queued_runs_start(
    deployed: Deployment, held: tuple[dict, dict], detach: Detach
) -> None:
    run = deployed.launch("letters", "a")
    deployed.dequeue()
    assert deployed.status(run) is DagsterRunStatus.QUEUED
    result = detach("--yes", "--json", "--actor", "ana")
    assert result.exit_code == 0, result.output
    done = json.loads(result.stdout)
    pools, states = held
    assert deployed.dagster.pools() == pools
    assert triggers(deployed) == states
    assert {sensor.partition(": ")[2] for sensor in done["stopped"]} == set(OURS)
    assert {deployed.trigger_states()[name] for name in OURS} == {"STOPPED"}
    assert (done["queued"], done["holds"]) == (1, 1)
    assert done["store"].endswith(str(deployed.store.url.database))
    # Nothing takes it again: neither a run that pauses nor whoever asks for it.
    fleet = Fleet(SqlBackend(deployed.store), ())
    assert tighten_now(deployed.instance, deployed.store, fleet) == []
    assert deployed.dagster.pools() == pools
    deployed.dequeue()
    assert deployed.status(run) is not DagsterRunStatus.QUEUED
    release(deployed)  # so that it completes
    deployed.wait(run, *(s for s in DagsterRunStatus if s.name in ("SUCCESS", "CANCELED")))


@pytest.mark.usefixtures("held")
def test_a_detached_gate_is_attached_by_its_next_tick(deployed: Deployment, detach: Detach) -> None:
    assert detach("--yes").exit_code == 0
    for name in OURS:
        deployed.instance.start_sensor(deployed.repository.get_sensor(name))
    deployed.gate()
    assert deployed.dagster.pools()["mail"] == "0"


@pytest.mark.usefixtures("held")
def test_what_a_person_changed_meanwhile_stays(deployed: Deployment, detach: Detach) -> None:
    deployed.instance.event_log_storage.set_concurrency_slots("mail", 7)
    assert detach("--yes").exit_code == 0
    assert deployed.dagster.pools()["mail"] == "7"
    with deployed.store.read() as conn:
        assert takeovers.live(conn) == []


@pytest.mark.usefixtures("held")
def test_a_dry_run_changes_nothing_and_names_what_it_would_restore(
    deployed: Deployment, detach: Detach
) -> None:
    said = detach("--dry-run").output
    assert "would restore pool mail 0 -> 4" in said
    assert deployed.dagster.pools()["mail"] == "0"
    assert deployed.trigger_states()["tidegate_pause"] != "STOPPED"


def test_after_the_code_was_removed_it_works_too(
    deployed: Deployment, held: tuple[dict, dict], detach: Detach, tmp_path: Path
) -> None:
    empty = tmp_path / "workspace.yaml"
    empty.write_text("load_from: []\n")
    result = detach("--yes", "--location", LOCATION, "--workspace", str(empty))
    assert result.exit_code == 0, result.output
    assert (deployed.dagster.pools(), triggers(deployed)) == held
    (deployed.home / "workspace.yaml").unlink()
    result = detach("--yes")
    assert result.exit_code == 1
    assert "Stop them on the page Automation" in result.stderr


@contextmanager
def restarted(deployed: Deployment, **settings: str) -> Iterator[None]:
    """Restart the code location with settings in its environment, and at the end without."""
    with mock.patch.dict(os.environ, settings):
        deployed.workspace.reload_code_location(LOCATION)
        yield
    deployed.workspace.reload_code_location(LOCATION)


def test_switched_off_everything_goes_back_in_one_tick_and_switched_on_the_hold_counts_again(
    deployed: Deployment, held: tuple[dict, dict]
) -> None:
    run = deployed.launch("letters", "b")
    deployed.dequeue()
    assert deployed.status(run) is DagsterRunStatus.QUEUED
    with restarted(deployed, TIDEGATE_ENABLED="false"):
        deployed.gate()
        assert (dict(deployed.dagster.pools()), triggers(deployed)) == held
        assert "STOPPED" not in {deployed.trigger_states()[name] for name in OURS}
        for _ in range(2):  # it takes nothing again, although the hold is still there
            deployed.gate()
            assert (dict(deployed.dagster.pools()), triggers(deployed)) == held
        deployed.dequeue()
        assert deployed.status(run) is not DagsterRunStatus.QUEUED
        deployed.wait(run)
    deployed.gate()
    assert deployed.dagster.pools()["mail"] == "0"
    assert triggers(deployed)["hourly_letters"] == "STOPPED"


def test_an_unknown_location_is_named(detach: Detach) -> None:
    result = detach("--yes", "--location", "gate_projekt")
    assert result.exit_code == 1
    assert f"did you mean {LOCATION}?" in result.output
