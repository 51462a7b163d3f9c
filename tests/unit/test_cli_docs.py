"""docs/cli.md has every command and every option, and none that does not exist."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from dagster_tidegate.cli import main
from dagster_tidegate.control.why import ObstacleKind
from dagster_tidegate.store.events import EventKind

DOCS = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """The commands that do something, by their whole name."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command)
    for each in command.list_commands(context):
        found = command.get_command(context, each)
        assert found is not None
        yield from commands(found, f"{name} {each}")


COMMANDS = dict(commands(main, "tidegate"))


def section(name: str) -> str:
    found = re.search(rf"^## `{name}`$(.*?)(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no section '## `{name}`'"
    return found[1]


def options(command: click.Command) -> set[str]:
    return {
        option
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for option in parameter.opts
        if option.startswith("--")
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented_with_its_options_and_no_others(name: str) -> None:
    rows = set(re.findall(r"^\| `(--[\w-]+)[^`]*` \|", section(name), re.MULTILINE))
    assert rows == options(COMMANDS[name])


def test_no_command_is_documented_that_does_not_exist() -> None:
    assert set(re.findall(r"^## `(tidegate [^`]*)`", DOCS, re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("kind", ObstacleKind)
def test_every_obstacle_is_documented(kind: ObstacleKind) -> None:
    assert f"| `{kind}` |" in section("tidegate why")


@pytest.mark.parametrize("kind", EventKind)
def test_every_kind_of_event_is_documented(kind: EventKind) -> None:
    assert f"| `{kind}` |" in section("tidegate history")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("wh", "why"), ("runs sh", "show"), ("hold --r", "--reason"), ("hold serv", "service")],
)
def test_the_shell_completes_commands_and_options(typed: str, offered: str) -> None:
    words = f"tidegate {typed}"
    environment = {
        "_TIDEGATE_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(
        [Path(sys.executable).with_name("tidegate")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"plain,{offered}" in done.stdout.splitlines(), done.stderr
