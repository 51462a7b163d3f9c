"""Holds in the store: harmless twice, released by their owner, over when their time is."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from dagster_tidegate.holds import EVERYTHING, Hold, HoldSource, Target, TargetKind
from dagster_tidegate.store import holds
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store

INSTANTLY = Target(TargetKind.SERVICE, "instantly")


def place(store: Store, target: Target = INSTANTLY, **kwargs) -> Hold:
    defaults = {"source": HoldSource.OPERATOR, "reason": "maintenance", "actor": "ana"}
    with store.begin() as conn:
        return holds.place(conn, store.now(conn), target, **{**defaults, **kwargs})


def release(store: Store, target: Target = INSTANTLY, **kwargs) -> list[Hold]:
    defaults = {"source": HoldSource.OPERATOR, "actor": "ana"}
    with store.begin() as conn:
        return holds.release(conn, store.now(conn), target, **{**defaults, **kwargs})


def live(store: Store) -> list[Hold]:
    with store.read() as conn:
        return list(holds.live(conn, store.now(conn)))


def happened(store: Store) -> list[tuple[str, str]]:
    with store.read() as conn:
        rows = conn.execute(sa.select(t.events).order_by(t.events.c.id))
        return [(row.to_status, row.actor) for row in rows]


def test_placing_twice_is_harmless(store: Store) -> None:
    assert place(store).id == place(store).id
    assert len(live(store)) == 1
    assert happened(store) == [("placed", "ana")]


def test_who_places_a_hold_again_changes_its_reason_and_its_end(store: Store, clock) -> None:
    first = place(store, expires_at=clock() + timedelta(hours=1))
    later = place(store, reason="still at it", expires_at=clock() + timedelta(hours=3))
    assert (later.id, later.placed_at, later.reason) == (first.id, first.placed_at, "still at it")
    clock.advance(2 * 3600)
    assert live(store) == [later]
    assert place(store, reason="still at it").expires_at is None
    clock.advance(2 * 3600)
    assert [hold.id for hold in live(store)] == [first.id]
    assert happened(store) == [("placed", "ana"), ("changed", "ana"), ("changed", "ana")]


def test_two_people_and_a_breaker_place_three_holds(store: Store) -> None:
    place(store)
    place(store, actor="bo")
    place(store, source=HoldSource.BREAKER, actor="breaker", reason="503 x5")
    assert len(live(store)) == 3


def test_the_recovery_of_a_breaker_leaves_the_operators_hold(store: Store) -> None:
    place(store)
    place(store, source=HoldSource.BREAKER, actor="breaker", reason="503 x5")
    release(store, source=HoldSource.BREAKER, actor="breaker")
    assert [hold.actor for hold in live(store)] == ["ana"]


def test_the_breakers_hold_is_not_released_without_its_breaker(store: Store) -> None:
    place(store, source=HoldSource.BREAKER, actor="breaker", reason="503 x5")
    with pytest.raises(holds.NotYourHoldError, match=r"held by breaker \(503 x5\)"):
        release(store)
    assert len(live(store)) == 1


def test_releasing_what_is_not_held_is_harmless(store: Store) -> None:
    assert release(store, EVERYTHING) == []


def test_what_two_release_at_once_is_released_once(store: Store, clock) -> None:
    hold = place(store)
    [released] = release(store, actor="bo")
    assert (released.id, released.released_at, released.released_by) == (hold.id, clock(), "bo")
    with store.begin() as conn:
        assert holds.end(conn, store.now(conn), [hold], actor="ana") == []  # as it was before
    assert happened(store) == [("placed", "ana"), ("released", "bo")]


def test_a_hold_ends_by_itself_and_the_record_says_so(store: Store, clock) -> None:
    place(store, expires_at=clock() + timedelta(hours=2))
    clock.advance(7199)
    assert len(live(store)) == 1
    clock.advance(1)
    assert live(store) == []
    with store.begin() as conn:
        assert holds.expire(conn, store.now(conn)) == 1
        assert holds.expire(conn, store.now(conn)) == 0
    assert happened(store)[-1] == ("expired", "expiry")


def test_a_hold_can_be_placed_again_after_it_expired(store: Store, clock) -> None:
    first = place(store, expires_at=clock() + timedelta(seconds=1))
    clock.advance(2)
    assert place(store).id != first.id


@pytest.mark.parametrize("reason", ["", "   "])
def test_a_hold_without_a_reason_is_refused(store: Store, reason: str) -> None:
    with pytest.raises(ValueError, match="needs a reason"):
        place(store, reason=reason)


def test_a_hold_that_would_be_over_already_is_refused(store: Store, clock) -> None:
    with pytest.raises(ValueError, match="can't expire"):
        place(store, expires_at=clock())


def test_many_who_place_the_same_hold_at_once_get_the_same_one(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: place(store).id, range(16)))
    assert len(set(found)) == 1


def test_a_hold_that_is_released_while_it_is_placed_again_is_placed(store: Store) -> None:
    place(store)
    released = []

    def release_in_between(_conn, _cursor, statement, *_rest) -> None:
        # PostgreSQL lets another in between; SQLite lets one write at a time.
        if statement.startswith("INSERT INTO holds") and not released:
            released.append(True)
            if not store.is_sqlite:
                release(store)

    event.listen(store.engine, "after_cursor_execute", release_in_between)
    try:
        place(store, reason="maintenance")
    finally:
        event.remove(store.engine, "after_cursor_execute", release_in_between)
    assert released
    assert [hold.reason for hold in live(store)] == ["maintenance"]
