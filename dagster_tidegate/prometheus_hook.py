"""Counts what happens to breakers for Prometheus. Needs the extra `metrics`."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from dagster_tidegate.hooks import (
    CallRefused,
    CallsCounted,
    ChangeLearned,
    Event,
    StateChanged,
    StoreLost,
    StoreRegained,
)
from dagster_tidegate.statuses import BreakerState


class PrometheusHook:
    """Keeps metrics of the breakers of this process.

    | metric | labels | meaning |
    |---|---|---|
    | `tidegate_calls_total` | service, outcome: ok, slow, failed, refused | calls; slow ones are in ok too |
    | `tidegate_breaker_state` | service, state | 1 for the state it is in, once it has changed |
    | `tidegate_breaker_changes_total` | service, to | changes that this process made |
    | `tidegate_store_degraded` | | 1 while the store can't be reached |

    Args:
        registry: Where the metrics are registered.

    Example:
        >>> hook = PrometheusHook(CollectorRegistry())
    """  # noqa: E501 - a table

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._calls = Counter(
            "tidegate_calls", "Guarded calls", ["service", "outcome"], registry=registry
        )
        self._state = Gauge(
            "tidegate_breaker_state",
            "State of the breaker",
            ["service", "state"],
            registry=registry,
        )
        self._changes = Counter(
            "tidegate_breaker_changes",
            "Changes of state made by this process",
            ["service", "to"],
            registry=registry,
        )
        self._degraded = Gauge(
            "tidegate_store_degraded", "The store can't be reached", registry=registry
        )

    def __call__(self, event: Event, /) -> None:
        """Count an event."""
        match event:
            case CallsCounted(service=service, ok=ok, slow=slow, failed=failed):
                for outcome, count in (("ok", ok), ("slow", slow), ("failed", failed)):
                    self._calls.labels(service, outcome).inc(count)
            case CallRefused(service=service):
                self._calls.labels(service, "refused").inc()
            case StateChanged(service=service, after=after):
                self._changes.labels(service, after.state.value).inc()
                self._show(service, after.state)
            case ChangeLearned(service=service, after=after):
                self._show(service, after.state)
            case StoreLost():
                self._degraded.set(1)
            case StoreRegained():
                self._degraded.set(0)
            case _:
                pass

    def _show(self, service: str, present: BreakerState) -> None:
        for state in BreakerState:
            self._state.labels(service, state.value).set(state == present)
