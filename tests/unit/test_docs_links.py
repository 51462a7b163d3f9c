"""Every link, path, module and command that the documentation names exists."""

import re
from importlib import import_module
from pathlib import Path

import click
import pytest

from dagster_tidegate.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

# `dagster_tidegate/gate/plan.py` is `gate/plan.py` for short.
PARENTS = [ROOT, ROOT / "dagster_tidegate"]
FOLDERS = "|".join(
    path.name
    for parent in PARENTS
    for path in parent.iterdir()
    if path.is_dir() and path.name[0] not in "._"
)
PATH = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w")
MODULE = re.compile(r"(?<![\w/.-])(?:dagster_tidegate|demo|tests)(?:\.[a-zA-Z]\w*)+")
NOT_A_FILE = {"store/migrations/versions/NNNN_what_it_does.py"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_every_relative_link_resolves(page: Path) -> None:
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target.read_text()), f"{path}#{anchor}"


@pages
def test_every_path_exists(page: Path) -> None:
    # `kubectl exec deploy/web` names a Deployment and not a file.
    text = re.sub(r"exec deploy/\S+", "", page.read_text())
    for path in set(PATH.findall(text)) - NOT_A_FILE:
        assert any((parent / path).exists() for parent in PARENTS), path


@pages
def test_every_module_exists(page: Path) -> None:
    for name in MODULE.findall(page.read_text()):
        parent, _, last = name.rpartition(".")
        assert is_module(name) or hasattr(import_module(parent), last), name


@pages
def test_every_command_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    commands = {
        "tidegate": set(main.list_commands(click.Context(main))),
        "make": set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)),
        "python -m demo": {"up", "sandbox", "drill"},
    }
    for program, names in commands.items():
        used = re.findall(rf"(?:\$ |`){program} ([a-z][a-z-]+)", page.read_text())
        assert set(used) <= names


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()
