"""The settings of the demo deployment, and its documentation."""

import re
from pathlib import Path

import click
import pytest

from demo.drill.command import drill
from demo.sandbox.command import sandbox
from resources.settings import DemoSettings, SettingsError

SECRET = "s3cr3t"
DOCS = (Path(__file__).parents[2] / "docs" / "demo.md").read_text()


def test_every_setting_is_documented() -> None:
    documented = set(re.findall(r"^\| `DEMO_(\w+)` \|", DOCS, re.MULTILINE))
    assert documented == {name.upper() for name in DemoSettings.model_fields}


def test_every_command_of_the_sandbox_is_documented() -> None:
    for name in sandbox.list_commands(click.Context(sandbox)):
        assert f"python -m demo sandbox {name}" in DOCS


def test_every_option_of_the_drill_is_documented() -> None:
    options = {parameter.opts[0] for parameter in drill.params} - {"--workspace"}
    assert set(re.findall(r"^\| `(--[\w-]+)", DOCS, re.MULTILINE)) == options


def test_a_trailing_slash_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_SANDBOX_URL", "http://127.0.0.1:9000/")
    assert DemoSettings.load().sandbox_url == "http://127.0.0.1:9000"


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_LEADS", "")
    assert DemoSettings.load().leads is None


def test_an_invalid_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_SANDBOX_URL", "127.0.0.1:8765")
    with pytest.raises(SettingsError, match="DEMO_SANDBOX_URL is invalid"):
        DemoSettings.load()


def test_the_password_of_the_results_database_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_RESULTS_URL", f"postgresql://me:{SECRET}@127.0.0.1/x")
    assert SECRET not in repr(DemoSettings.load())
