"""What is over for long is deleted in batches; campaign runs without ledger begin afresh."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from dagster_tidegate.cli import main
from dagster_tidegate.holds import HoldSource, TargetKind
from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import events, history, ledger, retention, runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.ledger import Entry
from dagster_tidegate.store.retention import KINDS, Keep, Retention
from dagster_tidegate.store.runs import AttemptRow, CampaignRun
from dagster_tidegate.store.tables import metadata
from tests.support.clock import Clock
from tests.support.record_statuses import record_statuses

DAY_S = 24 * 3600


def ended(store: Store, partition: str, status: RunStatus, entries: int = 5) -> CampaignRun:
    """A campaign run with a ledger that has ended now."""
    with store.begin() as conn:
        now = store.now(conn)
        run = runs.ensure(conn, now, "outreach", partition)
        attempt = begin(store, run, partition)(conn)
        ledger.write(
            conn,
            now,
            attempt,
            "send",
            [Entry(str(n), n, RecordStatus.DONE) for n in range(entries)],
        )
        found = runs.get(conn, run.id)
        assert found is not None
        if status is not RunStatus.PROCESSING:
            runs.move(conn, now, found, status, actor="test")
    return run


def begin(store: Store, run: CampaignRun, dagster_run: str):
    def step(conn) -> AttemptRow:
        return runs.begin_attempt(conn, store.now(conn), run, dagster_run, owner_is_over=True)

    return step


def left(store: Store, run: CampaignRun) -> int:
    with store.read() as conn:
        return len(record_statuses(conn, run.id, "send"))


def only(**kept: timedelta) -> Keep:
    """Keep everything but some kinds for ever."""
    return Keep(**{kind: kept.get(kind) for kind in KINDS})


def prune(store: Store, keep: Keep, batches: int = 10) -> tuple[int, bool]:
    with store.read() as conn:
        now = store.now(conn)
    pruned = retention.prune(store, now, keep, batches=batches)
    return pruned.total, pruned.more


def test_only_ledgers_of_what_ended_long_ago_are_deleted(store: Store, clock: Clock) -> None:
    old = ended(store, "old", RunStatus.COMPLETED)
    paused = ended(store, "paused", RunStatus.PAUSED)
    working = ended(store, "working", RunStatus.PROCESSING)
    clock.advance(100 * DAY_S)
    new = ended(store, "new", RunStatus.COMPLETED)
    keep = only(ledgers=timedelta(days=90))
    assert prune(store, keep) == (5, False)
    assert [left(store, run) for run in (old, paused, working, new)] == [0, 5, 5, 5]
    assert prune(store, keep) == (0, False)


def test_it_goes_on_where_it_stopped(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    old = ended(store, "old", RunStatus.FAILED)
    clock.advance(100 * DAY_S)
    keep = only(ledgers=timedelta(0))
    assert prune(store, keep, batches=1) == (2, True)
    assert prune(store, keep) == (3, False)
    assert left(store, old) == 0


def test_a_campaign_run_whose_ledger_is_being_deleted_starts_afresh(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    old = ended(store, "old", RunStatus.COMPLETED)
    clock.advance(100 * DAY_S)
    keep = only(ledgers=timedelta(days=90))
    assert prune(store, keep, batches=1) == (2, True)
    with store.begin() as conn:
        attempt = begin(store, old, "again")(conn)
        again = runs.get(conn, old.id)
        assert again is not None
        assert ledger.counts(conn, again, "send") == {}
        entries = [Entry(f"lead-{row}", row, RecordStatus.DONE) for row in range(4)]
        assert ledger.write(conn, clock(), attempt, "send", entries)
    prune(store, keep)
    assert left(store, old) == 4, "what the new attempt wrote, and nothing older"
    clock.advance(100 * DAY_S)
    with store.begin() as conn:
        runs.move(conn, clock(), again, RunStatus.COMPLETED, actor="test")
    assert prune(store, keep) == (0, False), "it ended just now"
    clock.advance(100 * DAY_S)
    assert prune(store, keep) == (4, False)


def test_records_from_before_a_fresh_start_are_deleted_whatever_is_kept(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    run = ended(store, "p", RunStatus.COMPLETED)
    with store.begin() as conn:
        attempt = runs.begin_attempt(
            conn, clock(), run, "again", owner_is_over=True, continues=False
        )
        assert ledger.write(conn, clock(), attempt, "send", [Entry("new", 0, RecordStatus.DONE)])
    with store.read() as conn:
        assert retention.count(conn, clock(), only())["ledgers"] == 5
    assert prune(store, only()) == (5, False)
    assert left(store, run) == 1
    assert prune(store, only()) == (0, False)


def test_a_sensor_that_keeps_for_ever_deletes_nothing(store: Store, clock: Clock) -> None:
    ended(store, "old", RunStatus.COMPLETED)
    clock.advance(1000 * DAY_S)
    assert Retention(only()).prune_some(store, clock()) == 0
    assert Retention(only(ledgers=timedelta(days=90))).prune_some(store, clock()) == 5


def with_history(store: Store, name: str) -> None:
    """One of each thing that is over now, and one that is not."""
    with store.begin() as conn:
        now = store.now(conn)
        past, soon = now - timedelta(seconds=1), now + timedelta(days=10_000)
        for released in (now, None):
            conn.execute(
                t.holds.insert().values(
                    target_kind=TargetKind.CAMPAIGN, target_name=name, source=HoldSource.OPERATOR,
                    reason="test", actor=f"{released}", placed_at=past, released_at=released,
                )
            )  # fmt: skip
            conn.execute(
                t.takeovers.insert().values(
                    kind="pool", name=f"{name}{released}", label=name, location="here",
                    former="1", set_from="1", set_to="0", pending=False, version=1, taken_at=past,
                    given_back_at=released,
                )
            )  # fmt: skip
            conn.execute(
                t.missed_ticks.insert().values(
                    campaign=name, schedule="daily", tick_at=released or soon, recorded_at=past,
                    settled_at=released,
                )
            )  # fmt: skip
            conn.execute(
                t.alerts.insert().values(
                    kind="trip", name=name, title="t", body="b", raised_at=past, ended_at=released
                )
            )
        token = conn.scalar(
            t.tokens.insert()
            .values(name=name, role="viewer", digest=name, created_at=past, created_by="test")
            .returning(t.tokens.c.id)
        )
        for expires in (now, soon):
            conn.execute(
                t.sessions.insert().values(
                    digest=f"{name}{expires}", token=token, created_at=past, expires_at=expires
                )
            )
        conn.execute(t.idempotency_keys.insert().values(actor=name, key="k", request="r", at=now))
        conn.execute(
            t.outcomes.insert().values(service=name, bucket=now, worker="w", generation=0, ok=1)
        )
        conn.execute(t.verdicts.insert().values(service=name, minute=now, ok=1))
        conn.execute(t.daily_verdicts.insert().values(service=name, day=now, ok=1))
        conn.execute(
            t.spending.insert().values(
                service=name, period=now, unit="credits", campaign="c", amount=1
            )
        )
        events.write(conn, now, kind=EventKind.HOLD, name=name, to_status="placed", actor="test")


def rows(store: Store) -> dict[str, int]:
    with store.read() as conn:
        tables = {kind: metadata.tables[kind] for kind in KINDS if kind != "ledgers"}
        return {
            kind: conn.scalar(sa.select(sa.func.count()).select_from(table)) or 0
            for kind, table in tables.items()
        }


def test_of_each_kind_goes_what_is_over_for_long_and_nothing_else(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    for old in ("a", "b", "c"):
        with_history(store, old)
    clock.advance(400 * DAY_S)
    with_history(store, "new")
    with store.read() as conn:
        dry = retention.count(conn, clock(), Keep())
    before = rows(store)
    assert prune(store, Keep(), batches=100) == (sum(dry.values()), False)
    after = rows(store)
    assert dry == {"ledgers": 0, **dict.fromkeys(after, 3)}
    assert {kind: before[kind] - after[kind] for kind in after} == dict.fromkeys(after, 3)
    with store.read() as conn:
        assert conn.scalars(sa.select(t.holds.c.target_name).order_by(t.holds.c.id)).all() == [
            "a", "b", "c", "new", "new",
        ]  # fmt: skip
        assert conn.scalars(sa.select(t.events.c.name)).all() == ["new"]
    assert prune(store, Keep()) == (0, False)


def test_the_newest_row_stays_so_that_no_id_is_given_twice(store: Store, clock: Clock) -> None:
    with_history(store, "a")
    clock.advance(400 * DAY_S)
    prune(store, Keep())
    assert rows(store)["events"] == 1


def test_the_command_says_first_what_it_would_delete(store_url: str) -> None:
    store = Store(store_url, clock=Clock(datetime.now(UTC) - timedelta(days=100)))
    ended(store, "old", RunStatus.COMPLETED)
    with_history(store, "a")
    said = []
    for arguments in (["--dry-run"], [], []):
        command = ["store", "prune", "--url", store_url, "--keep", "events=forever", "--json"]
        result = CliRunner().invoke(main, [*command, "--keep", "ledgers=99d", *arguments])
        assert result.exit_code == 0, result.output
        said.append(json.loads(result.stdout)["deleted"])
    would, did, again = said
    assert would == did
    assert (did["ledgers"], did["missed_ticks"], "events" in did) == (5, 1, False)
    assert set(again.values()) == {0}
    with store.read() as conn:
        [event] = history.read(conn, kinds=[EventKind.PRUNE], limit=10)
    assert "5 ledgers" in str(event.reason)
    assert "@" in event.actor
    store.dispose()


def test_no_age_below_zero_is_accepted() -> None:
    with pytest.raises(ValueError, match="events can't be kept"):
        Keep(events=timedelta(days=-1))
