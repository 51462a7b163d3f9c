"""`tidegate dev` in a dg project: one port, an embedded store, and an end that leaves nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.support.polling import wait_until

PYPROJECT = """
[tool.dg]
directory_type = "project"
[tool.dg.project]
root_module = "shop"
"""
DEFINITIONS = """
import dagster as dg
from dagster_tidegate import BreakerResource, build_definitions

@dg.asset(pool="mailer")
def letters(breakers: BreakerResource) -> None:
    breakers.breaker("mailer").call(print, "sent")

defs = build_definitions(dg.Definitions(assets=[letters]), services=["mailer"])
"""
MAX_S = 240


def test_it_serves_dagster_and_the_api_and_ends_clean(tmp_path: Path) -> None:
    (tmp_path / "src" / "shop").mkdir(parents=True)
    (tmp_path / "src" / "shop" / "__init__.py").touch()
    (tmp_path / "src" / "shop" / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    hidden = ("DAGSTER_HOME", "TIDEGATE_STORE_URL")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster_tidegate.cli", "dev", "--port", "0"],
            cwd=tmp_path, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: "serving http" in log.read_text(), every_s=0.5)
        [url] = [
            line.removeprefix("serving ").partition(",")[0]
            for line in log.read_text().splitlines()
            if line.startswith("serving http")
        ]
        assert httpx.get(f"{url}/server_info", timeout=60).json()["dagster_version"]

        def campaigns() -> list[str]:
            listed = httpx.get(f"{url}/api/v1/campaigns", timeout=60).json()["items"]
            return [each["name"] for each in listed]

        wait_until(lambda: campaigns() == [f"{tmp_path.name}:assets"], every_s=1)
        assert "lacks" not in log.read_text()  # its own home has the settings
        assert len(list(tmp_path.glob(".tmp_dagster_home_*"))) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(MAX_S) == 0
        assert list(tmp_path.glob(".tmp_dagster_home_*")) == []
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(MAX_S)
