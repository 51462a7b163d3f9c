"""Migrations and tables agree, up and down, on both databases."""

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from click.testing import CliRunner
from sqlalchemy.exc import IntegrityError

from dagster_tidegate.cli import main
from dagster_tidegate.store import compatibility, schema
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.tables import metadata


@pytest.fixture
def empty_store(empty_store_url: str):
    store = Store(empty_store_url)
    yield store
    store.dispose()


def differences(store: Store) -> list:
    with store.read() as conn:
        context = MigrationContext.configure(
            conn, opts={"compare_type": True, "version_table": schema.VERSION_TABLE}
        )
        return compare_metadata(context, metadata)


def test_an_upgraded_database_has_exactly_the_tables(empty_store: Store) -> None:
    schema.upgrade(empty_store)
    assert differences(empty_store) == []
    assert schema.current(empty_store) == compatibility.REVISION


def test_upgrading_twice_changes_nothing(empty_store: Store) -> None:
    schema.upgrade(empty_store)
    schema.upgrade(empty_store)
    assert differences(empty_store) == []


def test_a_downgrade_to_base_leaves_no_table_and_can_be_upgraded_again(empty_store: Store) -> None:
    schema.upgrade(empty_store)
    schema.downgrade(empty_store, "base")
    assert set(sa.inspect(empty_store.engine).get_table_names()) <= {schema.VERSION_TABLE}
    assert schema.current(empty_store) is None
    schema.upgrade(empty_store)
    assert differences(empty_store) == []


@pytest.mark.parametrize("command", ["upgrade", "downgrade"])
def test_an_unknown_revision_is_refused_before_anything_is_asked(
    store: Store, command: str
) -> None:
    url = store.url.render_as_string(hide_password=False)
    result = CliRunner().invoke(main, ["store", command, "9999", "--url", url])
    assert result.exit_code == 1
    assert result.output.startswith("Error: there is no revision '9999'; known: base, 0001, 0002,")


def test_a_downgrade_to_a_newer_revision_is_told_that_it_is_an_upgrade(empty_store: Store) -> None:
    schema.upgrade(empty_store, "0003")
    with pytest.raises(schema.SchemaError, match="is at 0003: to get to 0004, upgrade it"):
        schema.downgrade(empty_store, "0004")
    assert schema.current(empty_store) == "0003"


def test_a_store_that_was_never_made_says_what_to_do(empty_store: Store) -> None:
    with pytest.raises(schema.SchemaError, match="run 'tidegate store upgrade'"):
        schema.require_compatible(empty_store)


def test_a_status_that_is_no_lowercase_value_is_refused_by_the_database(store: Store) -> None:
    insert = sa.text(
        "INSERT INTO services (name, state, changed_at) VALUES ('x', 'OPEN', '2026-01-01')"
    )
    with pytest.raises(IntegrityError), store.begin() as conn:
        conn.execute(insert)
