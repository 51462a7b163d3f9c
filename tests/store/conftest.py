"""The tests of the store run on both databases."""

import pytest


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str:
    """URL of a fresh database with the tables; the test runs once per kind of database."""
    return request.getfixturevalue(f"{request.param}_url")
