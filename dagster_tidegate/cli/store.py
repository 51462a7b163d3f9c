"""`tidegate store`: the schema of the store."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import click
from alembic.util import CommandError

from dagster_tidegate.cli import output
from dagster_tidegate.cli.output import json_option, print_json
from dagster_tidegate.cli.reading import explained, named_store, open_store, url_option
from dagster_tidegate.cli.target import Duration, actor_option
from dagster_tidegate.control import situation
from dagster_tidegate.store import campaigns, compatibility, events, retention, schema
from dagster_tidegate.store.database import shown_url
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.text import did_you_mean, length, utc


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors of the database into one line that a person can act on."""
    try:
        with explained():
            yield
    except CommandError as error:
        raise click.ClickException(str(error)) from error


@click.group()
def store() -> None:
    """Make, upgrade and inspect the store."""


@store.command()
@url_option
@click.argument("revision", default="head")
def upgrade(url: str | None, revision: str) -> None:
    """Bring the store up to REVISION (default: the newest)."""
    opened = named_store(url)
    with _explained():
        schema.upgrade(opened, revision)
        click.echo(f"{shown_url(opened.url)} is at {schema.current(opened)}")


@store.command()
@url_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("revision")
def downgrade(url: str | None, yes: bool, revision: str) -> None:
    """Bring the store down to REVISION; 'base' removes every table and what it holds."""
    opened = named_store(url)
    if not yes:
        click.confirm(f"Take {shown_url(opened.url)} down to {revision}? Data is lost", abort=True)
    with _explained():
        schema.downgrade(opened, revision)
        click.echo(f"{shown_url(opened.url)} is at {schema.current(opened) or 'base'}")


@store.command()
@url_option
def current(url: str | None) -> None:
    """Print the store's revision, and whether this version works with it. Exit code 1 if not."""
    opened = named_store(url)
    with _explained():
        found = schema.current(opened)
        click.echo(f"{found or 'none'} (this version needs {compatibility.REVISION})")
        schema.require_compatible(opened)


class Kept(click.ParamType):
    """How long one kind of what is over is kept: `events=30d`, `ledgers=forever`."""

    name = "kind=age"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, timedelta | None]:
        """Return the kind and the age, None for ever.

        Raises:
            click.BadParameter: If it is none.
        """
        if isinstance(value, tuple):
            return value
        kind, _, age = value.partition("=")
        if kind not in retention.KINDS:
            self.fail(f"{kind!r} is not kept; there are: {', '.join(retention.KINDS)}", param, ctx)
        if age == "forever":
            return kind, None
        return kind, timedelta(0) if age == "0" else Duration().convert(age, param, ctx)


@store.command()
@url_option
@click.option(
    "--keep",
    "kept",
    type=Kept(),
    multiple=True,
    help="Keep a kind for so long: events=30d, ledgers=forever, sessions=0. May be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Only say how many rows would be deleted.")
@actor_option
@json_option
def prune(
    url: str | None,
    kept: Sequence[tuple[str, timedelta | None]],
    dry_run: bool,
    actor: str,
    as_json: bool,
) -> None:
    """Delete what has been over for long: ledgers, events, released holds and so on.

    The breaker sensor does so by itself, a little at a time, as its `keep` says. A campaign run
    whose ledger was deleted can't be executed again.
    """
    opened = open_store(url)
    keep = retention.Keep(**dict(kept))
    with _explained():
        with opened.read() as conn:
            now = opened.now(conn)
            found = dict(retention.count(conn, now, keep)) if dry_run else {}
        more = not dry_run
        while more:  # each round deletes something, so that it ends
            pruned = retention.prune(opened, now, keep, batches=100)
            for kind, deleted in pruned.deleted.items():
                found[kind] = found.get(kind, 0) + deleted
            more = pruned.more
        if not dry_run and any(found.values()):
            with opened.begin() as conn:
                events.write(
                    conn,
                    opened.now(conn),
                    kind=EventKind.PRUNE,
                    name="store",
                    to_status="pruned",
                    reason=", ".join(f"{count} {kind}" for kind, count in found.items() if count),
                    actor=actor,
                )
    if as_json:
        print_json({"dry_run": dry_run, "deleted": found})
        return
    for kind, deleted in found.items():
        age = getattr(keep, kind)
        would = "would be deleted" if dry_run else "deleted"
        click.echo(f"{kind.replace('_', ' ')}: {deleted} {would}, over for more than {length(age)}")


@store.command()
@click.argument("location")
@click.option("--yes", is_flag=True, help="Do not ask.")
@actor_option
@url_option
def forget(location: str, yes: bool, actor: str, url: str | None) -> None:
    """Forget the code location LOCATION, which is gone for good, and its campaigns.

    Nothing calls its gate stale then. Campaign runs and the history stay. A location that comes
    back tells of its campaigns again.
    """
    opened = open_store(url)
    if not yes:
        click.confirm(output.text(f"Forget {location} and its campaigns?").plain, abort=True)
    with _explained(), opened.begin() as conn:
        seen = situation.read(conn, opened.now(conn))
        beats = {each.location: each for each in seen.heartbeats if not seen.stale(each.at)}
        known = {each.location for each in seen.heartbeats}
        known |= {each.spec.location for each in seen.campaigns.values()}
        problem = None
        if location not in known:
            hint = did_you_mean(location, known, "see 'tidegate campaigns --json'")
            problem = f"no code location is named {location!r}; {hint}"
        elif location in beats:
            problem = (
                f"the gate of {location} is at work: its sensor {beats[location].part} finished at "
                f"{utc(beats[location].at)}. Remove the code location from Dagster first"
            )
        if problem is not None:
            raise click.ClickException(output.text(problem).plain)
        names = campaigns.forget(conn, seen.now, location, actor=actor)
    said = f"{location} is forgotten, with {', '.join(names) or 'no campaigns'}"
    click.echo(output.text(said).plain)
