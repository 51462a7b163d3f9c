"""Maintenance windows in the store: each time of a window places its hold once."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

from dagster_tidegate.holds import Hold, HoldSource, Target, TargetKind
from dagster_tidegate.store import campaigns, holds, windows
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.windows import PlannedWindow
from tests.support.clock import Clock

MAIL = Target(TargetKind.SERVICE, "mail")
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def window(clock: Clock, **values) -> PlannedWindow:
    """One that has begun just now."""
    planned = PlannedWindow(
        "here", "mail", "0 9 * * *", "UTC", 3600, "theirs", clock(), clock() + HOUR
    )
    return replace(planned, **values)


def save(store: Store, *planned: PlannedWindow, location: str = "here") -> None:
    with store.begin() as conn:
        windows.save(conn, location, planned)


def begin(store: Store, begun: PlannedWindow) -> bool:
    following = windows.at(begun, begun.starts_at + DAY, begun.ends_at + DAY)
    with store.begin() as conn:
        return windows.begin(conn, store.now(conn), begun, following)


def stored(store: Store, location: str | None = None) -> Sequence[PlannedWindow]:
    with store.read() as conn:
        return windows.read(conn, None if location is None else [location])


def live(store: Store) -> list[Hold]:
    with store.read() as conn:
        return list(holds.live(conn, store.now(conn)))


def release(store: Store) -> None:
    with store.begin() as conn:
        holds.release(conn, store.now(conn), MAIL, source=HoldSource.OPERATOR, actor="ann")


def test_a_window_places_its_hold_with_its_end_and_moves_on(store: Store, clock: Clock) -> None:
    save(store, window(clock))
    assert begin(store, window(clock))
    [hold] = live(store)
    assert (hold.target, hold.actor, hold.reason) == (MAIL, "window", "theirs")
    assert hold.expires_at == clock() + HOUR
    assert hold.is_of_window
    assert [each.starts_at for each in stored(store)] == [clock() + DAY]


def test_a_hold_that_somebody_released_stays_released_until_the_next_time(
    store: Store, clock: Clock
) -> None:
    first = window(clock)
    save(store, first)
    assert begin(store, first)
    release(store)
    clock.advance(60)
    assert not begin(store, first)
    save(store, first)  # the code is deployed again
    assert not begin(store, first)
    assert live(store) == []
    clock.advance(86400)
    assert begin(store, stored(store)[0])
    assert [hold.actor for hold in live(store)] == ["window"]


def test_of_two_gates_one_places_the_hold(store: Store, clock: Clock) -> None:
    save(store, window(clock))
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: begin(store, window(clock)), range(2)))
    assert sorted(results) == [False, True]


def test_two_code_locations_with_the_same_window_place_one_hold(store: Store, clock: Clock) -> None:
    save(store, window(clock))
    save(store, window(clock, location="there"), location="there")
    assert begin(store, window(clock))
    release(store)
    assert not begin(store, window(clock, location="there"))
    assert live(store) == []


def test_windows_that_overlap_hold_until_the_last_has_ended(store: Store, clock: Clock) -> None:
    long = window(clock, duration_s=7200, ends_at=clock() + 2 * HOUR, reason="long")
    save(store, window(clock), long)
    assert begin(store, long)
    assert begin(store, window(clock))
    [hold] = live(store)
    assert (hold.expires_at, hold.reason) == (clock() + 2 * HOUR, "long")


def test_a_window_that_ended_while_no_gate_worked_holds_nothing(store: Store, clock: Clock) -> None:
    missed = window(clock)
    save(store, missed)
    clock.advance(7200)
    assert not begin(store, missed)
    assert live(store) == []
    assert stored(store)[0].starts_at == missed.starts_at + DAY


def test_only_what_the_code_declares_stays(store: Store, clock: Clock) -> None:
    other = window(clock, service="maps", starts_at=clock() + HOUR, ends_at=clock() + 2 * HOUR)
    save(store, window(clock), other)
    save(store, window(clock, location="there"), location="there")
    later = windows.at(other, clock() + DAY, clock() + DAY + HOUR)
    save(store, replace(later, reason="moved"))
    assert stored(store, "here") == [replace(other, reason="moved")], "its next time is kept"
    with store.begin() as conn:
        campaigns.forget(conn, clock(), "here", actor="ann")
    assert [each.location for each in stored(store)] == ["there"]
