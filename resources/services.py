"""The services of this deployment and their policies."""

from typing import Any

from dagster_tidegate import ServiceConfig


def address(sandbox_url: str, service: str) -> str:
    """Return the address of a service in the sandbox."""
    return f"{sandbox_url.rstrip('/')}/{service}"


def services(sandbox_url: str) -> list[ServiceConfig]:
    """Return the services, with the health checks of the sandbox as probes."""

    def policy(name: str, **rules: Any) -> ServiceConfig:
        # Short times, so that a visitor sees a whole outage within minutes.
        return ServiceConfig(
            name=name,
            profile=name,
            consecutive_failures=5,
            reset_timeout_s=5.0,
            reset_timeout_cap_s=20.0,
            ramp_interval_s=5.0,
            **rules,
        )

    def probe(name: str) -> str:
        return f"{address(sandbox_url, name)}/health"

    return [
        policy("apollo", probe_url=probe("apollo")),
        # Half of the calls failing is an outage too, even if never five in a row.
        policy(
            "millionverifier", failure_rate=0.3, min_calls=20, probe_url=probe("millionverifier")
        ),
        policy("perplexity", probe_url=probe("perplexity")),
        policy("openai", slow_call_rate=0.5, slow_call_s=2.0, probe_url=probe("openai")),
        # It has no health check: a paused run resumes first, as the canary.
        policy("instantly"),
    ]
