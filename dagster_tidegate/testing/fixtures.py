"""Fixtures: `pytest_plugins = ["dagster_tidegate.testing.fixtures"]` in a conftest.py."""

from collections.abc import Callable

import pytest

from dagster_tidegate.plugin.resource import BreakerResource, ServiceConfig
from dagster_tidegate.testing import Clock, in_memory


@pytest.fixture
def tidegate_clock() -> Clock:
    """The clock of the resources that `tidegate_breakers` makes."""
    return Clock()


@pytest.fixture
def tidegate_breakers(tidegate_clock: Clock) -> Callable[..., BreakerResource]:
    """A function that makes a resource of services or their names, with a store in memory.

    Example:
        ```python
        def test_letters(tidegate_breakers, tidegate_clock):
            breakers = tidegate_breakers("mailer")
        ```
    """

    def make(*services: ServiceConfig | str) -> BreakerResource:
        return in_memory(*services, clock=tidegate_clock)

    return make
