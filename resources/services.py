"""The services of this deployment: when each trips, and where it is."""

import os
from typing import Any

from dagster_tidegate import ServiceConfig

# Without this variable, the address of 'tidegate sandbox serve'.
SANDBOX_URL = os.environ.get("TIDEGATE_SANDBOX_URL", "http://127.0.0.1:8765").rstrip("/")


def address(service: str) -> str:
    """Return the address of a service."""
    return f"{SANDBOX_URL}/{service}"


def probe(service: str) -> str:
    """Return the address that says whether a service is well."""
    return f"{address(service)}/health"


def _policy(name: str, **rules: Any) -> ServiceConfig:
    # Times are short, so that a visitor sees the whole story in a minute.
    return ServiceConfig(
        name=name,
        consecutive_failures=5,
        reset_timeout_s=5.0,
        reset_timeout_cap_s=20.0,
        ramp_interval_s=5.0,
        **rules,
    )


SERVICES = [
    _policy("apollo", probe_url=probe("apollo")),
    # Half of its calls failing, never five in a row, is an outage too.
    _policy("millionverifier", failure_rate=0.3, min_calls=20, probe_url=probe("millionverifier")),
    _policy("perplexity", probe_url=probe("perplexity")),
    _policy("openai", slow_call_rate=0.5, slow_call_s=2.0, probe_url=probe("openai")),
    # It has no address that says how it is: one paused run goes on, as the canary.
    _policy("instantly"),
]
"""Each service with its policy."""
