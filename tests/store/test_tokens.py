"""Tokens and sessions: who they belong to, and when they no longer let anybody in."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from dagster_tidegate.store import history, sessions, tokens
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.tokens import Holder, Role, TokenError
from tests.support.clock import Clock


def create(store: Store, clock: Clock, name: str = "ana", **values) -> str:
    with store.begin() as conn:
        return tokens.create(conn, clock(), name, Role.OPERATOR, actor="root", **values)[1]


def holder(store: Store, clock: Clock, secret: str) -> Holder | None:
    with store.read() as conn:
        return tokens.holder(conn, clock(), tokens.digest(secret))


def test_a_token_belongs_to_its_holder_until_it_is_revoked(store: Store, clock: Clock) -> None:
    with store.read() as conn:
        assert not tokens.any_created(conn)
    secret = create(store, clock)
    assert holder(store, clock, secret) == Holder(1, "ana", Role.OPERATOR, None)
    assert holder(store, clock, secret + "x") is None
    with store.begin() as conn:
        tokens.mark_used(conn, clock(), 1)
        [token] = tokens.read(conn)
        assert (token.used_at, token.status(clock())) == (clock(), "live")
        assert tokens.any_live(conn, clock())
        tokens.revoke(conn, clock(), "ana", actor="root")
        assert not tokens.any_live(conn, clock())
        assert tokens.any_created(conn)
        with pytest.raises(TokenError, match="no live token"):
            tokens.revoke(conn, clock(), "ana", actor="root")
        steps = [(event.to_status, event.actor) for event in history.read(conn, limit=9)]
    assert holder(store, clock, secret) is None
    assert steps == [("created", "root"), ("revoked", "root")]


def test_a_secret_is_nowhere_in_the_store(store: Store, clock: Clock) -> None:
    secret = create(store, clock)
    with store.begin() as conn:
        begun = sessions.begin(conn, clock(), secret, timedelta(hours=1))
        assert begun is not None
        for table in (t.tokens, t.sessions, t.events):
            rows = str(conn.execute(sa.select(table)).all())
            assert secret not in rows
            assert begun[0] not in rows


def test_a_name_is_taken_until_its_token_expires(store: Store, clock: Clock) -> None:
    create(store, clock, expires_at=clock() + timedelta(minutes=1))
    with pytest.raises(TokenError, match="exists already"):
        create(store, clock)
    clock.advance(60)
    secret = create(store, clock)
    assert holder(store, clock, secret) is not None


def test_a_session_ends_with_logout_expiry_or_its_token(store: Store, clock: Clock) -> None:
    secret = create(store, clock, expires_at=clock() + timedelta(hours=2))

    def begin(length: timedelta = timedelta(hours=1)) -> str:
        with store.begin() as conn:
            begun = sessions.begin(conn, clock(), secret, length)
        assert begun is not None
        assert begun[1] == min(clock() + length, token_ends)
        return begun[0]

    def is_live(session: str) -> bool:
        with store.read() as conn:
            return tokens.holder_of_session(conn, clock(), tokens.digest(session)) is not None

    token_ends = clock() + timedelta(hours=2)
    left, expired, long = begin(), begin(), begin(timedelta(days=1))
    assert is_live(left)
    assert is_live(expired)
    assert is_live(long)
    with store.begin() as conn:
        sessions.end(conn, clock(), left, actor="ana")
        sessions.end(conn, clock(), left, actor="ana")
        assert len(history.read(conn, kinds=["session"], limit=9)) == 4
    assert not is_live(left)
    assert is_live(expired)
    clock.advance(3600)
    assert not is_live(expired)
    assert is_live(long)
    with store.begin() as conn:
        tokens.revoke(conn, clock(), "ana", actor="root")
        assert sessions.begin(conn, clock(), secret, timedelta(hours=1)) is None
    assert not is_live(long)
