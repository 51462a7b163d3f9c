"""The database that the fleet shares: connections, transactions and its clock."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection as Connection
from sqlalchemy import event, exc
from sqlalchemy.exc import DataError as DataError

from dagster_tidegate.settings import GeneralSettings, load
from dagster_tidegate.store import push
from dagster_tidegate.store.json_text import json_text

URL_VARIABLE = "TIDEGATE_STORE_URL"
FILE = "tidegate.db"
"""Name of the embedded store's file."""
BUSY_RETRY_S = 0.02
BUSY_TIMEOUT_S = 30.0
SERVER_CONNECTIONS = 10
"""Connections to PostgreSQL for a server, which handles many requests at once."""
StoreError = exc.SQLAlchemyError
"""Anything that goes wrong with the database."""
UNREACHABLE = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError)
"""Raised when the database can't be reached, or does not answer."""
UNUSABLE = (*UNREACHABLE, exc.ProgrammingError)
"""The same, and where the database refuses what the URL says."""
DamagedError = exc.DatabaseError
"""Raised, itself and no kind of it, where a file is damaged, or is no database at all."""
DATABASE_ERRORS = (exc.DBAPIError, exc.TimeoutError)
"""Everything that the database raises."""


def why_unreachable(error: Exception) -> str:
    """Return in one line why the database can't be reached."""
    why = error.orig if isinstance(error, exc.StatementError) else error
    return " ".join(str(why).split())


def configured_url() -> str | None:
    """Return the store's URL from `TIDEGATE_STORE_URL`; None: the store is embedded."""
    url = load(GeneralSettings).store_url
    return None if url is None else url.get_secret_value()


def embedded_url(home: str | None = None) -> str:
    """Return the URL of the SQLite file in `DAGSTER_HOME`.

    Args:
        home: The storage directory of a Dagster instance, for where DAGSTER_HOME is not set:
            `dg dev` then has a temporary one.

    Raises:
        ValueError: If there is no such directory, or DAGSTER_HOME is not an absolute path.
    """
    named = os.environ.get("DAGSTER_HOME", "")
    directory = Path(named or home or "").expanduser()
    if not directory.is_absolute():
        problem = f"it is {named!r}, not an absolute path" if named else "it is not set"
        start = "" if named else "start dg dev or tidegate dev in the project, "
        raise ValueError(
            f"there is nowhere to put the state database: {start}set DAGSTER_HOME to the directory "
            f"of the Dagster instance ({problem}), or set {URL_VARIABLE} to a database URL"
        )
    return f"sqlite:///{directory / FILE}"


def locate(url: str | None = None, home: str | None = None) -> tuple[str, bool]:
    """Return the URL of the store, and whether it is embedded: nobody named one.

    Args:
        url: The store that the caller names; None: the one of `TIDEGATE_STORE_URL`.
        home: As for `embedded_url`.

    Raises:
        ValueError: If there is nowhere to put it.
    """
    named = url or configured_url()
    return named or embedded_url(home), named is None


def read_url(url: str | sa.URL) -> sa.URL:
    """Parse a store's URL.

    Raises:
        ValueError: If it can't be parsed.
    """
    try:
        parsed = sa.make_url(url)
        if "@" in (parsed.host or ""):  # then this is the end of the password
            raise ValueError
        return parsed
    except (exc.ArgumentError, ValueError):
        # The cause may quote a part of the password.
        raise ValueError(
            "the store's URL is invalid: percent-encode special characters in the user name and "
            "password, such as @ : / ?, and use a number as the port"
        ) from None


def shown_url(url: str | sa.URL) -> str:
    """Return a store's URL without its password.

    Example:
        >>> shown_url("postgresql://tide:hunter2@db/tide?passfile=/run/pass")
        'postgresql://tide:***@db/tide'
    """
    try:
        return read_url(url).difference_update_query(["password", "passfile"]).render_as_string()
    except ValueError:
        return "an invalid URL"


