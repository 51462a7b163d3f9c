"""`tidegate services`: the policies of the services, and what the fleet saw of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.cli import output
from dagster_tidegate.cli.completion import SERVICE, names
from dagster_tidegate.cli.deployment import loaded, workspace_option
from dagster_tidegate.cli.overview import ServiceView
from dagster_tidegate.cli.reading import open_store, reading, url_option
from dagster_tidegate.cli.target import NAME
from dagster_tidegate.control.models import ServiceDetails
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.store import service_stats
from dagster_tidegate.text import length

if TYPE_CHECKING:
    from dagster_tidegate.dagster_api.workspace import Policies


@click.command()
@click.argument("name", required=False, type=NAME, shell_complete=names(SERVICE))
@click.option(
    "--no-policies", is_flag=True, help="Leave the code locations alone: this is much faster."
)
@workspace_option
@output.json_option
@url_option
def services(
    name: str | None, no_policies: bool, workspace: Path, as_json: bool, url: str | None
) -> None:
    """List the services: policies, and what the fleet saw of them.

    With NAME one service, with every rule of its policy. The policies are in the code, so that the
    code locations are loaded; the numbers are in the store.
    """
    with reading(open_store(url)) as (conn, seen):
        counted = service_stats.read(conn, seen.now)
    policies: Policies = {} if no_policies else _policies(workspace)
    known = sorted({*seen.services, *policies})
    if name is not None and name not in known:
        listed = ", ".join(known) or "none"
        message = f"no service is named {name!r}; known are {listed}"
        raise click.ClickException(output.text(message).plain)
    found = [
        ServiceDetails.all_of(seen, each, counted.get(each), policies.get(each, {}))
        for each in known
        if name in (None, each)
    ]
    if as_json:
        output.print_json(found)
        return
    out = output.console()
    _show_numbers(out, found, seen)
    if name is not None:
        _show_policy(out, name, policies.get(name, {}))
    elif not no_policies:
        _show_rules(out, policies)


def _policies(path: Path) -> "Policies":
    with loaded(path, otherwise="--no-policies") as (_, workspace):
        found, troubles = workspace.policies()
    for location, trouble in troubles.items():
        note = f"note: code location {location}: {trouble}"
        click.echo(output.text(note).plain, err=True)
    return found


def _show_numbers(out: Console, found: Sequence[ServiceDetails], situation: Situation) -> None:
    now = situation.now
    table = output.table(
        "Services", "service", "state", "for", "why", "calls", "failed", "slow", "of the last",
        "processes", "last failure", "trips in 24 h",
        less=(
            "slow", "processes", "of the last", "calls", "last failure", "failed", "trips in 24 h",
        ),
    )  # fmt: skip
    for each in found:
        view, seen = ServiceView(situation, each.name), each.numbers
        table.add_row(
            output.text(each.name),
            output.status(view.state),
            length(now - view.since) if view.since else "",
            view.why(),
            str(seen.ok + seen.failed),
            output.text(seen.failed or "", "red"),
            str(seen.slow or ""),
            length(now - seen.since) if seen.since else "",
            str(seen.workers or ""),
            f"{length(now - seen.last_failed_at)} ago" if seen.last_failed_at else "",
            str(seen.trips or ""),
        )
    out.print(table if found else "the store knows no service, and no code location has a policy")


def _show_rules(out: Console, policies: "Policies") -> None:
    table = output.table("Policies", "service", "trips at", "then waits", "is tried by", "ramp")
    for name, by_location in sorted(policies.items()):
        for where, policy in by_location.items():
            several = len(by_location) > 1
            table.add_row(
                output.text(f"{name} ({where})" if several else name),
                output.text(", ".join(rules(policy))),
                f"{policy.reset_timeout_s:g} to {policy.reset_timeout_cap_s:g} s",
                output.text(policy.probe_url or "one run, the canary"),
                f"a step each {policy.ramp_interval_s:g} s" if policy.ramp_interval_s else "none",
            )
    out.print(table)


def _show_policy(out: Console, name: str, policies: Mapping[str, ServicePolicy]) -> None:
    for where, policy in policies.items():
        table = output.table(f"Policy of {name} in {where}", "field", "value", "meaning")
        for field, info in type(policy).model_fields.items():
            value = getattr(policy, field)
            shown = "" if value is None else value
            table.add_row(output.text(field), output.text(shown), output.text(info.description))
        out.print(table)


def rules(policy: ServicePolicy) -> list[str]:
    """Return when the breaker of a service trips, for people."""
    window = f"in {policy.window_s:g} s"
    found = []
    if policy.consecutive_failures is not None:
        found.append(f"{policy.consecutive_failures} failures in a row")
    if policy.window_failures is not None:
        found.append(f"{policy.window_failures} failures {window}")
    if policy.failure_rate is not None:
        found.append(f"{policy.failure_rate:.0%} of calls failed {window}")
    if policy.slow_call_rate is not None:
        found.append(f"{policy.slow_call_rate:.0%} of calls over {policy.slow_call_s:g} s {window}")
    return found
