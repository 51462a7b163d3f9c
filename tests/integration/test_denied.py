"""The gate leaves a service alone that refuses this client, or that said until when to wait."""

from collections.abc import Iterator

import dagster as dg
import pytest

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind
from dagster_tidegate.control import operations
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.observe import observe
from dagster_tidegate.gate.ticks import breaker_tick
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import breakers
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from tests.support.clock import Clock
from tests.support.denied import deny
from tests.unit.simulated_dagster import Fuse, SimulatedDagster

DAY_S = 86_400
NOBODY = "http://127.0.0.1:1/"  # a probe fails, and moves the breaker's time


@pytest.fixture(params=[None, NOBODY], ids=["by canary", "by probe"])
def gate(request: pytest.FixtureRequest, store: Store, clock: Clock) -> Gate:
    policy = ServicePolicy(name="apollo", probe_url=request.param)
    spec = CampaignSpec("outreach", "here", "none", ops={"find": "apollo"})
    dagster = SimulatedDagster(Fuse(), clock, None)
    dagster.create("outreach", spec.pools, {"dagster/partition": "waits"})
    return Gate(dagster, store, {"apollo": policy}, "here", [spec])


@pytest.fixture
def fleet(gate: Gate) -> Iterator[Fleet]:
    fleet = Fleet(SqlBackend(gate.store), gate.policies.values())
    yield fleet
    fleet.close()


def test_a_denied_service_gets_neither_a_probe_nor_a_canary_until_it_is_repaired(
    gate: Gate, fleet: Fleet, store: Store, clock: Clock
) -> None:
    deny(store, "apollo")
    with store.read() as conn:
        before = breakers.read_one(conn, "apollo")
    for _ in range(10):
        clock.advance(30 * DAY_S)
        said = breaker_tick(gate, fleet)
        assert "apollo refuses this client (401 invalid_key); once repaired: tidegate" in said
        assert observe(gate).candidates == {}
    with store.begin() as conn:
        assert breakers.read_one(conn, "apollo") == before
        operations.repaired(conn, clock(), "apollo", reason="new key", actor="ana")
    # The probe has no key: it could not tell that the new one is good.
    [run] = observe(gate).candidates["apollo"].waiting
    assert isinstance(run, dg.DagsterRun)
    assert run.tags["dagster/partition"] == "waits"
    # A half-open breaker waits for no time.
    said = breaker_tick(gate, fleet)
    assert "apollo is half open: a trial call decides" in said
    assert "until" not in said
    assert "probed" not in said


def test_a_throttled_service_is_tried_at_its_time_and_not_before(
    gate: Gate, fleet: Fleet, store: Store, clock: Clock
) -> None:
    with store.begin() as conn:
        breakers.ensure(conn, clock(), ["apollo"])
        before = breakers.read_one(conn, "apollo")
        verdict = Verdict(VerdictKind.THROTTLED, clock().replace(hour=18), reason="600 a day")
        throttled = machine.opened(before, gate.policies["apollo"], clock(), verdict, 0.0)
        assert breakers.change(conn, clock(), before, throttled)
    clock.advance(9 * 3600 - 1)
    assert "apollo is throttled until 2026-03-01 18:00:00 UTC" in breaker_tick(gate, fleet)
    with store.read() as conn:
        assert breakers.read_one(conn, "apollo") == throttled
    clock.advance(1)
    breaker_tick(gate, fleet)
    with store.read() as conn:
        after = breakers.read_one(conn, "apollo")
    is_probed = gate.policies["apollo"].probe_url is not None
    assert after.state is (BreakerState.OPEN if is_probed else BreakerState.HALF_OPEN)
    assert after.generation > throttled.generation
