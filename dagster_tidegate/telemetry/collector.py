"""Makes metrics of what the store says of the fleet, when Prometheus asks."""

import logging
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.metadata import version
from threading import Lock

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import exc

from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store.database import Store
from dagster_tidegate.telemetry.counters import Counters
from dagster_tidegate.telemetry.facts import Facts, read

CACHE_S = 5.0
STORE_UP = "tidegate_store_up"
STORE_UP_HELP = "Whether the store can be read: 1 or 0"
log = logging.getLogger(__name__)


class FleetCollector(Collector):
    """The metrics of the fleet, read from the store at most every few seconds.

    docs/metrics.md lists them. Its counters begin at zero with the process, as Prometheus expects.
    While the store can't be read, `tidegate_store_up` is 0 and all that is read there is absent.

    Args:
        store: The store.
        cache_s: For how long what was read is told again, in seconds.

    Example:
        >>> from prometheus_client import CollectorRegistry
        >>> CollectorRegistry().register(FleetCollector(Store("sqlite://")))
    """

    def __init__(self, store: Store, *, cache_s: float = CACHE_S) -> None:
        self._store, self._cache_s = store, cache_s
        self._counters = Counters()
        self._lock = Lock()
        self._made: Sequence[Metric] = ()
        self._made_at = float("-inf")

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what is there is only known when it is read."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        with self._lock:
            if time.monotonic() - self._made_at >= self._cache_s:
                self._made = [_version()]
                self._made += self._read()
                self._made_at = time.monotonic()
            return self._made

    def _read(self) -> Sequence[Metric]:
        began = time.perf_counter()
        try:
            with self._store.read() as conn:
                now = self._store.now(conn)
                self._counters.read(conn, now)
                facts = read(conn, now)
        except (exc.DBAPIError, exc.TimeoutError) as error:
            log.warning("the metrics can't be read from the store: %s", type(error).__name__)
            return [GaugeMetricFamily(STORE_UP, STORE_UP_HELP, value=0)]
        took_s = time.perf_counter() - began
        return [
            GaugeMetricFamily(STORE_UP, STORE_UP_HELP, value=1),
            _one("store_read_seconds", "How long reading these metrics took", took_s),
            _one(
                "enabled", "Whether Tidegate is switched on here: 1 or 0", facts.situation.enabled
            ),
            *_services(facts, self._counters),
            *_holds(facts),
            *_campaigns(facts),
            *_gates(facts),
            *_alerts(facts),
        ]


def _services(facts: Facts, counters: Counters) -> Iterable[Metric]:
    seen = facts.situation
    circuits = seen.circuits
    yield _gauge(
        "breaker_state",
        "1 for the state that the breaker of a service is in, 0 for the others",
        {
            (name, state.value): circuit.state is state
            for name, circuit in circuits.items()
            for state in BreakerState
        },
        "service",
        "state",
    )
    yield _gauge(
        "breaker_outage_seconds",
        "For how long a breaker is not closed by now; 0 while it is closed",
        {
            (name,): 0.0
            if circuit.state is BreakerState.CLOSED
            else _since(seen.now, circuit.opened_at or circuit.changed_at)
            for name, circuit in circuits.items()
        },
        "service",
    )
    yield _gauge(
        "breaker_trial_calls",
        "Trial calls of half open breakers that are under way",
        {(name,): seen.trials.get(name, 0) for name in circuits},
        "service",
    )
    yield _counter(
        "breaker_trips",
        "How often a breaker opened, failed probes aside",
        {(name,): counters.trips[name] for name in circuits},
        "service",
    )
    yield _counter(
        "breaker_open_seconds",
        "For how long a breaker was not closed",
        {(name,): counters.open_seconds(name, seen.now) for name in circuits},
        "service",
    )
    yield _counter(
        "calls",
        "Guarded calls of the whole fleet; slow ones are in ok too",
        {
            (name, outcome): counters.calls[name, outcome]
            for name in circuits
            for outcome in ("ok", "slow", "failed")
        },
        "service",
        "outcome",
    )


