"""The `tidegate` command. The module of a subcommand is imported when it is used."""

from importlib import import_module

import click

SUBCOMMANDS = {
    "status": "Show what is paused, since when, and why.",
    "why": "Explain why a service, campaign, run or Dagster run is paused.",
    "hold": "Hold a service, a campaign, a run (campaign/partition) or everything.",
    "release": "Release operators' holds on a service, a campaign, a run or everything.",
    "start": "Start a run of a campaign, or say why it can't start.",
    "campaigns": "List campaigns: their services, runs and holds.",
    "runs": "List campaign runs and their progress, or show one in detail.",
    "records": "List the records of campaign runs, grouped by error; retry or skip them.",
    "services": "List services, their policies and recent calls, or override a breaker.",
    "budgets": "List the budgets of services, and how much of each is spent.",
    "windows": "List the maintenance windows of services, add or remove one.",
    "history": "List changes: who, what, when and why.",
    "detach": "Restore everything that the gate changed in Dagster, and stop the gate.",
    "init": "Write the settings that Tidegate needs into the instance's dagster.yaml.",
    "report": "Report outages: when, why, what was paused, who did what.",
    "doctor": "Check Dagster, the store and the code locations, and suggest fixes.",
    "runbook": "Show what an alert or a finding means, and what to do about it.",
    "dev": "Run Dagster's UI, its daemon and the API on this machine until Ctrl-C.",
    "serve": "Serve the API and the Dagster UI on one port until Ctrl-C.",
    "alerts": "List alerts, test their targets, or send alerts.",
    "tokens": "Create, list and revoke tokens for the API and the UI.",
    "store": "Create, upgrade and maintain the state database.",
    "config": "Show the settings in effect and where each comes from.",
}
"""The help of each subcommand, so that `tidegate --help` imports none of them."""
MODULES = {"hold": "holds", "release": "holds", "start": "runs"}


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
        module = import_module(f"dagster_tidegate.cli.{MODULES.get(cmd_name, cmd_name)}")
        return getattr(module, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in SUBCOMMANDS and not ctx.resilient_parsing:
            from dagster_tidegate.text import did_you_mean

            hint = did_you_mean(args[0], SUBCOMMANDS, "'tidegate --help' lists them")
            ctx.fail(f"No such command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 -- click passes it
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))


@click.group(
    cls=_Subcommands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 success; 1 failure, with the reason and the fix on stderr; 2 invalid "
    "command line.",
)
@click.version_option(package_name="dagster-tidegate", prog_name="tidegate")
@click.pass_context
def main(context: click.Context) -> None:
    """Pause campaigns when a third-party service fails, and resume them when it recovers."""
    from dagster_tidegate.cli.connections import read_environment  # not needed for help
    from dagster_tidegate.settings import problems

    read_environment()
    # With a misspelt variable, a command could use another store than the fleet does.
    if context.invoked_subcommand != "config" and (wrong := problems()):
        raise click.ClickException("\n".join([*wrong, "'tidegate config' shows all settings"]))
