"""The services of this deployment: when each trips, and where it is."""

import os

from dagster_tidegate import ServiceConfig

# Without this variable, the address of 'tidegate sandbox serve'.
SANDBOX_URL = os.environ.get("TIDEGATE_SANDBOX_URL", "http://127.0.0.1:8765").rstrip("/")

# Short, so that a visitor sees the whole story in a minute.
DEMO = {"reset_timeout_s": 5.0, "reset_timeout_cap_s": 20.0, "ramp_interval_s": 5.0}


def address(service: str) -> str:
    """Return the address of a service."""
    return f"{SANDBOX_URL}/{service}"


def probe(service: str) -> str:
    """Return the address that says whether a service is well."""
    return f"{address(service)}/health"


SERVICES = [
    ServiceConfig(name="apollo", consecutive_failures=5, probe_url=probe("apollo"), **DEMO),
    # Half of its calls failing, never five in a row, is an outage too.
    ServiceConfig(
        name="millionverifier",
        consecutive_failures=5,
        failure_rate=0.3,
        min_calls=20,
        probe_url=probe("millionverifier"),
        **DEMO,
    ),
    ServiceConfig(name="perplexity", consecutive_failures=5, probe_url=probe("perplexity"), **DEMO),
    ServiceConfig(
        name="openai",
        consecutive_failures=5,
        slow_call_rate=0.5,
        slow_call_s=2.0,
        probe_url=probe("openai"),
        **DEMO,
    ),
    # It has no address that says how it is: a paused run goes on as the canary.
    ServiceConfig(name="instantly", consecutive_failures=5, **DEMO),
]
"""Each service with its policy."""
