"""Takeovers: one gate takes a thing over, and each change works on one version."""

import sqlalchemy as sa

from dagster_tidegate.store import tables as t
from dagster_tidegate.store import takeovers
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.takeovers import Take, Takeover, TakeoverKind, TakeoverOutcome
from tests.support.clock import Clock


def take(store: Store, clock: Clock, *, former: str = "5", newest: int = 0) -> list[Takeover]:
    with store.begin() as conn:
        return takeovers.take(conn, clock(), [pool("mail", former)], newest=newest)


def pool(name: str, former: str = "5") -> Take:
    return Take(TakeoverKind.POOL, name, name, None, "here", former=former, set_to="0")


def taken(store: Store, clock: Clock) -> Takeover:
    [takeover] = take(store, clock)
    return takeover


def test_only_one_of_two_gates_takes_a_thing_over(store: Store, clock: Clock):
    first = taken(store, clock)
    assert (first.pending, first.version, first.set_from, first.set_to) == (True, 1, "5", "0")
    assert take(store, clock) == []
    with store.read() as conn:
        assert takeovers.live(conn) == [first]


def test_a_value_that_another_gate_wrote_meanwhile_is_not_taken_for_the_former_one(
    store: Store, clock: Clock
):
    with store.read() as conn:
        newest = takeovers.newest_id(conn)
    # Another gate takes the pool over, ramps it, and is done, after this one has read the store
    # and before or while it looks at Dagster.
    other = taken(store, clock)
    with store.begin() as conn:
        assert takeovers.end(conn, clock(), other, TakeoverOutcome.RESTORED)
    assert take(store, clock, former="1", newest=newest) == []
    assert take(store, clock, former="5", newest=other.id) != []


def test_of_several_things_those_are_taken_over_that_no_other_gate_has(store: Store, clock: Clock):
    held = taken(store, clock)
    with store.begin() as conn:
        takes = [pool("maps"), pool("mail"), pool("ads")]
        maps, ads = takeovers.take(conn, clock(), takes, newest=held.id)
    assert (maps.name, ads.name) == ("maps", "ads")
    with store.begin() as conn:
        takeovers.written(conn, [held, ads])
    with store.read() as conn:
        live = takeovers.live(conn)
        assert {each.name: each.pending for each in live} == {
            "mail": False,
            "maps": True,
            "ads": False,
        }
        events = conn.scalars(sa.select(t.events.c.name).order_by(t.events.c.id)).all()
    assert events == ["pool mail", "pool maps", "pool ads"]


def test_who_knows_an_older_version_changes_nothing(store: Store, clock: Clock):
    old = taken(store, clock)
    with store.begin() as conn:
        takeovers.written(conn, [old])
    with store.read() as conn:
        [new] = takeovers.live(conn)
    assert (new.pending, new.version) == (False, old.version + 1)
    with store.begin() as conn:
        takeovers.written(conn, [old])
        assert takeovers.intend(conn, clock(), old, value="0", set_to="1") is None
        assert takeovers.leave(conn, clock(), old, "7") is None
        assert not takeovers.end(conn, clock(), old, TakeoverOutcome.RESTORED)
    with store.read() as conn:
        assert takeovers.live(conn) == [new]


def test_a_value_that_dagster_has_already_is_not_pending(store: Store, clock: Clock):
    takeover = taken(store, clock)
    with store.begin() as conn:
        takeover = takeovers.intend(conn, clock(), takeover, value="0", set_to="0")
        assert takeover is not None
        assert not takeover.pending
        takeover = takeovers.intend(
            conn, clock(), takeover, value="0", set_to="1", ramp_step_at=clock()
        )
    assert takeover is not None
    assert (takeover.pending, takeover.ramp_step_at) == (True, clock())


def test_every_change_that_a_person_would_ask_about_is_an_event(store: Store, clock: Clock):
    takeover: Takeover | None = taken(store, clock)
    with store.begin() as conn:
        assert takeover is not None
        takeover = takeovers.leave(conn, clock(), takeover, "7")
        assert takeover is not None
        assert takeover.left_at == clock()
        takeovers.end(conn, clock(), takeover, TakeoverOutcome.LEFT_TO_OPERATOR)
    with store.read() as conn:
        rows = conn.execute(sa.select(t.events).order_by(t.events.c.id)).all()
        assert takeovers.live(conn) == []
    assert [(row.name, row.from_status, row.to_status) for row in rows] == [
        ("pool mail", "5", "0"),
        ("pool mail", "0", "7"),
        ("pool mail", "0", "left_to_operator"),
    ]
    assert {row.actor for row in rows} == {"gate"}
