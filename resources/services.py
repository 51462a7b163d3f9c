"""The services of this deployment: where each is, and when its breaker trips."""

from typing import Any

from dagster_tidegate import ServiceConfig


def address(sandbox_url: str, service: str) -> str:
    """Return the address of a service, all of which the sandbox plays."""
    return f"{sandbox_url.rstrip('/')}/{service}"


def services(sandbox_url: str) -> list[ServiceConfig]:
    """Return each service with its policy.

    Args:
        sandbox_url: Address of the sandbox; its health checks are the probes.
    """

    def policy(name: str, **rules: Any) -> ServiceConfig:
        # Times are short, so that a visitor sees the whole story in a minute.
        return ServiceConfig(
            name=name,
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
        # Half of its calls failing, never five in a row, is an outage too.
        policy(
            "millionverifier", failure_rate=0.3, min_calls=20, probe_url=probe("millionverifier")
        ),
        policy("perplexity", probe_url=probe("perplexity")),
        policy("openai", slow_call_rate=0.5, slow_call_s=2.0, probe_url=probe("openai")),
        # It has no address that says how it is: one paused run goes on, as the canary.
        policy("instantly"),
    ]
