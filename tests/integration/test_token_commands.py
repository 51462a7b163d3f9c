"""Tokens from the command line, and what listens only with one."""

import json

import pytest
import sqlalchemy as sa

from dagster_tidegate.store import history, tokens
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.tokens import Role
from dagster_tidegate.web.access import exposure
from dagster_tidegate.web.access.exposure import ExposedError
from tests.integration.conftest import Run
from tests.support.databases import both_databases

pytestmark = pytest.mark.database_time


@both_databases
def test_a_token_is_made_shown_once_listed_and_revoked(run: Run, store: Store) -> None:
    made = run("tokens", "create", "ana", "--role", "operator", "--actor", "root")
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    assert tokens.SECRET.fullmatch(secret)
    assert len(secret) == len("tdg_") + 43
    assert "token of ana, operator, until" in made.stderr
    assert secret not in made.stderr
    listed = run("tokens", "list")
    assert all(word in listed.output for word in ("ana", "operator", "live", "root"))
    assert secret not in listed.output
    revoked = run("tokens", "revoke", "ana", "--actor", "root")
    assert revoked.stdout == "the token of ana is revoked\n"
    assert "no token is left" in revoked.stderr
    (token,) = json.loads(run("tokens", "list", "--json").stdout)
    assert (token["name"], token["status"], token["revoked_by"]) == ("ana", "revoked", "root")
    with store.read() as conn:
        told = [(e.to_status, e.actor, e.before, e.after) for e in history.read(conn, limit=9)]
        (digest,) = conn.execute(sa.select(t.tokens.c.digest)).scalars()
    values = {"role": "operator", "expires_at": token["expires_at"]}
    assert told == [("created", "root", None, values), ("revoked", "root", values, None)]
    assert digest == tokens.digest(secret) != secret


def test_json_has_the_token_as_an_object(run: Run) -> None:
    made = run("tokens", "create", "ana", "--role", "viewer", "--expires", "never", "--json")
    found = json.loads(made.stdout)
    assert tokens.SECRET.fullmatch(found["token"])
    assert (found["role"], found["expires_at"], found["status"]) == ("viewer", None, "live")
    assert made.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "exit_code", "says"),
    [
        (["create", "ana"], 2, "Missing option '--role'"),
        (["create", "ana", "--role", "root"], 2, "'viewer', 'operator', 'admin'"),
        (["create", "ana", "--role", "viewer", "--expires", "soon"], 2, "use 90s, 30m, 2h or 1d"),
        (["create", "a\nb", "--role", "viewer"], 2, "without control characters"),
        (["create", "a\u202eb", "--role", "viewer"], 2, "without control characters"),
        (["create", "x" * 129, "--role", "viewer"], 2, "the limit is 128"),
        (["create", "Gate", "--role", "viewer"], 1, "use another"),
        (["create", "taken", "--role", "viewer"], 1, "revoke it, or use another name"),
        (["revoke", "nobody"], 1, "see 'tidegate tokens list'"),
    ],
)
def test_a_wrong_command_says_what_would_be_right(
    run: Run, arguments: list[str], exit_code: int, says: str
) -> None:
    run("tokens", "create", "taken", "--role", "viewer")
    result = run("tokens", *arguments)
    assert (result.exit_code, says in result.output) == (exit_code, True), result.output


def test_a_name_is_free_again_after_its_token(run: Run) -> None:
    for _ in range(2):
        assert run("tokens", "create", "ana", "--role", "viewer").exit_code == 0
        assert run("tokens", "revoke", "ana").exit_code == 0
    assert len(json.loads(run("tokens", "list", "--json").stdout)) == 2


def test_beyond_this_machine_a_token_is_needed_which_may_have_ended(
    store: Store,
) -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.53"):
        exposure.check(store, host)
    for host in ("0.0.0.0", "::", "192.0.2.7", "example.org", ""):
        with pytest.raises(ExposedError, match="tidegate tokens create"):
            exposure.check(store, host)
    with store.begin() as conn:
        tokens.create(conn, store.now(conn), "ana", Role.ADMIN, actor="tests")
    exposure.check(store, "0.0.0.0")
    with store.begin() as conn:
        tokens.revoke(conn, store.now(conn), "ana", actor="tests")
    exposure.check(store, "0.0.0.0")  # nobody is let in, and alerts are sent
