"""`tidegate windows`: the maintenance windows of services."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli import options as o
from dagster_tidegate.cli.connections import explained, open_store, reading
from dagster_tidegate.cli.status import warnings
from dagster_tidegate.control import operations
from dagster_tidegate.control.models import WindowOut, WindowsChanged
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.windows import BY_HAND, PlannedWindow
from dagster_tidegate.text import did_you_mean, length, utc

SERVICE = click.argument("service", type=o.PART, shell_complete=o.completing(o.SERVICE))


@click.group(cls=o.ListingGroup)
def windows() -> None:
    """List the maintenance windows of services, add or remove one.

    'tidegate windows' is 'tidegate windows list'.
    """


@windows.command("list")
@o.json_option
@o.url_option
def list_(as_json: bool, url: str | None) -> None:
    """List the maintenance windows of services, the next one first."""
    with reading(open_store(url)) as (_, situation):
        pass
    if as_json:
        console.print_json([WindowOut.model_validate(each) for each in situation.windows])
        return
    table = console.table(
        "Maintenance windows", "service", "begins", "in", "lasts", "cron", "time zone", "reason",
        less=("time zone", "cron"),
    )  # fmt: skip
    for window in situation.windows:
        table.add_row(
            window.service,
            window.starts_at,
            length(window.starts_at - situation.now),
            length(timedelta(seconds=window.duration_s)),
            window.cron,
            window.timezone,
            window.reason,
        )
    out = console.console()
    out.print(table if situation.windows else "no maintenance windows")
    for hold in situation.holds:
        if hold.is_of_window:
            until = console.moment(hold.expires_at)
            out.print(console.text(f"now: {hold.target} until {until} ({hold.reason})", "yellow"))
    for warning in warnings(situation):
        out.print(warning)


@windows.command()
@SERVICE
@click.option(
    "--cron",
    required=True,
    type=o.Words("cron expression", 128),
    help="When it begins: five fields, as for Dagster's schedules.",
)
@click.option("--for", "duration", required=True, type=o.Duration(), help="How long it lasts: 2h.")
@click.option(
    "--timezone",
    default="UTC",
    show_default=True,
    type=o.Words("time zone", 64),
    help="Time zone of the cron expression.",
)
@o.reason_option
@o.change_options
def add(
    service: str,
    cron: str,
    duration: timedelta,
    timezone: str,
    reason: str,
    dry_run: bool,
    actor: str,
    as_json: bool,
    url: str | None,
) -> None:
    """Hold SERVICE at recurring times, until they are removed.

    Adding the same times again replaces the reason.
    """
    from dagster_tidegate.gate.windows import planned  # Dagster is slow to import

    seconds = round(duration.total_seconds())
    with _changing(service, url, dry_run=dry_run) as (conn, now):
        window = planned(now, BY_HAND, service, cron, timezone, seconds, reason)
        operations.add_window(conn, now, window, actor=actor)
    if as_json:
        _print_changed([window], dry_run=dry_run)
    else:
        pauses = "would pause" if dry_run else "pauses"
        console.say(
            f"{service} {pauses} at {utc(window.starts_at)} for {length(duration)}, then at "
            f"{cron!r} ({timezone}): {reason}"
        )


@windows.command()
@SERVICE
@click.option(
    "--cron",
    type=o.Words("cron expression", 128),
    help="Only the windows with this cron expression.  [default: all of the service]",
)
@o.change_options
def remove(
    service: str, cron: str | None, dry_run: bool, actor: str, as_json: bool, url: str | None
) -> None:
    """Remove the windows of SERVICE that were added by hand.

    If a window has begun, SERVICE stays held until its end, unless you release it.
    """
    with _changing(service, url, dry_run=dry_run) as (conn, now):
        removed_windows = operations.remove_windows(conn, now, service, cron, actor=actor)
    if as_json:
        _print_changed(removed_windows, dry_run=dry_run)
    if not removed_windows:
        raise console.failure(
            f"{service} has no such window that was added by hand; one that 'tidegate windows' "
            "lists and that is declared in the code is removed there"
        )
    for window in removed_windows:
        if not as_json:
            removed = "would be removed" if dry_run else "is removed"
            console.say(f"the window of {service} at {window.cron!r} {removed}: {window.reason}")


@contextmanager
def _changing(
    service: str, url: str | None, *, dry_run: bool
) -> Iterator[tuple[Connection, datetime]]:
    """Open a change of the windows of a service, or raise what is wrong with it for people."""
    store = open_store(url)
    with reading(store) as (_, situation):
        known = situation.services
    if service not in known:
        hint = did_you_mean(service, known, f"known: {', '.join(sorted(known)) or 'none'}")
        raise console.failure(f"no service is named {service!r}; {hint}")
    with explained(ValueError), operations.writing(store, dry_run=dry_run) as conn:
        yield conn, store.now(conn)


def _print_changed(changed: Sequence[PlannedWindow], *, dry_run: bool) -> None:
    windows = [WindowOut.model_validate(window) for window in changed]
    console.print_json(WindowsChanged(dry_run=dry_run, windows=windows))
