"""`tidegate services`: policies, recent calls and manual overrides of the breakers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click
from rich.console import Console

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.cli import console
from dagster_tidegate.cli import options as o
from dagster_tidegate.cli.connections import explained, loaded, open_store, reading
from dagster_tidegate.cli.holds import effects_of, show_effects, show_notes
from dagster_tidegate.cli.status import why_service
from dagster_tidegate.control import operations
from dagster_tidegate.control.models import ServiceChanged, ServiceDetails, ServiceOut
from dagster_tidegate.control.service_state import service_state
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.why import UnknownNameError
from dagster_tidegate.dagster_api.project import CodeOptions
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.store import service_stats
from dagster_tidegate.store.database import Store
from dagster_tidegate.text import MAX_REASON, length

if TYPE_CHECKING:
    from dagster_tidegate.dagster_api.workspace import Policies


@click.group(cls=o.ListingGroup)
def services() -> None:
    """List services, their policies and recent calls, or override a breaker.

    'tidegate services [NAME]' is 'tidegate services list [NAME]'.
    """


@services.command("list")
@click.argument("name", required=False, type=o.PART, shell_complete=o.completing(o.SERVICE))
@click.option(
    "--no-policies", is_flag=True, help="Skip the policies: loading the code takes seconds."
)
@o.code_options
@o.json_option
@o.url_option
def list_(
    name: str | None, no_policies: bool, code: CodeOptions, as_json: bool, url: str | None
) -> None:
    """List services, their policies and recent calls.

    With NAME, one service with every field of its policy.
    """
    with reading(open_store(url)) as (conn, situation):
        stats = service_stats.read(conn, situation.now)
    policies: Policies = {} if no_policies else _policies(code)
    names = sorted({*situation.services, *policies})
    if name is not None and name not in names:
        raise console.failure(f"no service is named {name!r}; known: {', '.join(names) or 'none'}")
    listed = [
        ServiceDetails.all_of(situation, each, stats.get(each), policies.get(each, {}))
        for each in names
        if name in (None, each)
    ]
    if as_json:
        console.print_json(listed)
        return
    out = console.console()
    _show_stats(out, listed, situation)
    if name is not None:
        _show_verdicts(out, listed[0])
        for used in listed[0].numbers.limits:
            out.print(console.text(f"{used.used} of {used.limit} used"))
        if (budget := situation.budgets.get(name)) is not None:
            out.print(console.text(budget))
        _show_policy(out, name, policies.get(name, {}))
    elif not no_policies:
        _show_rules(out, policies)


@services.command()
@click.argument("name", type=o.PART, shell_complete=o.completing(o.SERVICE))
@click.option(
    "--reason",
    default=operations.REPAIRED,
    show_default=True,
    type=o.Words("reason", MAX_REASON),
    help="What was repaired, for the audit log.",
)
@o.change_options
def repaired(
    name: str, reason: str, dry_run: bool, actor: str, as_json: bool, url: str | None
) -> None:
    """Declare that the cause of a denial is repaired: one trial call checks it.

    If the service still refuses, its breaker opens again.
    """
    store = open_store(url)
    with _changing(store, name, dry_run=dry_run) as change:
        operations.repaired(change.conn, change.now, name, reason=reason, actor=actor)
    show_notes(change, store, Target(TargetKind.SERVICE, name))
    if as_json:
        _print_changed(change, name, dry_run=dry_run)
        return
    verb = "would be tried" if dry_run else "is tried"
    console.say(f"{name} {verb} with one call; if it succeeds, its campaigns resume")


@services.command("keep-closed")
@click.argument("name", type=o.PART, shell_complete=o.completing(o.SERVICE))
@o.reason_option
@o.ending_options("Let it trip again")
@o.change_options
def keep_closed(
    name: str,
    reason: str,
    length: timedelta | None,
    until: datetime | None,
    dry_run: bool,
    actor: str,
    as_json: bool,
    url: str | None,
) -> None:
    """Close the breaker of a service and keep it from tripping.

    Calls continue even if they fail. The breaker's own hold is released.
    """
    o.require_one_ending(length, until)
    target = Target(TargetKind.SERVICE, name)
    store = open_store(url)
    with _changing(store, name, dry_run=dry_run) as change:
        breaker = operations.keep_closed(
            change.conn,
            change.now,
            name,
            reason=reason,
            actor=actor,
            until=o.ending(change.now, length, until),
        )
    show_notes(change, store, target)
    if as_json:
        _print_changed(change, name, dry_run=dry_run)
        return
    end = console.moment(breaker.kept_closed_until) or "'tidegate services let-trip'"
    verb = "would be kept closed" if dry_run else "is kept closed"
    console.say(f"the breaker of {name} {verb} by {actor} until {end}: {reason}")
    if dry_run:
        show_effects(change, target)


@services.command("let-trip")
@click.argument("name", type=o.PART, shell_complete=o.completing(o.SERVICE))
@o.change_options
def let_trip(name: str, dry_run: bool, actor: str, as_json: bool, url: str | None) -> None:
    """Let a breaker that an operator keeps closed trip again."""
    with _changing(open_store(url), name, dry_run=dry_run) as change:
        was_kept = operations.let_trip(change.conn, change.now, name, actor=actor)
    if as_json:
        _print_changed(change, name, dry_run=dry_run)
    elif not was_kept:
        console.say(f"the breaker of {name} is not kept closed")
    else:
        console.say(f"the breaker of {name} {'could' if dry_run else 'can'} trip again")


@contextmanager
def _changing(store: Store, name: str, *, dry_run: bool) -> Iterator[operations.Change]:
    """Open a change of a service's breaker, or raise what is wrong with it for people."""
    target = Target(TargetKind.SERVICE, name)
    with (
        explained(UnknownNameError, operations.NotDeniedError, ValueError),
        operations.changing(store, target, dry_run=dry_run) as change,
    ):
        yield change


