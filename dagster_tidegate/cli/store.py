"""`tidegate store`: the state database, its schema and its size."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli.connections import explained, named_store, open_store
from dagster_tidegate.cli.options import (
    Duration,
    actor_option,
    change_options,
    url_option,
    yes_option,
)
from dagster_tidegate.control import situation
from dagster_tidegate.store import campaigns, compatibility, events, retention, schema
from dagster_tidegate.store.database import shown_url
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.text import did_you_mean, length, shown, utc, words


@click.group()
def store() -> None:
    """Create, upgrade and maintain the state database."""


@store.command()
@url_option
@click.argument("revision", default="head")
def upgrade(url: str | None, revision: str) -> None:
    """Create the state database, or upgrade it to REVISION (default: the newest)."""
    opened = named_store(url)
    with explained():
        schema.upgrade(opened, revision)
        click.echo(f"{shown_url(opened.url)} is at {schema.current(opened)}")


@store.command()
@url_option
@yes_option
@click.argument("revision")
def downgrade(url: str | None, yes: bool, revision: str) -> None:
    """Downgrade the state database to REVISION; 'base' drops every table with its data."""
    opened = named_store(url)
    with explained():
        schema.require_revision(revision)
    if not yes:
        click.confirm(
            f"Downgrade {shown_url(opened.url)} to {revision}? This deletes data", abort=True
        )
    with explained():
        schema.downgrade(opened, revision)
        click.echo(f"{shown_url(opened.url)} is at {schema.current(opened) or 'base'}")


@store.command()
@url_option
def current(url: str | None) -> None:
    """Print the revision of the state database; exit code 1 if this version can't use it."""
    opened = named_store(url)
    with explained():
        revision = schema.current(opened)
        click.echo(f"{revision or 'none'} (this version needs {compatibility.REVISION})")
        schema.require_compatible(opened)


class Kept(click.ParamType):
    """Retention of one kind of row: `events=30d`, `ledgers=forever`."""

    name = "kind=age"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, timedelta | None]:
        """Return the kind and the age; None keeps rows forever."""
        if isinstance(value, tuple):
            return value
        kind, _, age = value.partition("=")
        if kind not in retention.KINDS:
            self.fail(f"{kind!r} is not a kind: use {', '.join(retention.KINDS)}", param, ctx)
        if age == "forever":
            return kind, None
        return kind, timedelta(0) if age == "0" else Duration().convert(age, param, ctx)


@store.command()
@click.option(
    "--keep",
    "kept",
    type=Kept(),
    multiple=True,
    help="Retention of a kind: events=30d, ledgers=forever, sessions=0. Repeatable.",
)
@change_options
def prune(
    url: str | None,
    kept: Sequence[tuple[str, timedelta | None]],
    dry_run: bool,
    actor: str,
    as_json: bool,
) -> None:
    """Delete expired history: ledgers, events, released holds and so on.

    The breaker sensor also prunes, a little at each tick, as configured by its `keep`. If a
    campaign run is executed again after its ledger was deleted, all of its records are processed
    again.
    """
    opened = open_store(url)
    with explained(ValueError):
        keep = retention.Keep(**dict(kept))
    with explained():
        with opened.read() as conn:
            now = opened.now(conn)
            counts = dict(retention.count(conn, now, keep)) if dry_run else {}
        more = not dry_run
        while more:  # ends, because each round deletes something
            pruned = retention.prune(opened, now, keep, batches=100)
            for kind, deleted in pruned.deleted.items():
                counts[kind] = counts.get(kind, 0) + deleted
            more = pruned.more
        if not dry_run and any(counts.values()):
            with opened.begin() as conn:
                events.write(
                    conn,
                    opened.now(conn),
                    kind=EventKind.PRUNE,
                    name="store",
                    to_status="pruned",
                    reason=", ".join(f"{count} {kind}" for kind, count in counts.items() if count),
                    actor=actor,
                )
    if as_json:
        console.print_json({"dry_run": dry_run, "deleted": counts})
        return
    for kind, deleted in counts.items():
        age = getattr(keep, kind)
        would = "would be deleted" if dry_run else "deleted"
        click.echo(f"{words(kind)}: {deleted} {would}, older than {length(age)}")


@store.command()
@click.argument("location")
@yes_option
@actor_option
@url_option
def forget(location: str, yes: bool, actor: str, url: str | None) -> None:
    """Forget a removed code location and its campaigns.

    Its gate is then no longer reported as stale. Campaign runs and history are kept. If the
    location comes back, its gate registers its campaigns again.
    """
    opened = open_store(url)
    if not yes:
        click.confirm(shown(f"Forget {location} and its campaigns?"), abort=True)
    with explained(), opened.begin() as conn:
        current = situation.read(conn, opened.now(conn))
        beats = {each.location: each for each in current.heartbeats if not current.stale(each.at)}
        locations = {each.location for each in current.heartbeats}
        locations |= {each.spec.location for each in current.campaigns.values()}
        problem = None
        if location not in locations:
            hint = did_you_mean(location, locations, "see 'tidegate campaigns --json'")
            problem = f"no code location is named {location!r}; {hint}"
        elif location in beats:
            problem = (
                f"the gate of {location} is running: its {beats[location].part} sensor finished a "
                f"tick at {utc(beats[location].at)}. Remove the code location from Dagster first"
            )
        if problem is not None:
            raise console.failure(problem)
        names = campaigns.forget(conn, current.now, location, actor=actor)
    console.say(f"forgot {location} and its campaigns: {', '.join(names) or 'none'}")