def _holds(facts: Facts) -> Iterable[Metric]:
    yield _gauge("holds", "Live holds", facts.holds, "source", "target_kind")
    yield _gauge(
        "hold_oldest_seconds",
        "Age of the oldest live hold of a source; 0 where there is none",
        {
            (source,): 0.0 if placed_at is None else _since(facts.situation.now, placed_at)
            for source, placed_at in facts.oldest_holds.items()
        },
        "source",
    )
    yield _gauge(
        "takeovers",
        "What the gate has changed in Dagster and not given back",
        facts.takeovers,
        "kind",
    )


def _campaigns(facts: Facts) -> Iterable[Metric]:
    seen = facts.situation
    yield _gauge(
        "campaign_paused",
        "Whether a live hold covers a campaign: 1 or 0",
        {(name,): bool(campaign.holds) for name, campaign in seen.campaigns.items()},
        "campaign",
    )
    yield _gauge(
        "campaign_runs",
        "Campaign runs, by their status",
        {
            (name, status.value): campaign.runs.get(status, 0)
            for name, campaign in seen.campaigns.items()
            for status in RunStatus
        },
        "campaign",
        "status",
    )
    yield _gauge(
        "paused_run_oldest_seconds",
        "For how long the campaign run is paused that is paused for longest; 0 where none is",
        {
            (name,): _since(seen.now, facts.paused_since[name])
            if name in facts.paused_since
            else 0.0
            for name in seen.campaigns
        },
        "campaign",
    )
    yield _gauge(
        "records",
        "Records of the campaign runs that are processing or paused, by how they ended",
        {
            (campaign, op, status): count
            for (campaign, op), found in facts.progress.items()
            for status, count in (("done", found.done), ("failed", found.failed))
        },
        "campaign",
        "op",
        "status",
    )
    yield _gauge(
        "records_expected",
        "Records that the campaign runs that are processing or paused have, where that is known",
        {key: found.expected for key, found in facts.progress.items() if found.expected},
        "campaign",
        "op",
    )
    yield _gauge(
        "records_per_second",
        "Records that the campaign runs that are processing settle in a second, of late",
        {key: found.rate for key, found in facts.progress.items()},
        "campaign",
        "op",
    )


def _gates(facts: Facts) -> Iterable[Metric]:
    seen = facts.situation
    stale = {gate.location for gate in seen.stale_gates()}
    yield _gauge(
        "gate_tick_timestamp_seconds",
        "When a part of the gate last finished its work, in seconds since 1970",
        {(beat.location, beat.part): beat.at.timestamp() for beat in seen.heartbeats},
        "location",
        "part",
    )
    yield _gauge(
        "gate_stale",
        "Whether a part of the gate of a code location does not do its work: 1 or 0",
        {
            (campaign.spec.location,): campaign.spec.location in stale
            for campaign in seen.campaigns.values()
        },
        "location",
    )


def _alerts(facts: Facts) -> Iterable[Metric]:
    found, now = facts.alerts, facts.situation.now
    yield _gauge(
        "alerts",
        "Alerts, by whether people were told; of those that are over, the last day's",
        {(status.value,): count for status, count in found.by_status.items()},
        "status",
    )
    yield _gauge("alerts_live", "Alerts whose cause lasts", facts.live_alerts, "kind")
    waits = 0.0 if found.oldest_pending_at is None else _since(now, found.oldest_pending_at)
    yield _one(
        "alert_oldest_pending_seconds",
        "For how long the oldest alert waits that is not sent yet; 0 where none does",
        waits,
    )
    if found.looked_at is not None:
        yield _one(
            "alert_last_look_timestamp_seconds",
            "When somebody last looked whether there is something to tell, in seconds since 1970; "
            "up to half a minute old",
            found.looked_at.timestamp(),
        )


Values = dict[tuple[str, ...], float]


def _gauge(name: str, text: str, values: Values, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"tidegate_{name}", text, labels=labels), values)


def _counter(name: str, text: str, values: Values, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"tidegate_{name}", text, labels=labels), values)


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"tidegate_{name}", text, value=value)


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, values: Values
) -> GaugeMetricFamily | CounterMetricFamily:
    for labels, value in values.items():
        family.add_metric(labels, float(value))
    return family


def _since(now: datetime, then: datetime) -> float:
    return max(0.0, (now - then).total_seconds())


def _version() -> Metric:
    installed = version("dagster-tidegate")
    return _gauge(
        "build_info", "1, with the version of dagster-tidegate", {(installed,): 1}, "version"
    )
