import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from dagster_tidegate.holds import EVERYTHING, HoldSource
from dagster_tidegate.store import holds
from dagster_tidegate.store.database import Store
from tests.conftest import POSTGRES_VARIABLE
from tests.support.clock import Clock


def test_a_store_has_tables_and_the_tests_time(store: Store, clock: Clock):
    with store.begin() as conn:
        assert store.now(conn) == clock.time
        holds.place(
            conn, clock(), EVERYTHING, source=HoldSource.OPERATOR, reason="maintenance", actor="ann"
        )
    clock.advance(5)
    with store.read() as conn:
        assert [hold.reason for hold in holds.live(conn, store.now(conn))] == ["maintenance"]


def test_each_test_has_its_own_database(store: Store):
    with store.read() as conn:
        assert not holds.live(conn, store.now(conn))


def test_an_empty_store_has_no_tables(empty_store_url: str):
    engine = Store(empty_store_url).engine
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


@pytest.mark.parametrize("reachable", [True, False])
def test_postgresql_may_be_ones_own_and_is_never_skipped(postgres_server: sa.URL, reachable: bool):
    url = postgres_server if reachable else sa.make_url("postgresql://127.0.0.1:9/nothing")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *(__file__, "-k", "test_each_test_has_its_own_database"),
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, POSTGRES_VARIABLE: url.render_as_string(hide_password=False)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    result = done.stdout.splitlines()[-1]
    assert ("2 passed" if reachable else "1 passed") in result
    assert ("error" in result) is not reachable
    assert "skipped" not in result
