"""Stores in schemas of their own, in one PostgreSQL database with each other and with Dagster."""

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.cli import main
from dagster_tidegate.store import compatibility, push, schema
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.gate_lock import GateBusyError, gate_lock
from tests.support.maintenance import held, hold
from tests.support.polling import wait_until

SCHEMAS = ("tidegate", "Another One")


def in_schema(url: sa.URL, name: str) -> str:
    quoted = name if name.islower() else '"' + name.replace(" ", "\\ ") + '"'
    return url.update_query_dict({"options": f"-csearch_path={quoted}"}).render_as_string(False)


@pytest.fixture
def database(make_database: Callable[..., sa.URL]) -> sa.URL:
    return make_database()


@pytest.fixture
def stores(database: sa.URL) -> Iterator[list[Store]]:
    """Two stores in one database."""
    made = [Store(in_schema(database, name)) for name in SCHEMAS]
    for store in made:
        schema.upgrade(store)
    yield made
    for store in made:
        store.dispose()


def tables(database: sa.URL, name: str) -> set[str]:
    engine = sa.create_engine(database)
    try:
        return set(sa.inspect(engine).get_table_names(schema=name))
    finally:
        engine.dispose()


def test_the_upgrade_makes_the_schema_and_all_is_in_it(stores: list[Store], database: sa.URL):
    for name in SCHEMAS:
        assert {"services", "holds", schema.VERSION_TABLE} <= tables(database, name)
    assert tables(database, "public") == set()
    assert [schema.current(store) for store in stores] == [compatibility.REVISION] * 2
    for store in stores:
        schema.upgrade(store)  # a second time nothing happens


def test_one_store_is_taken_down_and_the_other_is_as_it_was(stores: list[Store], database: sa.URL):
    hold(stores[1])
    schema.downgrade(stores[0], "base")
    assert tables(database, SCHEMAS[0]) <= {schema.VERSION_TABLE}
    assert held(stores[1])


def test_a_hold_in_one_is_none_in_the_other(stores: list[Store]):
    hold(stores[0])
    assert held(stores[0])
    assert not held(stores[1])


def test_no_store_hears_of_changes_in_another(stores: list[Store]):
    waker = push.Waker()
    listeners = [push.listen(store.engine, waker) for store in stores]
    try:
        hold(stores[0])
        assert listeners[0].wait(60)
        assert not listeners[1].wait(0.5)
    finally:
        for listener in listeners:
            listener.close()
        waker.close()


def test_a_fleet_is_pushed_what_changes_in_its_own_store(stores: list[Store]):
    fleet = Fleet(SqlBackend(stores[1]), [ServicePolicy(name="mailer")])
    try:
        fleet.snapshot()
        hold(stores[1])
        wait_until(lambda: fleet.holds_on(services=["mailer"]))
    finally:
        fleet.close()


def test_gates_of_different_stores_work_at_the_same_time(stores: list[Store]):
    with gate_lock(stores[0], 0):
        with gate_lock(stores[1], 0):
            pass
        with pytest.raises(GateBusyError), gate_lock(stores[0], 0):
            pass


def test_the_command_line_makes_and_names_the_store(database: sa.URL):
    url = in_schema(database, "tidegate")
    runner = CliRunner()
    assert runner.invoke(main, ["store", "current", "--url", url]).exit_code == 1
    made = runner.invoke(main, ["store", "upgrade", "--url", url])
    assert made.exit_code == 0
    assert "search_path%3Dtidegate" in made.output
    assert runner.invoke(main, ["store", "current", "--url", url]).exit_code == 0
    plain = database.render_as_string(hide_password=False)
    assert runner.invoke(main, ["store", "current", "--url", plain]).exit_code == 1
