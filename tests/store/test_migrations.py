"""Upgrades keep what there is, from every revision, and nobody stands still meanwhile."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from sqlalchemy import exc

from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import compatibility, postgres, schema
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store
from tests.support.polling import wait_until

RELEASES = Path(__file__).parents[1] / "releases"
HEAD = compatibility.REVISION
EARLIER = [
    script.revision
    for script in ScriptDirectory(str(schema.MIGRATIONS)).walk_revisions()
    if script.revision != HEAD
]
SOON_S = 120.0
START = datetime(2026, 3, 1, 9, tzinfo=UTC)
# What the database itself allows.
ALLOWED = {
    ("services", "state"): ["closed", "open", "half_open"],
    ("holds", "target_kind"): ["service", "campaign", "everything"],
    ("holds", "source"): ["breaker", "operator", "operator"],
    ("campaign_runs", "status"): ["paused", "completed", "processing"],
    ("ledger", "status"): ["started", "done", "failed"],
}


@pytest.fixture
def store(empty_store_url: str) -> Iterator[Store]:
    store = Store(empty_store_url)
    yield store
    store.dispose()


def tables(store: Store) -> list[sa.Table]:
    found = sa.MetaData()
    found.reflect(store.engine)
    return [table for table in found.sorted_tables if table.name != schema.VERSION_TABLE]


def fill(store: Store) -> None:
    """Write three rows into every table that is empty."""
    found = tables(store)
    with store.begin() as conn:
        for table in found:
            if not conn.scalar(sa.select(sa.func.count()).select_from(table)):
                conn.execute(table.insert(), [row(table, number) for number in range(3)])


def row(table: sa.Table, number: int) -> dict[str, Any]:
    return {column.name: value(table, column, number) for column in table.columns}


def value(table: sa.Table, column: sa.Column, number: int) -> Any:
    if (allowed := ALLOWED.get((table.name, column.name))) is not None:
        return allowed[number]
    if column.foreign_keys:
        [key] = column.foreign_keys
        return value(key.column.table, key.column, number)
    if isinstance(column.type, sa.DateTime):
        at = START + timedelta(hours=number)
        return at if column.type.timezone else at.replace(tzinfo=None)
    if isinstance(column.type, sa.Boolean):
        return number % 2 == 0
    if isinstance(column.type, sa.Integer):
        return number + 1
    if isinstance(column.type, sa.Float):
        return number + 0.5
    if isinstance(column.type, sa.JSON):
        return {"number": number, "text": "ä"}
    return f"{column.name} {number}"


def rows(store: Store, of: list[sa.Table]) -> dict[str, list[str]]:
    """All rows, by the table, in the columns that the tables had."""
    with store.read() as conn:
        return {
            table.name: sorted(
                json.dumps(dict(found._mapping), default=str)
                for found in conn.execute(sa.select(*table.columns))
            )
            for table in of
        }


@pytest.mark.parametrize("revision", EARLIER)
def test_an_upgrade_and_the_way_back_keep_every_row(store: Store, revision: str) -> None:
    schema.upgrade(store, revision)
    fill(store)
    before = tables(store)
    kept = rows(store, before)
    assert all(kept.values()), "each table has rows"
    schema.upgrade(store)
    assert rows(store, before) == kept
    fill(store)  # the new tables too
    schema.downgrade(store, revision)
    assert {table.name for table in tables(store)} == {table.name for table in before}
    assert rows(store, before) == kept
    schema.upgrade(store)
    assert rows(store, before) == kept


# --- workers go on -------------------------------------------------------------------------------


class Load:
    """Workers of an earlier revision, processes of their own."""

    def __init__(self, folder: Path, url: str, revision: str, workers: int = 2) -> None:
        self.evidence = [folder / f"worker{n}" for n in range(workers)]
        self._stop = folder / "stop"
        release = str(RELEASES / f"{revision}.zip")
        for path in self.evidence:
            path.touch()
        self.processes = [
            subprocess.Popen(
                [sys.executable, release, url, path.name, str(path), str(self._stop)],
                cwd=folder,
                stderr=subprocess.PIPE,
                text=True,
            )
            for path in self.evidence
        ]

    def sent(self) -> list[str]:
        return [line for path in self.evidence for line in path.read_text().splitlines()]

    def wait_for_more(self, each: int = 25) -> None:
        """Wait until every worker has done so many records more."""
        wanted = [len(path.read_text().splitlines()) + each for path in self.evidence]
        until = time.monotonic() + SOON_S
        for path, process, count in zip(self.evidence, self.processes, wanted, strict=True):
            while len(path.read_text().splitlines()) < count:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < until, "the workers stand still"
                time.sleep(0.02)

    def stop(self) -> str:
        """Let the workers finish; returns what they wrote to their logs."""
        self._stop.touch()
        said = [process.communicate(timeout=SOON_S)[1] for process in self.processes]
        assert [process.returncode for process in self.processes] == [0] * len(said), said
        return "".join(said)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def start_load(tmp_path: Path) -> Iterator[Callable[..., Load]]:
    started: list[Load] = []

    def start(store: Store, revision: str) -> Load:
        url = store.url.render_as_string(hide_password=False)
        started.append(Load(tmp_path, url, revision))
        return started[-1]

    yield start
    for load in started:
        load.kill()


def assert_nothing_lost(store: Store, load: Load) -> None:
    sent = Counter(load.sent())
    assert set(sent.values()) == {1}
    with store.read() as conn:
        done = conn.scalars(sa.select(t.ledger.c.key).where(t.ledger.c.status == RecordStatus.DONE))
        assert set(done) == set(sent)
        statuses = conn.scalars(sa.select(t.campaign_runs.c.status).distinct()).all()
    assert statuses == [RunStatus.COMPLETED]


@pytest.mark.parametrize("revision", EARLIER)
def test_workers_go_on_while_the_store_is_upgraded(
    store: Store, revision: str, start_load: Callable[..., Load]
) -> None:
    schema.upgrade(store, revision)
    load = start_load(store, revision)
    load.wait_for_more()
    schema.upgrade(store)
    load.wait_for_more()  # with the new schema
    load.stop()
    assert_nothing_lost(store, load)


def test_nobody_stands_still_behind_a_migration_that_waits_for_a_lock(
    make_database: Callable[..., sa.URL],
    start_load: Callable[..., Load],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres, "LOCK_TIMEOUT_S", 0.2)
    monkeypatch.setattr(postgres, "LOCK_TRIES", 10_000)
    store = Store(make_database().render_as_string(hide_password=False))
    schema.upgrade(store, "0001")
    load = start_load(store, "0001")
    load.wait_for_more()
    migration = threading.Thread(target=schema.upgrade, args=(store,), daemon=True)
    with store.read() as conn:
        conn.execute(sa.text("SELECT count(*) FROM events"))  # a report that takes its time
        migration.start()
        for _ in range(3):
            load.wait_for_more()
        assert migration.is_alive()
        assert schema.current(store) == "0001"
    migration.join(SOON_S)
    assert schema.current(store) == HEAD
    load.stop()
    assert_nothing_lost(store, load)
    store.dispose()


def test_a_lock_that_can_not_be_had_ends_the_upgrade_with_nothing_done(
    make_database: Callable[..., sa.URL], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LOCK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(postgres, "LOCK_TRIES", 3)
    store = Store(make_database().render_as_string(hide_password=False))
    schema.upgrade(store, "0001")
    with store.begin() as conn:
        conn.execute(sa.text("LOCK TABLE events IN ACCESS SHARE MODE"))
        with pytest.raises(exc.OperationalError, match="lock timeout"):
            schema.upgrade(store)
    assert schema.current(store) == "0001"
    assert "tokens" not in sa.inspect(store.engine).get_table_names()
    schema.upgrade(store)
    assert schema.current(store) == HEAD
    store.dispose()


# --- what a migration may do ---------------------------------------------------------------------

NEXT = '''
"""One more, as docs/design.md wants it."""

import sqlalchemy as sa
from alembic import op

revision = "9001"
down_revision = "{head}"


def upgrade():
    if op.get_bind().dialect.name == "postgresql":
        with op.get_context().autocommit_block():
            op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_ledger_at")
            op.create_index("ix_ledger_at", "ledger", ["at"], postgresql_concurrently=True)
    else:
        op.create_index("ix_ledger_at", "ledger", ["at"])
    op.add_column("ledger", sa.Column("weight", sa.Integer()))


def downgrade():
    op.drop_index("ix_ledger_at", "ledger")
    with op.batch_alter_table("ledger") as batch_op:
        batch_op.drop_column("weight")
'''
CONTRACTING = '''
"""Says that workers older than this are too old."""

import sqlalchemy as sa
from alembic import op

revision = "9002"
down_revision = "9001"


def upgrade():
    op.execute("UPDATE compatibility SET oldest_revision = '9002'")


def downgrade():
    op.execute("UPDATE compatibility SET oldest_revision = '0001'")
'''


@pytest.fixture
def later_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """What lets `schema` be that of a later version, which has two revisions more."""
    folder = tmp_path / "migrations"
    versions = folder / "versions"
    versions.mkdir(parents=True)
    (folder / "env.py").write_text((schema.MIGRATIONS / "env.py").read_text())
    for path in (schema.MIGRATIONS / "versions").glob("*.py"):
        (versions / path.name).write_text(path.read_text())
    (versions / "9001_next.py").write_text(NEXT.format(head=HEAD))
    (versions / "9002_contracting.py").write_text(CONTRACTING)

    def change() -> Any:
        context = monkeypatch.context()
        patch = context.__enter__()
        patch.setattr(schema, "MIGRATIONS", folder)
        return context

    return change


def test_an_index_of_a_large_table_is_made_beside_its_users(
    store: Store, start_load: Callable[..., Load], later_version: Callable[[], Any]
) -> None:
    schema.upgrade(store)
    load = start_load(store, "0001")
    load.wait_for_more()
    context = later_version()
    schema.upgrade(store, "9001")
    load.wait_for_more()
    load.stop()
    assert_nothing_lost(store, load)
    assert "ix_ledger_at" in {
        index["name"] for index in sa.inspect(store.engine).get_indexes("ledger")
    }
    schema.downgrade(store, HEAD)
    schema.upgrade(store, "9001")
    context.__exit__(None, None, None)


def test_an_index_waits_for_who_uses_its_table_and_nobody_waits_for_it(
    make_database: Callable[..., sa.URL],
    later_version: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres, "LOCK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(postgres, "LOCK_TRIES", 1)
    store = Store(make_database().render_as_string(hide_password=False))
    schema.upgrade(store)
    context = later_version()
    building = sa.text("SELECT count(*) FROM pg_stat_progress_create_index")
    migration = threading.Thread(target=schema.upgrade, args=(store, "9001"), daemon=True)
    with store.begin() as user:
        user.execute(sa.text("LOCK TABLE ledger IN ROW EXCLUSIVE MODE"))  # as who writes to it
        migration.start()
        with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            wait_until(lambda: conn.scalar(building))
        migration.join(1)  # ten times as long as it would wait for a lock
        assert migration.is_alive()
        with store.begin() as other:
            fill_ledger(other)
    migration.join(SOON_S)
    assert schema.current(store) == "9001"
    context.__exit__(None, None, None)
    store.dispose()


def fill_ledger(conn: sa.Connection) -> None:
    run = {"campaign": "c", "partition": "p", "created_at": START, "changed_at": START}
    found = conn.scalar(t.campaign_runs.insert().values(run).returning(t.campaign_runs.c.id))
    entry = {"op": "o", "key": "k", "status": "done", "position": 0, "attempt": 1, "at": START}
    conn.execute(t.ledger.insert().values(campaign_run=found, **entry))


def test_a_newer_store_will_do_until_it_says_that_it_does_not(
    store: Store, later_version: Callable[[], Any]
) -> None:
    context = later_version()
    schema.upgrade(store, "9001")
    context.__exit__(None, None, None)
    schema.require_compatible(store)
    schema.upgrade(store)  # as a deployment of this version does, also one that goes back to it
    assert schema.current(store) == "9001"
    context = later_version()
    schema.upgrade(store, "9002")
    context.__exit__(None, None, None)
    for refused in (schema.require_compatible, schema.upgrade):
        with pytest.raises(
            schema.SchemaError, match=f"needs revision 9002 .* has {HEAD}: deploy the"
        ):
            refused(store)


def test_the_code_says_which_revision_it_works_with() -> None:
    assert ScriptDirectory(str(schema.MIGRATIONS)).get_current_head() == compatibility.REVISION


def test_revisions_are_numbered_so_that_they_can_be_compared() -> None:
    scripts = list(ScriptDirectory(str(schema.MIGRATIONS)).walk_revisions())
    assert [s.revision for s in reversed(scripts)] == [f"{n + 1:04}" for n in range(len(scripts))]
