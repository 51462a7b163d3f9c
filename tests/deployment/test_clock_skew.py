"""Machines whose clocks are an hour off share a store: the database's clock decides.

On PostgreSQL alone: a SQLite file is on one machine.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.records.lease import LEASE
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import holds
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from tests.deployment.skewed_worker import POLICY

HOUR_S = 3600
# More than a busy machine needs, and much less than the clocks differ.
MINUTES = timedelta(minutes=10)


@pytest.fixture
def store(postgres_url: str) -> Iterator[Store]:
    store = Store(postgres_url)
    yield store
    store.dispose()


def ask(store: Store, skew_s: int, what: str) -> dict[str, Any]:
    """Let a worker whose clock is off do something, and return what it tells."""
    url = store.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.support.skewed_clock", str(skew_s)),
            *("tests.deployment.skewed_worker", url, what),
        ],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert abs(told["clock"] - time.time() - skew_s) < MINUTES.total_seconds(), "it is off"
    return told


@pytest.mark.parametrize("skew_s", [HOUR_S, -HOUR_S])
def test_a_breaker_that_such_a_worker_opened_is_tried_on_time(store: Store, skew_s: int):
    # One failure of a worker that is early and one of a worker that is late: a row of two.
    assert ask(store, -skew_s, "failure")["state"] == BreakerState.CLOSED
    assert ask(store, skew_s, "failure")["state"] == BreakerState.OPEN
    fleet = Fleet(SqlBackend(store), [POLICY])
    status = fleet.snapshot().services[POLICY.name]
    assert status.opened_at is not None
    assert status.open_until is not None
    assert abs(status.opened_at - fleet.now()) < MINUTES
    assert status.open_until - status.opened_at == timedelta(seconds=POLICY.reset_timeout_s)
    # Whoever comes next tries it in a second: one whose clock is off the other way, or right.
    assert ask(store, -skew_s, "recover")["state"] == BreakerState.CLOSED
    fleet.refresh()
    assert fleet.breaker(POLICY.name).status.state is BreakerState.CLOSED
    assert fleet.holds_on(services=[POLICY.name]) == []
    fleet.close()


@pytest.mark.parametrize("skew_s", [HOUR_S, -HOUR_S])
def test_holds_and_leases_end_on_time_whatever_the_clocks_say(store: Store, skew_s: int):
    with store.begin() as conn:
        now = store.now(conn)
        for name, ends in (("past", now + timedelta(seconds=1)), ("future", now + 3 * MINUTES)):
            holds.place(
                conn,
                now,
                Target(TargetKind.SERVICE, name),
                source=HoldSource.OPERATOR,
                reason="test",
                actor="ann",
                expires_at=ends,
            )
    fleet = Fleet(SqlBackend(store), [POLICY])
    until = time.monotonic() + 60
    while fleet.holds_on(services=["past"]) and time.monotonic() < until:
        fleet.wait_for_change(0.1)
    fleet.close()
    assert ask(store, skew_s, "held")["held"] == ["future"]
    began = time.time()
    ends = ask(store, skew_s, "work")["lease_until"]
    assert began <= ends <= time.time() + LEASE.total_seconds()
