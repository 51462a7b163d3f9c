"""Which tests run on which databases.

Everything above the store runs on SQLite. On both databases run the tests of the store, of what
races, locks, dies or depends on a database's own types, and one test of each surface.
"""

import pytest

both_databases = pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
"""For a test that takes `store` or `store_url`."""

both_deployments = pytest.mark.parametrize("module_database", ["sqlite", "postgres"], indirect=True)
"""For a test that takes the Dagster deployment of its module."""
