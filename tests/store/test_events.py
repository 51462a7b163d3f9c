"""The audit log: written with the change, read back by what it is about, followed in order."""

from datetime import timedelta

import pytest

from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import (
    campaigns,
    event_reader,
    events,
    history,
    holds,
    runs,
    takeovers,
)
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.store.event_reader import EventReader
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.takeovers import Take, TakeoverKind
from tests.support.clock import Clock


def write(conn: Connection, clock: Clock, name: str, kind: EventKind = EventKind.SERVICE) -> None:
    events.write(conn, clock(), kind=kind, name=name, to_status="open", actor="test")


def names(conn: Connection, **wanted) -> list[str]:
    return [event.name for event in history.read(conn, limit=100, **wanted)]


def test_an_event_is_read_as_it_was_written(store: Store, clock: Clock) -> None:
    values = {
        "kind": EventKind.HOLD,
        "name": "service ü",
        "from_status": "placed",
        "to_status": "changed",
        "reason": 'it\'s "down" \\ 100%',
        "actor": "ana",
        "before": {"reason": None, "n": [1, 2.5, True]},
        "after": {"expires_at": clock().isoformat()},
    }
    token = events.address.set("192.0.2.7")
    try:
        with store.begin() as conn:
            events.write(conn, clock(), **values)
    finally:
        events.address.reset(token)
    with store.read() as conn:
        [event] = history.read(conn, limit=1)
    assert vars(event) == {**values, "id": 1, "at": clock(), "address": "192.0.2.7"}


def test_an_event_goes_with_its_transaction(store: Store, clock: Clock) -> None:
    def fail() -> None:
        with store.begin() as conn:
            write(conn, clock, "mail")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with store.read() as conn:
        assert names(conn) == []


def test_events_are_found_by_what_they_are_about(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        write(conn, clock, "mail")
        write(conn, clock, "Mail")
        write(conn, clock, "mail_")
        target = Target(TargetKind.SERVICE, "mail")
        holds.place(conn, clock(), target, source=HoldSource.OPERATOR, reason="test", actor="ana")
        run = runs.ensure(conn, clock(), "letters", "a/b")
        runs.ensure(conn, clock(), "letters2", "a")
        assert runs.move(conn, clock(), run, RunStatus.CANCELLED, actor="ana")
        for kind, name, label, campaign in (
            (TakeoverKind.POOL, "mail+maps", "mail+maps", None),
            (TakeoverKind.SCHEDULE, "selector", "nightly", "letters"),
        ):
            take = Take(kind, name, label, campaign, "here", former="1", set_to="0")
            takeovers.take(conn, clock(), [take], newest=0)
    with store.read() as conn:
        assert names(conn, name="mail") == ["mail", "service mail", "pool mail+maps"]
        assert names(conn, name="letters") == [
            "letters/a/b",
            "letters/a/b",
            "schedule nightly",
        ]
        assert names(conn, kinds=[EventKind.HOLD, EventKind.TAKEOVER]) == [
            "service mail",
            "pool mail+maps",
            "schedule nightly",
        ]
        assert names(conn, before=3) == ["mail", "Mail"]
        assert names(conn, since=clock() + timedelta(seconds=1)) == []
        assert [event.name for event in history.read(conn, limit=2)] == names(conn)[-2:]


def test_a_pool_that_campaigns_adopt_differently_is_about_all_of_its_services(
    store: Store, clock: Clock
) -> None:
    specs = [
        CampaignSpec(name, "here", "none", ops={"do": "api_pool"}, adopted={"api_pool": [service]})
        for name, service in (("letters", "mail"), ("routes", "maps"))
    ]
    with store.begin() as conn:
        campaigns.save(conn, clock(), "here", specs)
        take = Take(TakeoverKind.POOL, "api_pool", "api_pool", None, "here", "1", set_to="0")
        takeovers.take(conn, clock(), [take], newest=0)
    with store.read() as conn:
        assert names(conn, name="mail") == names(conn, name="maps") == ["pool api_pool"]


def test_a_reader_gets_each_event_once_and_in_order(store: Store, clock: Clock) -> None:
    reader, last, read = EventReader(), 0, []
    for first in range(0, 30, 10):
        with store.begin() as conn:
            for number in range(first, first + 10):
                write(conn, clock, str(number))
        while True:
            with store.read() as conn:
                page = reader.read(conn, after=last, limit=3)
            if not page:
                break
            read += [event.name for event in page]
            last = page[-1].id
    assert read == [str(number) for number in range(30)]
    with store.read() as conn:
        assert event_reader.newest(conn) == last


def test_a_lower_id_that_commits_last_is_not_missed(postgres_url: str, clock: Clock) -> None:
    store, reader = Store(postgres_url, clock=clock), EventReader()

    def follow(after: int = 0) -> list[str]:
        with store.read() as conn:
            return [event.name for event in reader.read(conn, after=after, limit=10)]

    with store.begin() as slow:
        write(slow, clock, "slow")
        with store.begin() as fast:
            write(fast, clock, "fast")
        assert follow() == []
    assert follow() == ["slow", "fast"]
    with store.read() as long:
        names(long)
        with store.begin() as conn:
            write(conn, clock, "beside a reader")
        assert follow(2) == ["beside a reader"]
    store.dispose()
