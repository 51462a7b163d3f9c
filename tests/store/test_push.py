import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from dagster_tidegate.store import push
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store


@pytest.fixture
def waker() -> Iterator[push.Waker]:
    waker = push.Waker()
    yield waker
    waker.close()


@pytest.fixture
def listener(store_url: str, waker: push.Waker) -> Iterator[push.Listener]:
    store = Store(store_url)
    listener = push.listen(store.engine, waker)
    yield listener
    listener.close()
    store.dispose()


def test_a_change_is_heard_when_it_is_committed(store: Store, listener: push.Listener):
    with store.begin() as conn:
        push.notify(conn)
        assert not listener.wait(0.1)
    assert listener.wait(60)
    assert not listener.wait(0)


def test_a_change_that_is_rolled_back_is_not_heard(store: Store, listener: push.Listener):
    with suppress(RuntimeError), store.begin() as conn:
        push.notify(conn)
        raise RuntimeError
    with store.begin() as conn:
        conn.execute(sa.select(t.services))
    assert not listener.wait(0.2)


def test_other_writing_is_not_heard(store: Store, listener: push.Listener):
    with store.begin() as conn:
        conn.execute(t.services.insert().values(name="openai", changed_at=store.now(conn)))
    assert not listener.wait(0.2)


def test_a_wait_can_be_ended(listener: push.Listener, waker: push.Waker):
    began = time.monotonic()
    threading.Timer(0.1, waker.wake).start()
    assert not listener.wait(60)
    assert time.monotonic() - began < 30


def test_the_file_beside_a_sqlite_database_stays_small(sqlite_url: str, waker: push.Waker):
    store = Store(sqlite_url)
    path = Path(f"{store.url.database}-push")
    path.write_bytes(b"." * (push.MAX_FILE_BYTES - 1))
    listener = push.listen(store.engine, waker)
    for _ in range(3):
        push.touch(store.engine)
        assert listener.wait(60)
    assert path.stat().st_size <= 2
    listener.close()
    store.dispose()


def test_a_file_that_can_not_be_written_costs_a_warning_and_no_commit(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
):
    store = Store(sqlite_url)
    path = Path(f"{store.url.database}-push")
    path.mkdir()  # as unwritable for root as another user's file is for the rest
    for name in ("openai", "apollo"):
        with store.begin() as conn:
            conn.execute(t.services.insert().values(name=name, changed_at=store.now(conn)))
            push.notify(conn)
    with store.read() as conn:
        assert len(conn.execute(sa.select(t.services)).all()) == 2
    assert caplog.text.count("can't notify other processes at once") == 1
    store.dispose()


def test_who_may_write_the_database_may_tell_of_it(sqlite_url: str):
    store = Store(sqlite_url)
    database = Path(str(store.url.database))
    database.chmod(0o660)
    umask = os.umask(0o077)
    try:
        push.touch(store.engine)
    finally:
        os.umask(umask)
    assert Path(f"{database}-push").stat().st_mode & 0o777 == 0o660
    store.dispose()
