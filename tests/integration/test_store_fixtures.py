import sqlalchemy as sa

from dagster_tidegate.holds import EVERYTHING, HoldSource
from dagster_tidegate.store import holds
from dagster_tidegate.store.database import Store
from tests.conftest import Clock


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
