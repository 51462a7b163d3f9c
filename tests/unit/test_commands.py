import click
import pytest

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
