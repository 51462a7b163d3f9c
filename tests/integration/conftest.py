"""Commands, and Dagster deployments, of which a module has one for each kind of database."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from dagster_tidegate.cli import main
from dagster_tidegate.records import retry
from dagster_tidegate.store.database import Store
from tests.support.sqlite_stores import new_sqlite_url

if TYPE_CHECKING:
    from tests.integration.gate_deployment import Deployment
    from tests.integration.record_loop import Work

Run = Callable[..., Result]


@pytest.fixture
def run(store: Store) -> Run:
    """A function that runs a command on `store`."""
    url = store.url.render_as_string(hide_password=False)
    return lambda *arguments: CliRunner().invoke(main, [*arguments, "--url", url])


@pytest.fixture
def work(store_url: str) -> "Iterator[Work]":
    """One campaign run, and the attempts at it."""
    from tests.integration.record_loop import Work

    work = Work(store_url)
    yield work
    work.close()


@pytest.fixture
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let records be tried again at once."""
    monkeypatch.setattr(retry, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr(retry, "MAX_BACKOFF_S", 0.01)


@pytest.fixture(scope="module")
def module_database(request: pytest.FixtureRequest) -> str:
    """Which kind of database: SQLite, or both in turn with `both_deployments`."""
    return getattr(request, "param", "sqlite")


@pytest.fixture(scope="module")
def module_store_url(
    module_database: str,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """URL of a database with the tables, for all tests of the module."""
    if module_database == "postgres":
        return request.getfixturevalue("new_postgres_url")()
    return new_sqlite_url(tmp_path_factory.mktemp("store") / "tidegate.db")


@pytest.fixture(scope="module")
def module_dagster_url(module_database: str, request: pytest.FixtureRequest) -> str | None:
    """URL of a PostgreSQL database for Dagster itself; None where it takes SQLite."""
    if module_database == "postgres":
        return request.getfixturevalue("new_dagster_url")()
    return None


@pytest.fixture(scope="module")
def deployed(
    module_store_url: str, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[Deployment]":
    """A deployment for all tests of the module: its services are up, and its gate has looked."""
    from tests.integration.gate_deployment import deployment

    home = tmp_path_factory.mktemp("deployment") / "home"
    monitoring = {"enabled": True, "free_slots_after_run_end_seconds": 1}
    with deployment(home, module_store_url, run_monitoring=monitoring) as deployed:
        deployed.up("mail")
        deployed.up("maps")
        deployed.gate()
        yield deployed
