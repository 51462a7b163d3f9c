"""Commands, as the tests of the command line run them."""

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from dagster_tidegate.cli import main
from dagster_tidegate.store.database import Store

Run = Callable[..., Result]


@pytest.fixture
def run(store: Store) -> Run:
    """A function that runs a command on `store`."""
    url = store.url.render_as_string(hide_password=False)
    return lambda *arguments: CliRunner().invoke(main, [*arguments, "--url", url])
