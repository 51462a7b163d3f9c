"""The version has one place, pyproject.toml; `make bump` writes it wherever else it stands."""

import re
import tomllib
from pathlib import Path

import pytest
from trove_classifiers import classifiers

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = [
    ROOT / ".env.example",
    ROOT / "docker-compose.yml",
    ROOT / "docs" / "production.md",
    *sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml")),
]
MENTION = re.compile(
    r'(?:^VERSION=|dagster-tidegate(?::(?:\$\{VERSION:-)?|\n\s+tag: "))(\d[\w.]*\w)', re.MULTILINE
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_image_has_the_version_of_the_package(path: Path) -> None:
    assert set(MENTION.findall(path.read_text())) <= {PROJECT["version"]}, "run `make bump`"


def test_most_of_these_files_name_it() -> None:
    assert sum(bool(MENTION.search(path.read_text())) for path in FILES) >= 5


def test_the_upgrade_notes_and_the_changelog_know_the_version() -> None:
    version = PROJECT["version"]
    notes = (
        (ROOT / "docs" / "how-to" / "upgrade.md").read_text().partition("## Notes by version")[2]
    )
    assert re.search(rf"^\| [^|]+ \| {re.escape(version)} \|", notes, re.MULTILINE)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{version}]" in changelog or "## [Unreleased]" in changelog


def test_the_metadata_is_what_pypi_accepts_and_what_is_tested() -> None:
    assert set(PROJECT["classifiers"]) <= classifiers
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert (ROOT / "dagster_tidegate" / "py.typed").is_file()
    oldest, after = map(int, re.findall(r"[>=<]3\.(\d+)", PROJECT["requires-python"]))
    named = re.findall(r"Python :: 3\.(\d+)", "\n".join(PROJECT["classifiers"]))
    assert [int(minor) for minor in named] == list(range(oldest, after))
