"""Every Python example in the documentation is Python; diagrams agree with the code."""

import re
from pathlib import Path

import pytest
import yaml

from dagster_tidegate.statuses import RUN_MOVES, RecordStatus, RunStatus

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
STATES = (ROOT / "docs" / "explanation" / "state-machines.md").read_text()
EXAMPLES = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    if page.name != "python.md"  # signatures
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


def edges(heading: str) -> set[tuple[str, str]]:
    diagram = STATES.split(f"\n## {heading}\n")[1].partition("```mermaid\n")[2].partition("```")[0]
    return {(a, b) for a, b in re.findall(r"(\S+) --> (\w+)", diagram) if a != "[*]"}


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_example_is_python(code: str) -> None:
    compile(code, "example", "exec")


def test_the_diagram_of_campaign_runs_has_the_moves_that_the_store_permits() -> None:
    assert edges("Campaign run") == {
        (str(a), str(b)) for a, many in RUN_MOVES.items() for b in many
    }
    section = STATES.split("\n## Campaign run\n")[1].partition("\n## ")[0]
    listed = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (.*?) \|", section, re.MULTILINE)))
    assert set(listed) == set(RunStatus)


def test_the_diagram_of_records_has_every_status() -> None:
    assert {name for edge in edges("Record") for name in edge} == set(RecordStatus)


def test_every_page_of_the_navigation_exists_once() -> None:
    navigation = (ROOT / "docs" / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"[\w/-]+\.md", str(yaml.safe_load(navigation)))
    assert len(listed) == len(set(listed))
    for page in listed:
        assert page == "index.md" or (ROOT / "docs" / page).is_file(), page
