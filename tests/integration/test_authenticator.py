"""How long what the store said of a token is believed, with a clock that the test moves."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from dagster_tidegate.store import sessions, tokens
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.tokens import Role
from dagster_tidegate.web.access.authenticator import MAX_AGE_S, REFRESH_S, Authenticator, Kind
from tests.support.databases import both_databases


class Seconds:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def secret(store: Store) -> str:
    with store.begin() as conn:
        return tokens.create(conn, store.now(conn), "ana", Role.OPERATOR, actor="tests")[1]


@pytest.fixture
def authenticator(store: Store, seconds: Seconds) -> Authenticator:
    return Authenticator(store, refusals=10, clock=seconds)


def name(authenticator: Authenticator, secret: str) -> str | None:
    found = asyncio.run(authenticator.holder(Kind.TOKEN, secret, "192.0.2.7"))
    return None if found is None else found.name


def lose(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make the store one that can't be read; returns how often it was asked."""
    asked: list[str] = []

    def read() -> Any:
        asked.append("read")
        raise OperationalError("SELECT", {}, Exception("away"))

    monkeypatch.setattr(store, "read", read)
    return asked


@both_databases
def test_while_the_store_is_away_a_token_is_believed_for_a_moment_only(
    authenticator: Authenticator,
    store: Store,
    secret: str,
    seconds: Seconds,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert name(authenticator, secret) == "ana"
    asked = lose(store, monkeypatch)
    seconds.now += REFRESH_S - 0.1
    assert name(authenticator, secret) == "ana"
    assert asked == []
    seconds.now += 0.1
    with pytest.raises(OperationalError):  # one request asks
        name(authenticator, secret)
    assert name(authenticator, secret) == "ana"  # and the others need not
    assert asked == ["read"]
    seconds.now += MAX_AGE_S - REFRESH_S
    for _ in range(2):
        with pytest.raises(OperationalError):
            name(authenticator, secret)


def test_a_token_that_is_revoked_is_known_until_the_store_is_asked_again(
    authenticator: Authenticator, store: Store, secret: str, seconds: Seconds
) -> None:
    assert name(authenticator, secret) == "ana"
    with store.begin() as conn:
        tokens.revoke(conn, store.now(conn), "ana", actor="tests")
    seconds.now += REFRESH_S
    assert name(authenticator, secret) is None
    assert not asyncio.run(authenticator.still(Kind.TOKEN, secret))


def test_once_there_was_a_token_one_is_needed(
    authenticator: Authenticator, store: Store, seconds: Seconds, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not asyncio.run(authenticator.needed())
    with store.begin() as conn:
        now = store.now(conn)
        tokens.create(conn, now, "ana", Role.VIEWER, actor="tests")
        tokens.revoke(conn, now, "ana", actor="tests")
    assert not asyncio.run(authenticator.needed())  # it was asked just now
    seconds.now += REFRESH_S
    assert asyncio.run(authenticator.needed())
    lose(store, monkeypatch)
    seconds.now += 10 * MAX_AGE_S
    assert asyncio.run(authenticator.needed())


def test_without_a_store_nobody_is_let_in_without_a_token(
    authenticator: Authenticator, store: Store, seconds: Seconds, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not asyncio.run(authenticator.needed())
    lose(store, monkeypatch)
    seconds.now += MAX_AGE_S
    with pytest.raises(OperationalError):
        asyncio.run(authenticator.needed())


def test_a_session_ends_with_its_token_at_the_latest(store: Store) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        ends = now + timedelta(minutes=5)
        secret = tokens.create(conn, now, "ana", Role.VIEWER, actor="tests", expires_at=ends)[1]
        for length, expected in ((1, now + timedelta(minutes=1)), (60, ends)):
            begun = sessions.begin(conn, now, secret, timedelta(minutes=length))
            assert begun is not None
            assert begun[1] == expected
        assert sessions.begin(conn, ends, secret, timedelta(minutes=1)) is None


def test_what_is_over_is_not_kept(store: Store, secret: str) -> None:
    def kept() -> int:
        with store.read() as conn:
            return conn.execute(sa.select(sa.func.count()).select_from(t.sessions)).scalar_one()

    with store.begin() as conn:
        now = store.now(conn)
        minute = timedelta(minutes=1)
        sessions.begin(conn, now, secret, minute)
        sessions.begin(conn, now + minute, secret, minute)
    assert kept() == 1
    with store.begin() as conn:
        tokens.revoke(conn, store.now(conn), "ana", actor="tests")
    assert kept() == 0