class Store:
    """The database that the fleet shares.

    Args:
        url: SQLAlchemy URL of a SQLite or PostgreSQL database.
        clock: Returns the time (UTC) instead of the database; for tests.
        connections: How many connections to PostgreSQL stay open.
        embedded: Whether nobody named it, so that it is created on first use
            (`schema.make_ready`).

    Raises:
        ValueError: If the URL can't be parsed, is of another kind of database, or of PostgreSQL
            without its driver.

    Example:
        >>> store = Store("sqlite://")
        >>> with store.begin() as conn:
        ...     store.now(conn).tzinfo
        datetime.timezone.utc
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], datetime] | None = None,
        connections: int = 2,
        embedded: bool = False,
    ) -> None:
        self.url = read_url(url)
        self.embedded = embedded
        dialect = self.url.get_backend_name()
        if dialect not in ("sqlite", "postgresql"):
            raise ValueError(f"the store can't be {dialect}: use sqlite or postgresql")
        # psycopg 3, also where the URL names no driver: it supports LISTEN.
        if self.url.drivername == "postgresql":
            self.url = self.url.set(drivername="postgresql+psycopg")
        try:
            self.engine = self._create_engine(connections)
        except exc.ArgumentError as error:
            raise ValueError(str(error)) from error
        self.clock = clock
        self._writing = threading.Lock()

    @classmethod
    def of_environment(cls, url: str | None = None, *, connections: int = 2) -> "Store":
        """Return the store of a URL, else the one that the environment names.

        Raises:
            ValueError: If there is nowhere to put it, or the URL can't be used here.
        """
        located, embedded = locate(url)
        return cls(located, connections=connections, embedded=embedded)

    def _create_engine(self, connections: int) -> sa.Engine:
        if self.url.get_backend_name() == "sqlite":
            return _sqlite_engine(self.url)
        try:
            from dagster_tidegate.store import postgres  # its driver is an extra
        except ImportError as error:
            raise ValueError(
                f"PostgreSQL needs an extra ({error}): pip install 'dagster-tidegate[postgres]'"
            ) from error
        return postgres.create_engine(self.url, connections=connections)

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is SQLite."""
        return self.engine.dialect.name == "sqlite"

    @property
    def has_clock(self) -> bool:
        """Whether the database is asked for the time, and not this process."""
        return self.clock is None and not self.is_sqlite

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """Open a write transaction. It commits at the end, and rolls back on an error."""
        with self._one_writer(), self.engine.begin() as conn:
            push.pending(conn)  # left by a transaction that was rolled back
            yield conn
            if changed := push.pending(conn):
                push.announce(conn)
        if changed:
            push.touch(self.engine)

    @contextmanager
    def _one_writer(self) -> Iterator[None]:
        """Let the threads of a process write one at a time on SQLite.

        Its own busy handler sleeps longer and longer, so that some of many writers would wait for
        seconds.
        """
        if not self.is_sqlite:
            yield
            return
        if not self._writing.acquire(timeout=BUSY_TIMEOUT_S):
            raise exc.TimeoutError(f"other threads have been writing for {BUSY_TIMEOUT_S:g} s")
        try:
            yield
        finally:
            self._writing.release()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a read transaction. It waits for no writer."""
        with self.engine.connect().execution_options(tidegate_read=True) as conn:
            yield conn

    def evidence(self) -> sa.Engine:
        """Return an engine for small, frequent writes that a power failure may lose.

        Each statement is a transaction of its own, and on SQLite it does not wait for the disk. On
        PostgreSQL the statement itself says so: a setting of the connection would be one more
        statement, or one more connection.
        """
        if self.is_sqlite:
            return self.engine.execution_options(tidegate_evidence=True)
        return self.engine.execution_options(isolation_level="AUTOCOMMIT")

    def now(self, conn: sa.Connection) -> datetime:
        """Return the time of the database's clock (UTC); on SQLite that is this machine's."""
        if self.has_clock:
            return conn.scalar(sa.text("SELECT clock_timestamp()")).astimezone(UTC)  # type: ignore[union-attr]
        return datetime.now(UTC) if self.clock is None else self.clock()

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    in_memory = url.database in (None, "", ":memory:")
    engine = sa.create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
        json_serializer=json_text,
        poolclass=sa.QueuePool,
        # A database in memory is its one connection, which threads share.
        **({"pool_size": 1, "max_overflow": 0} if in_memory else {}),
    )

    @event.listens_for(engine, "do_connect")
    def _connect(dialect, _record, arguments, options):
        if not in_memory and (problem := _lost(str(url.database))):
            raise dialect.loaded_dbapi.OperationalError(problem)
        try:
            return dialect.loaded_dbapi.connect(*arguments, **options)
        except dialect.loaded_dbapi.OperationalError as error:
            raise type(error)(f"{error}: {url.database}") from error

    @event.listens_for(engine, "connect")
    def _configure(connection, record) -> None:
        # The driver would begin every transaction as a reader, and a reader that becomes a writer
        # beside another one fails at once instead of waiting.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON").close()
        _use_wal(connection)
        record.info["file"] = _file(url)

    @event.listens_for(engine, "checkout")
    def _check_file(_connection, record, _proxy) -> None:
        # What is written to a file that was moved away or replaced is lost.
        if record.info["file"] != _file(url):
            raise exc.DisconnectionError(f"{url.database} is another file now")

    def _use_wal(connection) -> None:
        # Where several processes create the database at once, SQLite refuses this without waiting.
        until = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL").close()
            except engine.dialect.loaded_dbapi.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(BUSY_RETRY_S)
            else:
                return

    @event.listens_for(engine, "begin")
    def _begin(conn: sa.Connection) -> None:
        options = conn.get_execution_options()
        if options.get("tidegate_read"):
            conn.exec_driver_sql("BEGIN")
            return
        synchronous = "NORMAL" if options.get("tidegate_evidence") else "FULL"
        if conn.info.get("synchronous") != synchronous:
            conn.exec_driver_sql(f"PRAGMA synchronous={synchronous}")
            conn.info["synchronous"] = synchronous
        if not options.get("tidegate_evidence"):
            conn.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _file(url: sa.URL) -> tuple[int, int] | None:
    """Return the identity of a database's file; None if there is no file."""
    try:
        stat = os.stat(url.database or "")
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


def _lost(database: str) -> str | None:
    """Return what to do about a database that was in use and is gone, for people; else None.

    SQLite would create an empty one in its place, without holds and ledgers: records would be sent
    again, and when the file comes back, what was written meanwhile is lost.
    """
    trace = push.sidecar(database)
    if os.path.exists(database) or not trace.exists():
        return None
    return (
        f"{database} is missing, although it has been in use: put it back, or restore its backup; "
        f"to start with an empty one, delete {trace}"
    )
