"""`tidegate tokens`: access to the API and the UI."""

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import click

from dagster_tidegate.cli import console
from dagster_tidegate.cli.connections import explained, open_store
from dagster_tidegate.cli.options import Duration, Words, actor_option, json_option, url_option
from dagster_tidegate.store import tokens as token_rows
from dagster_tidegate.store.tokens import MAX_NAME, Role, Token, TokenError

NEVER = "never"
TOKEN_NAME = Words("name", MAX_NAME)


@click.group()
def tokens() -> None:
    """Create, list and revoke tokens for the API and the UI."""


@tokens.command()
@click.argument("name", type=TOKEN_NAME)
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    required=True,
    help="What it allows. Each role includes those before it.",
)
@click.option(
    "--expires",
    "lifetime",
    type=Duration(or_never=True),
    default="90d",
    show_default=True,
    metavar="DURATION",
    help="Lifetime: 12h, 90d, or never.",
)
@actor_option
@json_option
@url_option
def create(
    name: str, role: str, lifetime: timedelta | None, actor: str, as_json: bool, url: str | None
) -> None:
    """Create a token for NAME and print it on stdout. It is not shown again.

    Changes made with the token are recorded with NAME as their actor.
    """
    store = open_store(url)
    with explained(TokenError), store.begin() as conn:
        now = store.now(conn)
        expires_at = None if lifetime is None else now + lifetime
        token, secret = token_rows.create(
            conn, now, name, Role(role), actor=actor, expires_at=expires_at
        )
    if as_json:
        console.print_json({**_as_dict(token, now), "token": secret})
        return
    click.echo(secret)
    until = console.moment(token.expires_at) or "it is revoked"
    console.say(f"token of {name}, {role}, until {until}; it is not shown again", err=True)


@tokens.command("list")
@json_option
@url_option
def list_(as_json: bool, url: str | None) -> None:
    """List all tokens. Their secrets are not stored."""
    store = open_store(url)
    with explained(), store.read() as conn:
        now = store.now(conn)
        tokens = token_rows.read(conn)
    if as_json:
        console.print_json([_as_dict(token, now) for token in tokens])
        return
    headers = ("name", "role", "status", "expires", "last used", "created by")
    table = console.table("Tokens", *headers, less=("created by",))
    for token in tokens:
        table.add_row(
            token.name,
            token.role,
            console.status(token.status(now)),
            console.moment(token.expires_at) or NEVER,
            console.moment(token.used_at) or NEVER,
            token.created_by,
        )
    console.console().print(table)


@tokens.command()
@click.argument("name", type=TOKEN_NAME)
@actor_option
@url_option
def revoke(name: str, actor: str, url: str | None) -> None:
    """Revoke the token of NAME and end its sessions, within seconds."""
    store = open_store(url)
    with explained(TokenError), store.begin() as conn:
        now = store.now(conn)
        token_rows.revoke(conn, now, name, actor=actor)
        last = not token_rows.any_live(conn, now)
    console.say(f"the token of {name} is revoked")
    if last:
        note = "note: no token is left, and servers still require one: see 'tidegate tokens create'"
        console.say(note, err=True)


def _as_dict(token: Token, now: datetime) -> dict[str, Any]:
    return {**asdict(token), "status": token.status(now)}
