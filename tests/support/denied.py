"""A service that refuses this client."""

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind
from dagster_tidegate.store import breakers
from dagster_tidegate.store.database import Store


def deny(store: Store, service: str) -> None:
    """Open the breaker of a service, as an answer that denies does."""
    with store.begin() as conn:
        now = store.now(conn)
        breakers.ensure(conn, now, [service])
        before = breakers.read_one(conn, service)
        verdict = Verdict(VerdictKind.DENIED, reason="401 invalid_key", answer="invalid key")
        denied = machine.opened(before, ServicePolicy(name=service), now, verdict, 0.0)
        assert breakers.change(conn, now, before, denied)
