"""Settings of the environment: what is refused and how, what is shown, and that docs have them."""

import json
import logging
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from dagster_tidegate import BreakerResource, ServiceConfig, settings
from dagster_tidegate.cli import main
from dagster_tidegate.settings import (
    GROUPS,
    AlertSettings,
    GeneralSettings,
    ServeSettings,
    Settings,
    SettingsError,
    effective,
    load,
    unknown,
    variables,
)

PROJECT = Path(__file__).parents[2]
DOCS = (PROJECT / "docs" / "settings.md").read_text()


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TIDEGATE_"):
            monkeypatch.delenv(name)


def test_every_setting_is_documented_and_no_other() -> None:
    rows = re.findall(r"^\| `(TIDEGATE_\w+)` \|", DOCS, re.MULTILINE)
    assert sorted(rows) == sorted(variables())


def test_every_field_of_the_resource_is_documented_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| *`?([^|`]*)`? *\|", DOCS, re.MULTILINE))
    assert rows.keys() == BreakerResource.model_fields.keys()
    assert float(rows["drain_timeout_s"]) == BreakerResource(services=[]).drain_timeout_s


def files() -> list[Path]:
    """What speaks of settings: code, documents, and what deploys."""
    folders = ("dagster_tidegate", "deploy", "docs", "pipelines", "resources", "sensors")
    suffixes = {".py", ".md", ".yml", ".yaml", ".json", ".sh"}
    found = [p for folder in folders for p in (PROJECT / folder).rglob("*") if p.suffix in suffixes]
    found += [*PROJECT.glob("*.y*ml"), *PROJECT.glob("*.md"), *PROJECT.glob("Dockerfile")]
    return [path for path in found if path.name != "CHANGELOG.md"]  # it names former ones, too


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_file_speaks_of_a_variable_that_is_no_setting(path: Path) -> None:
    named = set(re.findall(r"(?<![A-Z_])TIDEGATE_[A-Z_]*[A-Z]\b", path.read_text()))
    assert unknown(dict.fromkeys(named, "x")) == []


def test_the_default_is_what_works_on_one_machine() -> None:
    assert (load(ServeSettings).host, load(ServeSettings).port) == ("127.0.0.1", 3000)
    assert load(GeneralSettings).enabled
    assert load(AlertSettings).urls == ()


def test_the_command_line_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_SERVE_PORT", "4000")
    assert load(ServeSettings).port == 4000
    assert load(ServeSettings, port=5000, host=None).port == 5000
    found = {each.variable: each.source for each in effective(ServeSettings, host="::1")}
    assert found["TIDEGATE_SERVE_HOST"] == "command line"
    assert found["TIDEGATE_SERVE_PORT"] == "environment"
    assert found["TIDEGATE_SERVE_PATH_PREFIX"] == "default"


def test_a_changed_environment_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_ENABLED", "false")
    assert not load(GeneralSettings).enabled
    monkeypatch.setenv("TIDEGATE_ENABLED", " TRUE ")
    assert load(GeneralSettings).enabled
    monkeypatch.setenv("TIDEGATE_ENABLED", "")
    assert load(GeneralSettings).enabled


@pytest.mark.parametrize(
    ("group", "name", "value", "says"),
    [
        (GeneralSettings, "TIDEGATE_ENABLED", "off", "is 'off'; use true or false"),
        (GeneralSettings, "TIDEGATE_PUBLIC_URL", "ftp://x", "use a web address"),
        (ServeSettings, "TIDEGATE_SERVE_PORT", "65536", "less than or equal to 65535"),
        (
            ServeSettings,
            "TIDEGATE_SERVE_PORT",
            "http",
            "is 'http'; input should be a valid integer",
        ),
        (ServeSettings, "TIDEGATE_SERVE_PATH_PREFIX", "dagster/", "use a path such as"),
        (ServeSettings, "TIDEGATE_SERVE_TRUSTED_PROXIES", "10.0.0.7 *", "'*' means every address"),
        (ServeSettings, "TIDEGATE_SERVE_TRUSTED_PROXIES", "0.0.0.0/0", "name the proxies"),
        (ServeSettings, "TIDEGATE_SERVE_TRUSTED_PROXIES", "::/0", "name the proxies"),
        (ServeSettings, "TIDEGATE_SERVE_TRUSTED_PROXIES", "nonsense", "use 10.0.0.7 or"),
        (ServeSettings, "TIDEGATE_SERVE_TRUSTED_PROXIES", "10.0.0.0/33", "use 10.0.0.7 or"),
        (ServeSettings, "TIDEGATE_SERVE_ALLOWED_HOSTS", "https://a.example", "without https://"),
        (ServeSettings, "TIDEGATE_SERVE_ALLOWED_HOSTS", "a.example:3000", "without a port"),
        (ServeSettings, "TIDEGATE_SERVE_ALLOWED_HOSTS", "*", "use dagster.example.org"),
    ],
)
def test_a_wrong_value_is_refused_and_the_right_one_told(
    monkeypatch: pytest.MonkeyPatch, group: type[Settings], name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"^{name} is") as raised:
        load(group)
    assert says in str(raised.value)


def test_lists_are_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_SERVE_ALLOWED_HOSTS", "a.example.org, b.example.org")
    assert load(ServeSettings).allowed_hosts == ("a.example.org", "b.example.org")
    monkeypatch.setenv("TIDEGATE_SERVE_TRUSTED_PROXIES", "10.0.0.7,fd00::/8 ")
    assert load(ServeSettings).trusted_proxies == ("10.0.0.7", "fd00::/8")
    monkeypatch.setenv("TIDEGATE_ALERT_URLS", " slack://a,b/c\n json://d ")
    urls = [url.get_secret_value() for url in load(AlertSettings).urls]
    assert urls == ["slack://a,b/c", "json://d"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TIDEGATE_STORE_URI", "TIDEGATE_STORE_URL"),
        ("TIDEGATE_STOREURL", "TIDEGATE_STORE_URL"),
        ("TIDEGATE_SERVE_PROT", "TIDEGATE_SERVE_PORT"),
        ("TIDEGATE_ENABLE", "TIDEGATE_ENABLED"),
    ],
)
def test_a_misspelt_name_is_refused_with_a_suggestion(name: str, meant: str) -> None:
    assert unknown({name: "x"}) == [f"unknown variable {name}; did you mean {meant}?"]


def test_nothing_near_is_no_suggestion() -> None:
    assert unknown({"TIDEGATE_XYZZY": "x"}) == ["unknown variable TIDEGATE_XYZZY"]


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "_TIDEGATE_COMPLETE",
        "TIDEGATE_TEST_POSTGRES_URL",
        # A Service named "tidegate-web" in the namespace.
        "TIDEGATE_WEB_SERVICE_HOST",
        "TIDEGATE_WEB_SERVICE_PORT",
        "TIDEGATE_WEB_SERVICE_PORT_HTTP",
        "TIDEGATE_WEB_PORT",
        "TIDEGATE_WEB_PORT_80_TCP",
        "TIDEGATE_WEB_PORT_80_TCP_ADDR",
        "TIDEGATE_PORT",
    ],
)
def test_what_others_put_there_is_left_alone(name: str) -> None:
    assert unknown({name: "tcp://10.0.0.1:80"}) == []


@given(st.text(alphabet="ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789", min_size=1, max_size=40))
def test_whatever_the_name_it_is_a_setting_or_told(rest: str) -> None:
    name = f"TIDEGATE_{rest}"
    told = unknown({name: "x"})
    assert len(told) <= 1
    assert not (told and name in variables())


SECRET = "correct-horse"


@pytest.mark.parametrize(
    "command", [["config"], ["config", "--json"], ["status"], ["store", "current"]]
)
@pytest.mark.parametrize("good", [True, False])
def test_no_command_prints_a_secret(
    monkeypatch: pytest.MonkeyPatch, command: list[str], good: bool
) -> None:
    query = "?connect_timeout=1" if good else "?connect_timeout=what"
    monkeypatch.setenv("TIDEGATE_STORE_URL", f"postgresql://me:{SECRET}@127.0.0.1:9/x{query}")
    monkeypatch.setenv("TIDEGATE_ALERT_URLS", f"json://{SECRET}@127.0.0.1")
    result = CliRunner().invoke(main, command)
    assert SECRET not in result.output
    assert SECRET not in repr(result.exception)
    assert result.output


def test_config_shows_values_and_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_SERVE_PORT", "4000")
    result = CliRunner().invoke(main, ["config", "--json", "--url", "postgresql://u:pw@db/x"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    shown = {name: (each["value"], each["source"]) for name, each in found["settings"].items()}
    assert shown.keys() == set(variables())
    assert shown["TIDEGATE_SERVE_PORT"] == ("4000", "environment")
    assert shown["TIDEGATE_SERVE_HOST"] == ("127.0.0.1", "default")
    assert shown["TIDEGATE_STORE_URL"] == (settings.HIDDEN, "command line")
    assert found["store"] == "postgresql://u:***@db/x"
    text = CliRunner().invoke(main, ["config"]).output
    assert re.search(r"TIDEGATE_SERVE_PORT +4000 +environment", text)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("TIDEGATE_STOREURL", "x", "unknown variable TIDEGATE_STOREURL; did you mean"),
        ("TIDEGATE_ENABLED", "off", "TIDEGATE_ENABLED is 'off'; use true or false"),
    ],
)
def test_every_command_but_config_refuses_to_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    for command in (["status"], ["store", "upgrade"], ["hold", "everything", "--reason", "x"]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1
        assert says in result.output
        assert "tidegate config" in result.output
    result = CliRunner().invoke(main, ["config"])
    assert result.exit_code == 1
    assert says in result.output
    assert "TIDEGATE_SERVE_PORT" in result.output


def test_a_worker_logs_what_a_command_would_refuse(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TIDEGATE_STOREURL", "x")
    with caplog.at_level(logging.WARNING, "dagster_tidegate"):
        breakers = BreakerResource.in_memory([ServiceConfig(name="mailer")])
        assert breakers.breaker("mailer").call(int) == 0
    assert "unknown variable TIDEGATE_STOREURL; did you mean TIDEGATE_STORE_URL?" in caplog.text


def test_groups_have_names_of_their_own() -> None:
    assert len(set(variables())) == sum(len(group.model_fields) for group in GROUPS)
