"""Every example in the docs has the right types and options; diagrams agree with the code."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from dagster_tidegate.cli import main
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


# What a reader has before the examples of a page begin.
BEFORE = {
    "gate.md": """\
import dagster as dg
from dagster_tidegate import (
    BreakerResource,
    Campaign,
    ServiceConfig,
    build_breaker_sensor,
    build_pause_sensor,
    build_resume_sensor,
)
@dg.job
def newsletter() -> None: ...
@dg.sensor(job=newsletter)
def new_subscribers() -> None: ...
""",
    "limits.md": """\
def find_in_apollo(email: str) -> dict: ...
def find_in_clearbit(email: str) -> dict: ...
""",
}


def test_the_types_of_every_example_are_right(tmp_path: Path) -> None:
    for page in PAGES:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        if page.name != "python.md" and blocks:
            code = "\n".join([BEFORE.get(page.name, ""), *blocks])
            tmp_path.joinpath(f"{page.stem.replace('-', '_')}.py").write_text(code)
    settings = {
        "include": ["."],
        "extraPaths": [str(ROOT)],
        "pythonVersion": "3.11",
        "typeCheckingMode": "standard",
        "reportRedeclaration": False,  # a page may write an op in several ways
        "reportReturnType": False,  # of what is only declared above
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "-p", tmp_path, "--pythonpath", sys.executable],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr


COMMANDS = [
    pytest.param(line, id=f"{page.relative_to(ROOT)}: {line[:60]}")
    for page in PAGES
    for line in re.findall(
        r"^ *\$ (tidegate .*)$", page.read_text().replace("\\\n", " "), re.MULTILINE
    )
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_has_the_options_with_which_it_is_called(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if "|" in words or ">" in words:
        words = words[: min(words.index(sign) for sign in ("|", ">") if sign in words)]
    command: click.Command = main
    while isinstance(command, click.Group):
        context = click.Context(command)
        # Without the name of a subcommand, a group may run its first.
        found = command.get_command(context, words[0]) if words else None
        if found is None:
            break
        command, words = found, words[1:]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known
