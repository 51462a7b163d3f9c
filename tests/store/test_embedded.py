"""The embedded store: nobody creates it, and nothing else is created or migrated unasked."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import exc

from dagster_tidegate.cli import main
from dagster_tidegate.store import compatibility, schema
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.gate_lock import gate_lock
from tests.support.maintenance import held, hold

PROCESSES = 4
CREATE = (
    "from dagster_tidegate.store import schema;"
    "from dagster_tidegate.store.database import Store;"
    "import alembic.command, sys;"
    "store = Store.of_environment();"
    "print('ready', flush=True); sys.stdin.readline();"
    "schema.make_ready(store);"
    "print(schema.current(store))"
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TIDEGATE_STORE_URL", raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def test_processes_that_create_it_at_once_all_get_a_complete_one() -> None:
    command = [sys.executable, "-c", CREATE]
    processes = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [said.strip() for said, _ in outputs] == [compatibility.REVISION] * PROCESSES, outputs


def test_a_command_creates_it(home: Path) -> None:
    result = CliRunner().invoke(main, ["status"])
    assert result.exit_code == 0, result.output
    assert (home / "tidegate.db").is_file()


def test_one_that_was_moved_away_is_missed_and_not_created_anew(home: Path) -> None:
    run, file, away = CliRunner().invoke, home / "tidegate.db", home / "away.db"
    held = run(main, ["hold", "service", "mail", "--reason", "moving"])
    assert held.exit_code == 0, held.output
    file.rename(away)
    for command in (["status"], ["release", "service", "mail"], ["store", "upgrade"]):
        result = run(main, command)
        assert result.exit_code == 1, result.output
        assert "the store is unreachable" in result.output
        assert "is missing, although it has been in use: put it back" in result.output
        assert f"delete {file}-push" in result.output
        assert not file.exists()
    away.rename(file)
    assert "moving" in run(main, ["status"]).output
    file.unlink()
    Path(f"{file}-push").unlink()
    assert "moving" not in run(main, ["status"]).output


def test_a_process_that_runs_notices_that_it_was_moved_away_or_replaced(home: Path) -> None:
    file, away, backup = home / "tidegate.db", home / "away.db", home / "backup.db"
    store = Store(f"sqlite:///{file}")
    schema.upgrade(store)
    with sqlite3.connect(file) as source, sqlite3.connect(backup) as target:
        source.backup(target)
    hold(store)
    assert held(store)
    file.rename(away)
    for use in (held, hold, lambda store: gate_lock(store, 0).__enter__()):
        with pytest.raises(exc.OperationalError, match="is missing, although it has been in use"):
            use(store)
    away.rename(file)
    assert held(store)
    for ending in ("-wal", "-shm"):
        Path(f"{file}{ending}").unlink(missing_ok=True)
    backup.replace(file)
    assert not held(store)
    store.dispose()


def test_an_older_one_is_not_upgraded_unasked(home: Path) -> None:
    store = Store(f"sqlite:///{home / 'tidegate.db'}")
    schema.upgrade(store, "0001")
    result = CliRunner().invoke(main, ["status"])
    assert result.exit_code == 1
    assert "run 'tidegate store upgrade'" in result.output
    assert schema.current(store) == "0001"
    store.dispose()


def test_a_store_that_somebody_named_is_not_created(home: Path) -> None:
    url = f"sqlite:///{home / 'named.db'}"
    with pytest.raises(schema.SchemaError, match="run 'tidegate store upgrade'"):
        schema.make_ready(Store.of_environment(url))
    tables = sqlite3.connect(home / "named.db").execute("SELECT * FROM sqlite_master").fetchall()
    assert tables == []


def test_a_relative_home_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "home")
    with pytest.raises(ValueError, match="it is 'home', not an absolute path"):
        Store.of_environment()


def test_without_any_home_the_message_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME")
    with pytest.raises(ValueError, match=r"start dg dev or .*set DAGSTER_HOME to the dir"):
        Store.of_environment()
