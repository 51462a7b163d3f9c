"""The tests of the store run on both databases."""

from collections.abc import Callable, Iterator

import pytest

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str:
    """URL of a fresh database with the tables; the test runs once per kind of database."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def make_fleet(store: Store) -> Iterator[Callable[..., Fleet]]:
    """Make the fleet of one more process that shares the store."""
    fleets: list[Fleet] = []

    def make(*policies: ServicePolicy) -> Fleet:
        fleets.append(Fleet(SqlBackend(store), policies))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()
