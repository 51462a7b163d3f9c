"""The stream of events: none is left out, whoever commits first, and whoever comes back."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from dagster_tidegate.store import events
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.event_reader import EventReader
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.web.api import stream
from tests.integration.api import MAX_S, Api
from tests.integration.api import api_on_port as api
from tests.support.databases import both_databases

AT = datetime(2026, 3, 1, tzinfo=UTC)


def final(store: Store, reader: EventReader) -> int:
    with store.read() as conn:
        return reader.final(conn)


def write(store: Store, name: str) -> None:
    with store.begin() as conn:
        events.write(conn, AT, kind=EventKind.HOLD, name=name, to_status="placed", actor="ana")


class Following:
    """Reads a stream of events."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.iter_lines()

    def next(self) -> tuple[int, str]:
        """Return the id and the name of the next event."""
        found: dict[str, str] = {}
        for line in self._lines:
            if not line and "data" in found:
                told: dict[str, Any] = json.loads(found["data"])
                assert (told["id"], told["kind"]) == (int(found["id"]), found["event"])
                return told["id"], told["name"]
            field, _, value = line.partition(": ")
            found[field] = value
        raise AssertionError("the stream ended")


@contextmanager
def following(asked: Api, after: int | None = None, query: str = "") -> Iterator[Following]:
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    # An event that never comes is a failure after so long.
    timeout = httpx.Timeout(MAX_S)
    with asked.client.stream(
        "GET", f"/api/v1/events/stream{query}", headers=headers, timeout=timeout
    ) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Following(answer)


@both_databases
def test_events_come_as_they_are_written_and_after_where_one_left_off(store: Store) -> None:
    write(store, "before")
    with api(store) as asked:
        with following(asked) as stream:
            write(store, "first")
            assert stream.next() == (2, "first")
            write(store, "second")
            assert stream.next() == (3, "second")
        write(store, "while away")
        with following(asked, after=2) as stream:
            assert [stream.next() for _ in range(2)] == [(3, "second"), (4, "while away")]
        with following(asked, after=0) as stream:
            assert stream.next() == (1, "before")
        with following(asked, query="?after=3") as stream:
            assert stream.next() == (4, "while away")
        with following(asked, after=2, query="?after=3") as stream:
            assert stream.next() == (3, "second"), "a browser connects again at the same address"


@both_databases
def test_many_events_at_once_come_in_order_and_once(store: Store) -> None:
    many = 2 * stream.PAGE + 3
    with store.begin() as conn:
        for number in range(many):
            events.write(
                conn, AT, kind=EventKind.HOLD, name=str(number), to_status="placed", actor="ana"
            )
    with api(store) as asked, following(asked, after=0) as found:
        assert [found.next() for _ in range(many)] == [(n + 1, str(n)) for n in range(many)]


def test_a_higher_id_that_commits_first_waits_for_the_lower(postgres_url: str) -> None:
    store = Store(postgres_url)
    with api(store) as asked, following(asked, after=0) as stream:
        with store.begin() as slow:
            events.write(
                slow, AT, kind=EventKind.HOLD, name="slow", to_status="placed", actor="ana"
            )
            write(store, "fast")  # id 2, committed before id 1
        assert [stream.next() for _ in range(2)] == [(1, "slow"), (2, "fast")]
    store.dispose()


def test_the_end_of_the_events_is_known_exactly(postgres_url: str) -> None:
    store = Store(postgres_url)
    reader = EventReader()
    write(store, "one")
    assert final(store, reader) == 1
    with store.begin() as slow:
        events.write(slow, AT, kind=EventKind.HOLD, name="slow", to_status="placed", actor="ana")
        write(store, "fast")
        assert final(store, reader) == 1
        assert final(store, reader) == 1
        # Who came later does not hold back what was there before.
        other = store.engine.connect()
        other.begin()
    events.write(other, AT, kind=EventKind.HOLD, name="later", to_status="placed", actor="ana")
    write(store, "last")
    assert final(store, reader) == 3
    assert final(store, reader) == 3
    other.rollback()
    other.close()
    assert final(store, reader) == 5  # 4 will never be
    store.dispose()


def test_who_only_reads_for_long_holds_nothing_back(postgres_url: str) -> None:
    store = Store(postgres_url)
    with store.read() as reader:
        reader.exec_driver_sql("SELECT * FROM events")
        write(store, "one")
        assert final(store, EventReader()) == 1
    store.dispose()


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_streams_are_bounded_and_those_that_went_are_not_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = threading.Semaphore(0)
    leave = stream.Feed.leave

    def tell_leave(feed: stream.Feed) -> None:
        leave(feed)
        left.release()

    monkeypatch.setattr(stream.Feed, "leave", tell_leave)
    monkeypatch.setattr(stream, "MAX_STREAMS", 2)
    with api(store) as asked:
        for _ in range(3):
            with following(asked), following(asked):
                problem = asked.get("/events/stream", expect=503)
                assert problem["code"] == "too_many_streams"
            for _ in range(2):
                assert left.acquire(timeout=60)


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_stream_ends_by_itself_and_says_that_it_is_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MAX_S", 1.0)
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.1)
    with api(store) as asked:
        text = asked.client.get("/api/v1/events/stream").text
        assert text.startswith("retry: ")
        assert "\n:\n\n" in text
        for wrong in ("x", "-1", str(2**63)):
            headers = {"Last-Event-ID": wrong}
            answer = asked.client.get("/api/v1/events/stream", headers=headers)
            assert answer.json()["code"] == "invalid"
