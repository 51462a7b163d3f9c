"""Reports breakers to OpenTelemetry. Needs the extra `otel`.

This uses OpenTelemetry's API only: it does nothing unless the application sets up an SDK.
"""

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider

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

NAME = "dagster_tidegate"


class OpenTelemetryHook:
    """Reports the breakers of this process as metrics and span events.

    docs/metrics.md lists them. Changes of state and refused calls become events of the current
    span, if there is one.

    Args:
        meter_provider: The default is the global provider.

    Example:
        >>> from dagster_tidegate.breaker.fleet import Fleet
        >>> fleet = Fleet(hooks=[OpenTelemetryHook()])
    """

    times_calls = True

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        meter = metrics.get_meter(NAME, meter_provider=meter_provider)
        self._calls = meter.create_counter(
            "tidegate.calls", unit="{call}", description="Guarded calls"
        )
        self._spent = meter.create_counter(
            "tidegate.spent", description="What was spent of budgets, in their units"
        )
        self._duration = meter.create_histogram(
            "tidegate.call.duration", unit="s", description="Duration of guarded calls"
        )
        self._changes = meter.create_counter(
            "tidegate.breaker.changes",
            unit="{change}",
            description="Changes of state made by this process",
        )
        self._state = meter.create_gauge(
            "tidegate.breaker.state", description="1 for the current state of the breaker"
        )
        self._propagation = meter.create_histogram(
            "tidegate.breaker.propagation",
            unit="s",
            description="Time from a change of state until this process learned of it",
        )
        self._degraded = meter.create_gauge(
            "tidegate.store.degraded", description="1 while the store is unreachable"
        )

    def __call__(self, event: Event, /) -> None:
        """Record an event."""
        match event:
            case CallsCounted(service=service, ok=ok, failed=failed):
                for outcome, count in (("ok", ok), ("failed", failed)):
                    if count:
                        self._calls.add(count, _attributes(service, outcome=outcome))
            case CallEnded(service=service, failed=failed, duration_s=duration_s):
                outcome = "failed" if failed else "ok"
                self._duration.record(duration_s, _attributes(service, outcome=outcome))
            case CallRefused(service=service, reason=reason):
                self._calls.add(1, _attributes(service, outcome="refused"))
                trace.get_current_span().add_event(
                    "tidegate.call.refused", _attributes(service, reason=reason)
                )
            case CallJudged(service=service, verdict=verdict):
                self._calls.add(1, _attributes(service, outcome=verdict.kind.value))
            case AmountSpent(service=service, campaign=campaign, amount=amount, unit=unit):
                self._spent.add(amount, _attributes(service, campaign=campaign, unit=unit))
            case StateChanged(service=service, before=before, after=after):
                self._changes.add(1, _attributes(service, to=after.state.value))
                trace.get_current_span().add_event(
                    "tidegate.breaker.changed",
                    _attributes(
                        service,
                        before=before.state.value,
                        to=after.state.value,
                        reason=after.reason or "",
                    ),
                )
                self._show(service, after.state)
            case ChangeLearned(service=service, after=after, delay_s=delay_s):
                self._propagation.record(delay_s, _attributes(service, to=after.state.value))
                self._show(service, after.state)
            case StoreLost():
                self._degraded.set(1)
            case StoreRegained():
                self._degraded.set(0)
            case _:
                pass

    def _show(self, service: str, present: BreakerState) -> None:
        for state in BreakerState:
            self._state.set(int(state is present), _attributes(service, state=state.value))


def _attributes(service: str, **values: str) -> dict[str, str]:
    return {"tidegate.service": service} | {
        f"tidegate.{name}": value for name, value in values.items()
    }
