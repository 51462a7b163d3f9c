"""Prometheus metrics of the breakers of a process."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from dagster_tidegate.breaker.events import (
    AmountSpent,
    CallEnded,
    CallJudged,
    CallRefused,
    CallsCounted,
    ChangeLearned,
    Event,
    StateChanged,
    StoreLost,
    StoreRegained,
)
from dagster_tidegate.statuses import BreakerState

CALL_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
PROPAGATION_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class PrometheusHook:
    """Metrics of the breakers of this process; docs/metrics.md lists them.

    For long-running processes that Prometheus can scrape. Runs are too short for that; `tidegate
    serve` has the metrics of the whole fleet at `/metrics`.

    Example:
        >>> hook = PrometheusHook(CollectorRegistry())
    """

    times_calls = True

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._calls = Counter(
            "tidegate_worker_calls",
            "Guarded calls of this process; slow ones also count as ok",
            ["service", "outcome"],
            registry=registry,
        )
        self._spent = Counter(
            "tidegate_worker_spent",
            "What this process has spent of budgets, in their units",
            ["service", "unit", "campaign"],
            registry=registry,
        )
        self._duration = Histogram(
            "tidegate_worker_call_duration_seconds",
            "Duration of guarded calls of this process",
            ["service", "outcome"],
            buckets=CALL_BUCKETS_S,
            registry=registry,
        )
        self._state = Gauge(
            "tidegate_worker_breaker_state",
            "1 for the last known state of the breaker; absent until it first changes",
            ["service", "state"],
            registry=registry,
        )
        self._changes = Counter(
            "tidegate_worker_breaker_changes",
            "Changes of state made by this process",
            ["service", "to"],
            registry=registry,
        )
        self._propagation = Histogram(
            "tidegate_worker_propagation_seconds",
            "Time from a change of state by another process until this one learned of it",
            ["service", "to"],
            buckets=PROPAGATION_BUCKETS_S,
            registry=registry,
        )
        self._degraded = Gauge(
            "tidegate_worker_store_degraded",
            "1 while this process can't reach the store and uses its own breakers",
            registry=registry,
        )

    def __call__(self, event: Event, /) -> None:
        """Count an event."""
        match event:
            case CallsCounted(service=service, ok=ok, slow=slow, failed=failed):
                for outcome, count in (("ok", ok), ("slow", slow), ("failed", failed)):
                    self._calls.labels(service, outcome).inc(count)
            case CallEnded(service=service, failed=failed, duration_s=duration_s):
                self._duration.labels(service, "failed" if failed else "ok").observe(duration_s)
            case CallRefused(service=service):
                self._calls.labels(service, "refused").inc()
            case CallJudged(service=service, verdict=verdict):
                self._calls.labels(service, verdict.kind.value).inc()
            case AmountSpent(service=service, campaign=campaign, amount=amount, unit=unit):
                self._spent.labels(service, unit, campaign).inc(amount)
            case StateChanged(service=service, after=after):
                self._changes.labels(service, after.state.value).inc()
                self._show(service, after.state)
            case ChangeLearned(service=service, after=after, delay_s=delay_s):
                self._propagation.labels(service, after.state.value).observe(delay_s)
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
