"""Each alert, finding and rule has an entry: what it means, what to look at, what to do."""

import doctest
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.alerts.text import Text, digest
from dagster_tidegate.cli import main
from dagster_tidegate.control import runbooks
from dagster_tidegate.doctor.checks import CODES
from dagster_tidegate.web.pages import runbooks as page

DOCS = Path(__file__).parents[2] / "docs"
ENTRIES = dict(
    re.findall(
        r"^### (\w+ `\w+`)\n(.*?)(?=^##|\Z)",
        (DOCS / "runbooks.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
)
NEEDED = [*(f"Alert `{kind}`" for kind in AlertKind), *(f"Finding `{code}`" for code in CODES)]
# tests/unit/test_monitoring_docs.py knows which rules need one.
OF_RULES = [title for title in ENTRIES if title.startswith("Rule `Tidegate")]


def test_each_alert_and_each_finding_has_one_entry_and_nothing_else_has() -> None:
    assert sorted(ENTRIES) == sorted([*NEEDED, *OF_RULES])


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_entry_says_what_it_means_what_to_look_at_and_what_to_do(entry: str) -> None:
    parts = re.findall(r"^- \*\*(.+?):\*\* (\S[^\n]+)", ENTRIES[entry], re.MULTILINE)
    assert [title for title, _ in parts] == ["Meaning", "Look at", "Do"]
    assert all(len(text) > 5 for _, text in parts)


@pytest.mark.parametrize("page", ["alerts.md", "cli.md"])
def test_the_page_that_lists_them_links_to_the_runbooks(page: str) -> None:
    assert "(runbooks.md" in (DOCS / page).read_text()


def tidegate(*words: str, expect: int = 0) -> str:
    done = CliRunner().invoke(main, ["runbook", *words])
    assert done.exit_code == expect, done.output
    return done.output


def test_the_installed_package_has_the_same_entries() -> None:
    titles = [f"{each.subject.title()} `{each.name}`" for each in runbooks.runbooks()]
    assert titles == list(ENTRIES)
    for each in runbooks.runbooks():
        assert list(each.parts) == ["Meaning", "Look at", "Do"]
        assert "](" not in str(each.parts)


def test_the_command_prints_an_entry_without_a_store_or_dagster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIDEGATE_STORE_URL", "postgresql://127.0.0.1:9/none")
    text = tidegate("store_lost")
    assert text.startswith("alert store_lost\n  Meaning: The alert sender has not reached")
    assert "  Do: Restart the database. Re-execute runs that have failed" in text
    both = [line for line in tidegate("gate_stale").splitlines() if not line.startswith(" ")]
    assert both == ["alert gate_stale", "finding gate_stale"]
    [trip] = json.loads(tidegate("trip", "--json"))
    assert trip["subject"] == "alert"
    assert "status page" in trip["parts"]["Look at"]
    assert len(tidegate().splitlines()) == len(ENTRIES)
    assert "no alert, finding or rule is named 'tripp': did you mean trip?" in tidegate(
        "tripp", expect=1
    )


@pytest.mark.parametrize("kind", AlertKind)
def test_an_alert_names_its_runbook(kind: AlertKind) -> None:
    pages = "https://dagster.example.org/tidegate"
    link = f"Runbook: {pages}/runbooks#alert-{kind}"
    command = f"Runbook: tidegate runbook {kind}"
    text = Text("title", "body")
    assert text.linked(kind, None, None).body == f"body\n{command}"
    # While the store can't be reached, neither can most pages.
    is_away = kind is AlertKind.STORE_LOST
    expected = f"body\n{command if is_away else link}\nhttps://dagster.example.org"
    assert text.linked(kind, "https://dagster.example.org", pages).body == expected
    anchors = [each.anchor for section in page.runbooks_page() for each in section.entries]
    assert f"alert-{kind}" in anchors


def test_a_message_about_several_alerts_names_its_runbook() -> None:
    assert digest(["one", "two"]).body.endswith("Runbook: tidegate runbook several")


def test_the_examples_in_docstrings_work() -> None:
    assert doctest.testmod(runbooks) == (0, 3)
    assert doctest.testmod(page) == (0, 1)
