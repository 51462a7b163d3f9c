"""A PostgreSQL server that hangs holds up nobody without bound."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.store import compatibility, postgres, schema
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import UNREACHABLE, Store
from tests.support.failing_service import Down, fail
from tests.support.polling import wait_until


class Proxy:
    """Stands before a server, and can stop to forward while it keeps its connections."""

    def __init__(self, server: sa.URL) -> None:
        self.server = server
        self.flows = threading.Event()
        self.flows.set()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.sockets: list[socket.socket] = [self.listening]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> sa.URL:
        port = self.listening.getsockname()[1]
        return self.server.set(host="127.0.0.1", port=port, query={})

    def close(self) -> None:
        self.flows.set()
        for each in self.sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listening.accept()
                behind = self._connect()
                self.sockets += [client, behind]
                for ends in ((client, behind), (behind, client)):
                    threading.Thread(target=self._forward, args=ends, daemon=True).start()

    def _connect(self) -> socket.socket:
        host = self.server.normalized_query.get("host", (self.server.host or "127.0.0.1",))[0]
        port = self.server.port or int(self.server.normalized_query.get("port", ("5432",))[0])
        if not os.path.isabs(host):
            return socket.create_connection((host, port))
        behind = socket.socket(socket.AF_UNIX)
        behind.connect(str(Path(host) / f".s.PGSQL.{port}"))
        return behind

    def _forward(self, reader: socket.socket, writer: socket.socket) -> None:
        with suppress(OSError):
            while read := reader.recv(1 << 16):
                self.flows.wait()
                writer.sendall(read)


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    proxy = Proxy(sa.make_url(postgres_url))
    yield proxy
    proxy.close()


def test_a_call_does_not_wait_for_a_server_that_hangs(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(postgres, "ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setattr(postgres, "CONNECT_TIMEOUT_S", 2)
    store = Store(proxy.url.render_as_string(hide_password=False))
    fleet = Fleet(SqlBackend(store), [ServicePolicy(name="openai", consecutive_failures=50)])
    breaker = fleet.breaker("openai")
    listening = sa.text("SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN tidegate'")
    with store.read() as conn, store.read() as other:
        for _ in range(200):
            if conn.scalar(listening):
                break
            conn.rollback()
            fleet.wait_for_change(0.05)
        other.scalar(listening)
    # Both are idle in the pool: the watcher takes one, the call another.
    proxy.flows.clear()
    raised: list[BaseException] = []

    def call() -> None:
        try:
            breaker.call(fail)
        except BaseException as error:  # noqa: BLE001 - looked at below
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(60)
    assert [type(error) for error in raised] == [Down]
    assert fleet.snapshot().degraded
    proxy.flows.set()
    wait_until(lambda: not fleet.snapshot().degraded)
    fleet.close()
    store.dispose()


def test_a_statement_that_takes_too_long_counts_as_a_lost_store(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(postgres, "STATEMENT_TIMEOUT_S", 0.2)
    store = Store(f"{postgres_url}{'&' if '?' in postgres_url else '?'}options=-cwork_mem%3D2MB")
    with pytest.raises(UNREACHABLE, match="statement timeout"), store.begin() as conn:
        conn.execute(sa.text("SELECT pg_sleep(5)"))
    with store.read() as conn:
        assert conn.scalar(sa.text("SHOW work_mem")) == "2MB", "the URL's own options hold"
    store.dispose()


def test_a_transaction_of_a_machine_that_is_gone_ends(
    monkeypatch: pytest.MonkeyPatch, make_database: Callable[[], sa.URL]
) -> None:
    monkeypatch.setattr(postgres, "IDLE_TIMEOUT_S", 0.2)
    url = make_database().render_as_string(hide_password=False)
    gone, watching = Store(url), Store(url)
    open_ones = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'idle in transaction'"
    )
    silent = gone.engine.connect()
    silent.execute(sa.text("SELECT 1"))
    with watching.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        wait_until(lambda: conn.scalar(open_ones) == 0)
    silent.invalidate()
    for store in (gone, watching):
        store.dispose()


def test_a_server_that_permits_no_writes_counts_as_a_lost_store(postgres_url: str):
    option = "options=-cdefault_transaction_read_only%3Don"
    store = Store(f"{postgres_url}{'&' if '?' in postgres_url else '?'}{option}")
    fleet = Fleet(SqlBackend(store), [ServicePolicy(name="openai")])
    with pytest.raises(UNREACHABLE, match="read-only"), store.begin() as conn:
        conn.execute(sa.text("DELETE FROM holds"))
    with pytest.raises(Down):
        fleet.breaker("openai").call(fail)
    assert fleet.snapshot().degraded
    fleet.close()
    store.dispose()


def test_a_transaction_that_the_server_ended_counts_as_a_lost_store(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(postgres, "IDLE_TIMEOUT_S", 0.1)
    store = Store(postgres_url)
    with store.engine.connect() as conn:
        conn.execute(sa.text("SELECT 1"))
        time.sleep(0.5)  # as if the process had been stopped
        with pytest.raises(UNREACHABLE, match="idle-in-transaction"):
            conn.execute(sa.text("SELECT 1"))
    with store.begin() as conn:
        assert conn.scalar(sa.text("SELECT 1")) == 1
    store.dispose()


def test_a_migration_takes_as_long_as_it_needs(
    make_database: Callable[..., sa.URL], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(postgres, "STATEMENT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(postgres, "ANSWER_TIMEOUT_S", 0.3)
    url = make_database()
    store, other = Store(url.render_as_string(hide_password=False)), sa.create_engine(url)
    with other.begin() as conn:
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(postgres.MIGRATION_LOCK)))
        migration = threading.Thread(target=schema.upgrade, args=(store,))
        migration.start()
        migration.join(1)
        assert migration.is_alive()
    migration.join(20)
    assert schema.current(store) == compatibility.REVISION
    with pytest.raises(UNREACHABLE), store.begin() as conn:
        conn.execute(sa.text("SELECT pg_sleep(5)"))
    store.dispose()
    other.dispose()
