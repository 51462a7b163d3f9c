"""`tidegate config` asks a code location what its BreakerResource is configured with."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from dagster_tidegate.cli import main

DEFINITIONS = """
import dagster as dg
from dagster_tidegate import BreakerResource, ServiceConfig

defs = dg.Definitions(resources={"breakers": BreakerResource(
    services=[ServiceConfig(name="mailer"), ServiceConfig(name="finder")],
    store_url="postgresql://me:correct-horse@db.example.org/dagster?options=-csearch_path%3Dx",
    drain_timeout_s=40,
)})
"""


def test_what_a_code_location_configures_is_shown_without_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    workspace = tmp_path / "workspace.yaml"
    location = {"relative_path": "definitions.py", "location_name": "letters"}
    workspace.write_text(yaml.safe_dump({"load_from": [{"python_file": location}]}))
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("TIDEGATE_STORE_URL", f"sqlite:///{tmp_path / 'tidegate.db'}")
    result = CliRunner().invoke(main, ["config", "--workspace", str(workspace), "--json"])
    assert result.exit_code == 0, result.output
    assert "correct-horse" not in result.output
    (found,) = json.loads(result.stdout)["locations"].items()
    assert found[0] == "letters"
    assert {name: (each["value"], each["source"]) for name, each in found[1].items()} == {
        "services": ("finder mailer", "code"),
        "store_url": (
            "postgresql://me:***@db.example.org/dagster?options=-csearch_path%3Dx",
            "code",
        ),
        "drain_timeout_s": ("40", "code"),
    }
