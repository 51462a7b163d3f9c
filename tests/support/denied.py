"""A service that refuses this client."""

from dataclasses import replace

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.store import breakers
from dagster_tidegate.store.database import Store


def deny(store: Store, service: str) -> None:
    """Open the breaker of a service, as an answer that denies does."""
    with store.begin() as conn:
        now = store.now(conn)
        breakers.ensure(conn, now, [service])
        before = breakers.read_one(conn, service)
        opened = machine.opened(before, ServicePolicy(name=service), now, "401 invalid_key", 0.0)
        denied = replace(opened, cause=VerdictKind.DENIED, answer="invalid key", open_until=None)
        assert breakers.change(conn, now, before, denied)
