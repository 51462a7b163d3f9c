"""The `tidegate` command. Each subcommand has a module, imported when it is used."""

from importlib import import_module

import click

SUBCOMMANDS = {
    "status": "Show what is paused, since when, and why.",
    "why": "Say why a service, campaign, run or Dagster run is paused, or that it is not.",
    "hold": "Hold a service, a campaign, a run (campaign/partition) or everything.",
    "release": "Release what operators hold: a service, a campaign, a run or everything.",
    "start": "Start a run of a campaign, or say why it can't start.",
    "campaigns": "List the campaigns: what they need, and how their runs are.",
    "runs": "List campaign runs and how far they are; show one with all that went wrong.",
    "services": "List the services: policies, and what the fleet saw of them.",
    "history": "List who changed what, when and why.",
    "doctor": "Check Dagster and the store, and say what to do about what is wrong.",
    "serve": "Serve the API and Dagster's pages on one port, until Ctrl-C.",
    "alerts": "Tell people what happens, and show what they were told.",
    "tokens": "Make, list and revoke the tokens of the API and the pages.",
    "store": "Make, upgrade and inspect the store.",
    "config": "Show the settings that are in force here, and where each comes from.",
}
"""What the help says of each subcommand, so that it needs to import none."""


class _Subcommands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click passes it
        return list(SUBCOMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 -- click passes it
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        return getattr(import_module(f"dagster_tidegate.cli.{cmd_name}"), cmd_name)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 -- click passes it
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))


@click.group(
    cls=_Subcommands,
    epilog="Exit codes: 0 done; 1 it failed, and the message says why and what to do; 2 the "
    "command line is wrong.",
)
@click.version_option(package_name="dagster-tidegate", prog_name="tidegate")
@click.pass_context
def main(context: click.Context) -> None:
    """Pause campaigns when a third-party service fails, and resume them when it recovers."""
    from dagster_tidegate.settings import problems  # help needs none of what it imports

    # A misspelt variable would mean another store than the fleet's.
    if context.invoked_subcommand != "config" and (found := problems()):
        raise click.ClickException("\n".join([*found, "'tidegate config' shows all settings"]))
