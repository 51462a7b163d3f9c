"""The drill as a person runs it. The sandbox says what arrived."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

ROOT = Path(__file__).parents[2]


def drill(tmp_path: Path, *options: str) -> tuple[dict, str]:
    """Run a drill, and return its report and what it said."""
    file = tmp_path / "report.json"
    done = subprocess.run(
        # It lasts until everything has paused.
        [sys.executable, "-m", "demo", "drill", "--outage", "5", "--json", str(file), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text()), done.stdout


def assert_all_is_well(found: dict, leads: int) -> None:
    wanted = {
        "records_total": leads,
        "records_done": leads,
        "records_lost": 0,
        "records_duplicated": 0,
        "runs_failed": 0,
        "schedules_restored": True,
        "pools_restored": True,
    }
    assert {key: found[key] for key in wanted} == wanted
    assert found["runs_paused"] > 0
    assert found["runs_resumed"] > 0


def test_instantly_fails_and_only_outreach_pauses_and_loses_nothing(tmp_path: Path):
    found, said = drill(tmp_path, "--service", "instantly", "--leads", "140")
    assert_all_is_well(found, 140)
    assert (found["campaigns_paused"], found["campaigns_untouched"]) == (1, 2)
    assert "outreach" in next(line for line in said.splitlines() if "paused  " in line)


def test_a_service_of_two_campaigns_and_the_daemon_fail_with_all_on_postgresql(
    tmp_path: Path, make_database: Callable[..., sa.URL]
):
    database = make_database()
    url = database.render_as_string(hide_password=False)
    found, said = drill(
        tmp_path,
        *("--service", "openai", "--kill-daemon", "--leads", "140", "--url", url, "--keep"),
    )
    assert "killing Dagster's daemon" in said
    assert_all_is_well(found, 140)
    assert (found["campaigns_paused"], found["campaigns_untouched"]) == (2, 1)

    kept = re.search(r"logs are in (\S+), Dagster's storage in the schema (\w+)", said)
    assert kept is not None
    engine = sa.create_engine(database)
    with engine.connect() as conn:
        ended = conn.execute(sa.text(f"SELECT status FROM {kept[2]}.runs")).scalars().all()
    engine.dispose()
    assert ended.count("CANCELED") >= found["runs_paused"]  # a queued run may be canceled, too
    assert "FAILURE" not in ended
    assert not list(Path(kept[1]).rglob("runs.db"))
    shutil.rmtree(kept[1])
