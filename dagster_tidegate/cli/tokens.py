"""`tidegate tokens`: who may use the API and the pages."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import click

from dagster_tidegate.cli import output
from dagster_tidegate.cli.reading import explained, open_store, url_option
from dagster_tidegate.cli.target import Duration, Words, actor_option
from dagster_tidegate.store import tokens as kept
from dagster_tidegate.store.tokens import MAX_NAME, Token, TokenError
from dagster_tidegate.web.access.identity import Role

NEVER = "never"
TOKEN_NAME = Words("name", MAX_NAME)


class _Lifetime(click.ParamType):
    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta | None:
        return None if value == NEVER else Duration().convert(value, param, ctx)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        with explained():
            yield
    except TokenError as error:
        raise click.ClickException(output.text(error).plain) from error


@click.group()
def tokens() -> None:
    """Make, list and revoke the tokens of the API and the pages."""


@tokens.command()
@click.argument("name", type=TOKEN_NAME)
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    required=True,
    help="What it allows; each role may also do what those before it may.",
)
@click.option(
    "--expires",
    "lifetime",
    type=_Lifetime(),
    default="90d",
    show_default=True,
    metavar="DURATION",
    help="How long it lasts: 12h, 90d, or never.",
)
@actor_option
@output.json_option
@url_option
def create(
    name: str, role: str, lifetime: timedelta | None, actor: str, as_json: bool, url: str | None
) -> None:
    """Make a token for NAME, and print it on stdout, this once.

    NAME is the actor of all that is done with it.
    """
    store = open_store(url)
    with _explained(), store.begin() as conn:
        now = store.now(conn)
        expires_at = None if lifetime is None else now + lifetime
        token, secret = kept.create(conn, now, name, Role(role), actor=actor, expires_at=expires_at)
    if as_json:
        output.print_json({**_as_dict(token, now), "token": secret})
        return
    click.echo(secret)
    until = output.moment(token.expires_at) or "it is revoked"
    said = f"token of {name}, {role}, until {until}. It is not shown again."
    click.echo(output.text(said).plain, err=True)


@tokens.command("list")
@output.json_option
@url_option
def list_(as_json: bool, url: str | None) -> None:
    """List the tokens that were made; their secrets are nowhere."""
    store = open_store(url)
    with _explained(), store.read() as conn:
        now = store.now(conn)
        found = kept.read(conn)
    if as_json:
        output.print_json([_as_dict(token, now) for token in found])
        return
    headers = ("name", "role", "status", "expires", "last used", "made by")
    table = output.table("Tokens", *headers, less=("made by",))
    for token in found:
        table.add_row(
            output.text(token.name),
            output.text(token.role),
            output.status(token.status(now)),
            output.text(output.moment(token.expires_at) or NEVER),
            output.text(output.moment(token.used_at) or NEVER),
            output.text(token.created_by),
        )
    output.console().print(table)


@tokens.command()
@click.argument("name", type=TOKEN_NAME)
@actor_option
@url_option
def revoke(name: str, actor: str, url: str | None) -> None:
    """End the token of NAME and the sessions begun with it, within seconds."""
    store = open_store(url)
    with _explained(), store.begin() as conn:
        now = store.now(conn)
        kept.revoke(conn, now, name, actor=actor)
        last = not kept.any_live(conn, now)
    click.echo(output.text(f"the token of {name} is revoked").plain)
    if last:
        click.echo("note: no token is left; servers go on asking for one", err=True)


def _as_dict(token: Token, now: datetime) -> dict[str, Any]:
    return {**asdict(token), "status": token.status(now)}