def _print_changed(change: operations.Change, name: str, *, dry_run: bool) -> None:
    service = ServiceOut.of(change.after, name)
    campaigns = effects_of(change)
    console.print_json(ServiceChanged(dry_run=dry_run, service=service, campaigns=campaigns))


def _policies(code: CodeOptions) -> "Policies":
    with loaded(code, otherwise="--no-policies") as workspace:
        policies, errors = workspace.policies()
    for location, error in errors.items():
        console.say(f"note: code location {location}: {error}", err=True)
    return policies


def _show_stats(out: Console, listed: Sequence[ServiceDetails], situation: Situation) -> None:
    now = situation.now
    table = console.table(
        "Services", "service", "state", "for", "why", "calls", "failed", "slow", "window",
        "processes", "last failure", "trips in 24 h",
        less=("slow", "processes", "window", "calls", "last failure", "failed", "trips in 24 h"),
    )  # fmt: skip
    for each in listed:
        state, stats = service_state(situation, each.name), each.numbers
        table.add_row(
            each.name,
            console.status(state.status),
            length(now - state.since) if state.since else "",
            why_service(state, situation.breakers.get(each.name)),
            stats.ok + stats.failed,
            console.text(stats.failed or "", "red"),
            stats.slow or "",
            length(now - stats.since) if stats.since else "",
            stats.workers or "",
            f"{length(now - stats.last_failed_at)} ago" if stats.last_failed_at else "",
            stats.trips or "",
        )
    out.print(table if listed else "no services: none is in the store or in a policy")


def _show_verdicts(out: Console, service: ServiceDetails) -> None:
    verdicts = service.numbers.verdicts
    all_ = sum(verdicts.values())
    table = console.table("Verdicts, last hour", "verdict", "calls", "share")
    for kind, count in verdicts.items():
        table.add_row(kind, count, f"{count / all_:.1%}" if count else "")
    out.print(table if all_ else f"no calls of {service.name} in the last hour")


def _show_rules(out: Console, policies: "Policies") -> None:
    table = console.table("Policies", "service", "trips at", "stays open", "probed by", "ramp")
    for name, by_location in sorted(policies.items()):
        for location, policy in by_location.items():
            several = len(by_location) > 1
            table.add_row(
                f"{name} ({location})" if several else name,
                ", ".join(_rules(policy)),
                f"{policy.reset_timeout_s:g} to {policy.reset_timeout_cap_s:g} s",
                policy.probe_url or "a canary run",
                f"a step every {policy.ramp_interval_s:g} s" if policy.ramp_interval_s else "none",
            )
    out.print(table)


def _show_policy(out: Console, name: str, policies: Mapping[str, ServicePolicy]) -> None:
    for location, policy in policies.items():
        title = f"Policy of {name} in {location}"
        table = console.table(title, "field", "value", "meaning")
        for field, info in type(policy).model_fields.items():
            table.add_row(field, getattr(policy, field), info.description)
        out.print(table)


def _rules(policy: ServicePolicy) -> list[str]:
    """Return the rules by which a breaker trips."""
    window = f"in {policy.window_s:g} s"
    rules = []
    if policy.consecutive_failures is not None:
        rules.append(f"{policy.consecutive_failures} failures in a row")
    if policy.window_failures is not None:
        rules.append(f"{policy.window_failures} failures {window}")
    if policy.failure_rate is not None:
        rules.append(f"{policy.failure_rate:.0%} of calls failed {window}")
    if policy.slow_call_rate is not None:
        slow_s = policy.slow_call_s
        slow = "much slower than usual" if slow_s is None else f"over {slow_s:g} s"
        rules.append(f"{policy.slow_call_rate:.0%} of calls {slow} {window}")
    return rules
