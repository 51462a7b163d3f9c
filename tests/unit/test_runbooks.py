"""Each alert and each finding has an entry that says what it means, what to look at, what to do."""

import re
from pathlib import Path

import pytest

from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.doctor.checks import CODES

DOCS = Path(__file__).parents[2] / "docs"
ENTRIES = dict(
    re.findall(
        r"^### (\w+ `\w+`)\n(.*?)(?=^##|\Z)",
        (DOCS / "runbooks.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
)
NEEDED = [*(f"Alert `{kind}`" for kind in AlertKind), *(f"Finding `{code}`" for code in CODES)]


def test_each_alert_and_each_finding_has_one_entry_and_nothing_else_has() -> None:
    assert sorted(ENTRIES) == sorted(NEEDED)


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_entry_says_what_it_means_what_to_look_at_and_what_to_do(entry: str) -> None:
    parts = re.findall(r"^- \*\*(.+?):\*\* (\S[^\n]+)", ENTRIES[entry], re.MULTILINE)
    assert [title for title, _ in parts] == ["Meaning", "Look at", "Do"]
    assert all(len(text) > 5 for _, text in parts)


@pytest.mark.parametrize("page", ["alerts.md", "cli.md"])
def test_the_page_that_lists_them_links_to_the_runbooks(page: str) -> None:
    assert "(runbooks.md" in (DOCS / page).read_text()
