"""The settings of the deployment in this repository."""

import pytest

from resources.settings import DemoSettings, SettingsError

SECRET = "s3cr3t"


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
