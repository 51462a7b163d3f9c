"""What a worker does for `test_clock_skew`: one thing each time, and it tells what came of it."""

import json
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.records.lease import Lease
from dagster_tidegate.store import runs
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from tests.support.loop_host import FakeHost

POLICY = ServicePolicy(name="openai", consecutive_failures=2, reset_timeout_s=1, jitter=0)
MAX_S = 120.0


def fail() -> None:
    raise ConnectionError("down")


def failure(fleet: Fleet) -> dict:
    """Make one call, which fails."""
    with suppress(ConnectionError, BreakerOpenError):
        fleet.breaker(POLICY.name).call(fail)
    return {"state": fleet.breaker(POLICY.name).status.state}


def recover(fleet: Fleet) -> dict:
    """Call until a call is let through."""
    until = time.monotonic() + MAX_S
    while time.monotonic() < until:
        with suppress(BreakerOpenError):
            fleet.breaker(POLICY.name).call(int)
            return {"state": fleet.breaker(POLICY.name).status.state}
        fleet.wait_for_change(0.05)
    return {"state": "not in time"}


def held(fleet: Fleet) -> dict:
    """Say which services are held."""
    services = ("past", "future")
    return {"held": [name for name in services if fleet.holds_on(services=[name])]}


def work(store: Store, fleet: Fleet) -> dict:
    """Say how long the lease of a loop at work lasts, by the clock of the test."""
    with store.begin() as conn:
        now = store.now(conn)
        run = runs.ensure(conn, now, "skewed", f"{now}")
        attempt = runs.begin_attempt(conn, now, run, f"{now}", owner_is_over=False)
    host = FakeHost(store, fleet, run, attempt)
    with Lease(host, "send", lambda: False), store.read() as conn:
        newest = runs.latest_attempt(conn, run.id)
    assert newest is not None
    assert newest.lease_until is not None
    return {"lease_until": newest.lease_until.timestamp()}


def main(url: str, what: str) -> None:
    """Do one thing."""
    store = Store(url)
    fleet = Fleet(SqlBackend(store), [POLICY])
    steps = {"failure": failure, "recover": recover, "held": held, "work": partial(work, store)}
    result = steps[what](fleet)
    sys.stdout.write(json.dumps({"clock": datetime.now(UTC).timestamp(), **result}) + "\n")
    fleet.close()
    store.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
