"""Metrics of the fleet, read from the store when Prometheus scrapes them."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from threading import Lock

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dagster_tidegate.breaker.limits import Usage
from dagster_tidegate.control import situation
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.holds import HoldSource, TargetKind
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import alerts, campaign_stats, limits
from dagster_tidegate.store.database import DATABASE_ERRORS, Connection, Store
from dagster_tidegate.store.takeovers import TakeoverKind
from dagster_tidegate.telemetry.counters import Counters

CACHE_S = 5.0
STORE_UP = "tidegate_store_up"
STORE_UP_HELP = "1 if the store can be read, else 0"
HELD_KINDS = {HoldSource.BREAKER: (TargetKind.SERVICE,), HoldSource.OPERATOR: tuple(TargetKind)}
log = logging.getLogger(__name__)


class FleetCollector(Collector):
    """Metrics of the fleet, read from the store at most every `cache_s` seconds.

    docs/metrics.md lists them. Counters start at zero with the process, as Prometheus expects.
    While the store can't be read, `tidegate_store_up` is 0 and the other metrics are absent.

    Example:
        >>> from prometheus_client import CollectorRegistry
        >>> CollectorRegistry().register(FleetCollector(Store("sqlite://")))
    """

    def __init__(self, store: Store, *, cache_s: float = CACHE_S) -> None:
        self._store, self._cache_s = store, cache_s
        self._counters = Counters()
        self._lock = Lock()
        self._metrics: Sequence[Metric] = ()
        self._read_ticks = float("-inf")

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering does not read the store."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        with self._lock:
            if time.monotonic() - self._read_ticks >= self._cache_s:
                self._metrics = [_version(), *self._read()]
                self._read_ticks = time.monotonic()
            return self._metrics

    def _read(self) -> Iterable[Metric]:
        started = time.perf_counter()
        try:
            with self._store.read() as conn:
                now = self._store.now(conn)
                self._counters.read(conn, now)
                fleet = situation.read(conn, now)
                metrics = [
                    _one("enabled", "0 if TIDEGATE_ENABLED is false here, else 1", fleet.enabled),
                    *_services(fleet, self._counters),
                    *_limits(limits.usage(conn, now)),
                    *_budgets(fleet),
                    *_holds(fleet),
                    *_campaigns(fleet, conn),
                    *_gates(fleet),
                    *_alerts(conn, now),
                ]
        except DATABASE_ERRORS as error:
            log.warning("The metrics can't be read from the store: %s", type(error).__name__)
            return [GaugeMetricFamily(STORE_UP, STORE_UP_HELP, value=0)]
        return [
            GaugeMetricFamily(STORE_UP, STORE_UP_HELP, value=1),
            _one(
                "store_read_seconds",
                "How long reading these metrics took",
                time.perf_counter() - started,
            ),
            *metrics,
        ]


def _services(fleet: Situation, counters: Counters) -> Iterable[Metric]:
    breakers = fleet.breakers
    yield _gauge(
        "breaker_state",
        "1 for the current state of the breaker of a service, 0 for the others",
        ["service", "state"],
        {
            (name, state.value): breaker.state is state
            for name, breaker in breakers.items()
            for state in BreakerState
        },
    )
    yield _gauge(
        "breaker_outage_seconds",
        "How long a breaker has not been closed; 0 while it is closed",
        ["service"],
        {
            (name,): 0.0
            if breaker.state is BreakerState.CLOSED
            else _since(fleet.now, breaker.opened_at or breaker.changed_at)
            for name, breaker in breakers.items()
        },
    )
    yield _gauge(
        "breaker_trial_calls",
        "Trial calls of half-open breakers in flight",
        ["service"],
        {(name,): fleet.trials.get(name, 0) for name in breakers},
    )
    yield _counter(
        "breaker_trips",
        "How often a breaker opened, not counting failed trial calls",
        ["service"],
        {(name,): counters.trips[name] for name in breakers},
    )
    yield _counter(
        "breaker_open_seconds",
        "How long a breaker was not closed",
        ["service"],
        {(name,): counters.open_seconds(name, fleet.now) for name in breakers},
    )
    yield _counter(
        "calls",
        "Guarded calls of the fleet; slow ones also count as ok",
        ["service", "outcome"],
        {
            (name, outcome): counters.calls[name, outcome]
            for name in breakers
            for outcome in ("ok", "slow", "failed")
        },
    )


def _limits(usage: Mapping[str, Sequence[Usage]]) -> Iterable[Metric]:
    used = [(service, each) for service, limits in usage.items() for each in limits]
    yield _gauge(
        "limit_calls",
        "How many calls a limit permits",
        ["service", "limit"],
        {(service, each.limit): each.calls for service, each in used},
    )
    yield _gauge(
        "limit_used",
        "How many of these are used up, with what processes have leased",
        ["service", "limit"],
        {(service, each.limit): each.used for service, each in used},
    )


def _budgets(fleet: Situation) -> Iterable[Metric]:
    yield _gauge(
        "budget",
        "How much may be spent on a service in a period of its budget",
        ["service", "unit"],
        {(name, budget.unit): budget.amount for name, budget in fleet.budgets.items()},
    )
    yield _gauge(
        "budget_left",
        "How much is left of it in this period",
        ["service", "unit"],
        {(name, budget.unit): budget.left for name, budget in fleet.budgets.items()},
    )
    yield _gauge(
        "budget_spent",
        "How much a campaign has spent of it in this period",
        ["service", "unit", "campaign"],
        {
            (name, budget.unit, campaign): spent
            for name, budget in fleet.budgets.items()
            for campaign, spent in budget.campaigns.items()
        },
    )


def _holds(fleet: Situation) -> Iterable[Metric]:
    holds = Counter((hold.source, hold.target.kind) for hold in fleet.holds)
    yield _gauge(
        "holds",
        "Live holds",
        ["source", "target_kind"],
        {
            (source.value, kind.value): holds[source, kind]
            for source, kinds in HELD_KINDS.items()
            for kind in kinds
        },
    )
    yield _gauge(
        "hold_oldest_seconds",
        "Age of the oldest live hold of a source; 0 if there is none",
        ["source"],
        {
            (source.value,): max(
                (_since(fleet.now, h.placed_at) for h in fleet.holds if h.source is source),
                default=0.0,
            )
            for source in HoldSource
        },
    )
    takeovers = Counter(takeover.kind for takeover in fleet.takeovers)
    yield _gauge(
        "takeovers",
        "Dagster settings that the gate has changed and not yet restored",
        ["kind"],
        {(kind.value,): takeovers[kind] for kind in TakeoverKind},
    )


def _campaigns(fleet: Situation, conn: Connection) -> Iterable[Metric]:
    yield _gauge(
        "campaign_paused",
        "1 while a live hold covers a campaign, else 0",
        ["campaign"],
        {(name,): bool(campaign.holds) for name, campaign in fleet.campaigns.items()},
    )
    yield _gauge(
        "campaign_runs",
        "Campaign runs by status",
        ["campaign", "status"],
        {
            (name, status.value): campaign.runs.get(status, 0)
            for name, campaign in fleet.campaigns.items()
            for status in RunStatus
        },
    )
    paused_since = campaign_stats.paused_since(conn)
    yield _gauge(
        "paused_run_oldest_seconds",
        "How long the longest paused campaign run has been paused; 0 if none is paused",
        ["campaign"],
        {(name,): _since(fleet.now, paused_since.get(name)) for name in fleet.campaigns},
    )
    ops = campaign_stats.op_progress(conn, fleet.now)
    yield _gauge(
        "records",
        "Finished records of the unfinished campaign runs",
        ["campaign", "op", "status"],
        {
            (each.campaign, each.op, status): count
            for each in ops
            for status, count in (("done", each.done), ("failed", each.failed))
        },
    )
    yield _gauge(
        "records_expected",
        "Total records of the unfinished campaign runs, where known",
        ["campaign", "op"],
        {(each.campaign, each.op): each.total for each in ops if each.total},
    )
    yield _gauge(
        "records_per_second",
        "Records that the processing campaign runs currently finish per second",
        ["campaign", "op"],
        {(each.campaign, each.op): each.records_per_second for each in ops},
    )


def _gates(fleet: Situation) -> Iterable[Metric]:
    stale = {gate.location for gate in fleet.stale_gates()}
    yield _gauge(
        "gate_tick_timestamp_seconds",
        "Unix time at which a part of the gate last finished a tick",
        ["location", "part"],
        {(beat.location, beat.part): beat.at.timestamp() for beat in fleet.heartbeats},
    )
    yield _gauge(
        "gate_stale",
        "1 while a part of the gate of a code location is stale, else 0",
        ["location"],
        {
            (campaign.spec.location,): campaign.spec.location in stale
            for campaign in fleet.campaigns.values()
        },
    )


def _alerts(conn: Connection, now: datetime) -> Iterable[Metric]:
    counts = alerts.counts(conn, now)
    yield _gauge(
        "alerts",
        "Alerts by status; the final statuses cover the last 24 hours",
        ["status"],
        {(status.value,): count for status, count in counts.by_status.items()},
    )
    yield _gauge(
        "alerts_live",
        "Alerts whose cause persists",
        ["kind"],
        {(kind,): count for kind, count in counts.live.items()},
    )
    yield _one(
        "alert_oldest_pending_seconds",
        "Age of the oldest unsent alert; 0 if there is none",
        _since(now, counts.oldest_pending_at),
    )
    if counts.looked_at is not None:
        yield _one(
            "alert_last_look_timestamp_seconds",
            "Unix time at which an alert sender last checked; up to half a minute old",
            counts.looked_at.timestamp(),
        )


def _version() -> Metric:
    installed = version("dagster-tidegate")
    return _gauge(
        "build_info",
        "1, labelled with the version of dagster-tidegate",
        ["version"],
        {(installed,): 1},
    )


Values = dict[tuple[str, ...], float]


def _gauge(name: str, text: str, labels: Sequence[str], values: Values) -> Metric:
    return _filled(GaugeMetricFamily(f"tidegate_{name}", text, labels=labels), values)


def _counter(name: str, text: str, labels: Sequence[str], values: Values) -> Metric:
    return _filled(CounterMetricFamily(f"tidegate_{name}", text, labels=labels), values)


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"tidegate_{name}", text, value=value)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Values) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, float(value))
    return family


def _since(now: datetime, then: datetime | None) -> float:
    """Return the seconds since a time; 0 if there is none."""
    return 0.0 if then is None else max(0.0, (now - then).total_seconds())
