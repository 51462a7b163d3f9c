import click
import pytest
from click.testing import CliRunner

from dagster_tidegate.cli import SUBCOMMANDS, main


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_the_help_says_of_a_subcommand_what_the_subcommand_says(name: str):
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name
    assert command.get_short_help_str(200) == SUBCOMMANDS[name]


def test_an_unknown_subcommand_is_wrong_usage():
    with pytest.raises(click.UsageError, match="No such command 'flood'"):
        main(["flood"], standalone_mode=False)


def test_a_misspelt_subcommand_gets_the_right_one_suggested():
    with pytest.raises(click.UsageError, match="No such command 'statsu'; did you mean status"):
        main(["statsu"], standalone_mode=False)


@pytest.mark.parametrize("command", [[], ["status"], ["runs"], ["runs", "show"]])
def test_the_help_has_a_short_option(command: list[str]):
    short, long = (CliRunner().invoke(main, [*command, option]) for option in ("-h", "--help"))
    assert (short.exit_code, short.output) == (0, long.output)
    assert "Usage:" in short.output
