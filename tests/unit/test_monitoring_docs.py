"""Docs, rules and dashboard match the metrics, alerts and settings."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.alerts.sender import FIRST_WAIT_S, MAX_TRIES, MAX_WAIT_S
from dagster_tidegate.alerts.targets import TIMEOUT_S
from dagster_tidegate.breaker.budget import BudgetState, SpendingLimit
from dagster_tidegate.breaker.events import (
    AmountSpent,
    CallEnded,
    CallRefused,
    CallsCounted,
    ChangeLearned,
    Event,
    StateChanged,
    StoreLost,
    StoreRegained,
)
from dagster_tidegate.breaker.limits import CallRequest, RateLimit
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.control import runbooks
from dagster_tidegate.settings import AlertSettings, load, variable
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import alerts, breakers, campaigns, heartbeats, limits
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.telemetry.collector import FleetCollector
from dagster_tidegate.telemetry.opentelemetry import OpenTelemetryHook
from dagster_tidegate.telemetry.prometheus import PrometheusHook

PROJECT = Path(__file__).parents[2]
METRICS = (PROJECT / "docs" / "metrics.md").read_text()
ALERTS = (PROJECT / "docs" / "alerts.md").read_text()
RULES = yaml.safe_load((PROJECT / "deploy" / "prometheus" / "rules.yml").read_text())
DASHBOARD = json.loads(
    (PROJECT / "deploy" / "grafana" / "dashboards" / "tidegate.json").read_text()
)
NOW = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)


def fleet_registry() -> CollectorRegistry:
    """The metrics of a store that has some of everything."""
    store = Store("sqlite://", clock=lambda: NOW)
    t.metadata.create_all(store.engine)
    with store.begin() as conn:
        breakers.ensure(conn, NOW, ["mail"])
        campaigns.save(conn, NOW, "here", [CampaignSpec("letters", "here", "none")])
        heartbeats.beat(conn, NOW, location="here", part="pause", summary="")
        run = conn.scalar(
            t.campaign_runs.insert()
            .values(
                campaign="letters",
                partition="monday",
                status=RunStatus.PROCESSING,
                created_at=NOW,
                changed_at=NOW,
            )
            .returning(t.campaign_runs.c.id)
        )
        conn.execute(
            t.progress.insert().values(
                campaign_run=run,
                op="send",
                done=1,
                failed=1,
                total=9,
                position=0,
                series=1,
                exact=True,
                updated_at=NOW,
            )
        )
        limited = ServicePolicy(name="mail", limits=[RateLimit(calls=5, per="day")])
        limits.lease(conn, store, limited, "w", CallRequest(1))
        budget = BudgetState(SpendingLimit(amount=5)).to_json()
        conn.execute(t.budgets.insert().values(service="mail", state=budget))
        conn.execute(
            t.spending.insert().values(
                service="mail", period=NOW, unit="credits", campaign="c", amount=1
            )
        )
        alerts.raise_alert(conn, NOW, kind=AlertKind.TRIP, name="x", title="", body="", lasts=True)
        alerts.move_cursor(conn, NOW, before=None, event=0)
    registry = CollectorRegistry()
    registry.register(FleetCollector(store))
    return registry


def all_events() -> Iterator[Event]:
    closed = BreakerStatus("mail", changed_at=NOW)
    opened = BreakerStatus("mail", changed_at=NOW, state=BreakerState.OPEN, generation=1)
    yield StateChanged("mail", closed, opened, "me")
    yield ChangeLearned("mail", opened, closed, 0.1)
    yield CallRefused("mail", "open", None)
    yield CallsCounted("mail", 1, 1, 1)
    yield AmountSpent("mail", "letters", 1.5, "credits")
    yield CallEnded("mail", failed=False, duration_s=0.1)
    yield StoreLost(OSError())
    yield StoreRegained(1.0)


def process_registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    hook = PrometheusHook(registry)
    for event in all_events():
        hook(event)
    return registry


def printed(registry: CollectorRegistry) -> list[Metric]:
    """The metrics as Prometheus reads them."""
    return list(text_string_to_metric_families(generate_latest(registry).decode()))


FLEET, PROCESS = printed(fleet_registry()), printed(process_registry())


def described(metrics: Iterable[Metric]) -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels of metrics, by the names in docs."""
    by_name = {}
    for metric in metrics:
        if metric.name.endswith("_created"):
            continue  # prometheus-client's own
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = frozenset(label for sample in metric.samples for label in sample.labels)
        by_name[name] = (metric.type, labels - {"le"})
    return by_name


def documented(heading: str, name: str = r"tidegate_\w+") -> dict[str, tuple[str, frozenset[str]]]:
    section = METRICS.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(rf"^\| `({name})` \| (\w+)[^|]* \|([^|]*)\|", section, re.MULTILINE)
    assert len(rows) == len({row[0] for row in rows})
    return {row[0]: (row[1], frozenset(re.findall(r"\w+", row[2]))) for row in rows}


def test_every_metric_of_the_fleet_is_documented_with_type_and_labels() -> None:
    assert documented("Fleet metrics") == described(FLEET)


def test_every_metric_of_a_process_is_documented_with_type_and_labels() -> None:
    assert documented("Process metrics") == described(PROCESS)


def test_every_instrument_of_opentelemetry_is_documented_with_type_and_attributes() -> None:
    reader = InMemoryMetricReader()
    hook = OpenTelemetryHook(MeterProvider([reader]))
    for event in all_events():
        hook(event)
    data: Any = reader.get_metrics_data()
    kinds = {"Sum": "counter", "Histogram": "histogram", "Gauge": "gauge"}
    instruments = {
        metric.name: (
            kinds[type(metric.data).__name__],
            frozenset(
                name.removeprefix("tidegate.")
                for point in metric.data.data_points
                for name in point.attributes
            ),
        )
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }
    assert documented("OpenTelemetry", r"tidegate\.[\w.]+") == instruments


def samples() -> Mapping[str, list[dict[str, str]]]:
    """The labels of all samples, by their names."""
    labels: dict[str, list[dict[str, str]]] = {}
    for metric in [*FLEET, *PROCESS]:
        for sample in metric.samples:
            labels.setdefault(sample.name, []).append(sample.labels)
    return labels


SAMPLES = samples()
RULE_EXPRESSIONS = [
    (rule["alert"], rule["expr"]) for group in RULES["groups"] for rule in group["rules"]
]
PANEL_EXPRESSIONS = [
    (panel["title"], target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
]


@pytest.mark.parametrize(("place", "expression"), RULE_EXPRESSIONS + PANEL_EXPRESSIONS)
def test_rules_and_dashboard_use_existing_metrics_and_labels(place: str, expression: str) -> None:
    selectors = re.findall(r"\b(tidegate_\w+)(?:\{([^}]*)\})?", expression)
    assert selectors, place
    labels: set[str] = set()
    for name, selector in selectors:
        assert name in SAMPLES, f"{place}: {name} does not exist"
        series = SAMPLES[name]
        labels |= series[0].keys()
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!=|=)\s*"([^"]*)"', selector):
            assert label in series[0], f"{place}: {name} has no label {label}"
            # PromQL's alternatives are those of Python's expressions.
            values = {each[label] for each in series}
            for wanted in value.split("|") if operator == "=~" else [value]:
                assert wanted in values, f"{place}: {name} has no {label}={wanted}"
    grouped = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
    used = {word for group in grouped for word in re.findall(r"\w+", group)}
    assert used <= labels, place
    assert expression.count("(") == expression.count(")"), place


def test_every_rule_is_documented_with_its_severity_and_has_a_description() -> None:
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    rows = re.findall(r"^\| `(Tidegate\w+)` \| .* \| (\w+) \|$", METRICS, re.MULTILINE)
    assert rows == [(rule["alert"], rule["labels"]["severity"]) for rule in rules]
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert {"summary", "description", "runbook_url"} == set(rule["annotations"])


def test_every_rule_leads_to_a_runbook_that_exists() -> None:
    anchors = {each.anchor for each in runbooks.runbooks()}
    places = {}
    for group in RULES["groups"]:
        for rule in group["rules"]:
            url = rule["annotations"]["runbook_url"]
            start, _, places[rule["alert"]] = url.partition("#")
            assert start == "{{ $externalLabels.tidegate_url }}/tidegate/runbooks"
    assert set(places.values()) <= anchors
    # One that has an entry of its own leads there.
    own = {each.name for each in runbooks.runbooks() if each.subject == "rule"}
    assert own == {name for name, anchor in places.items() if anchor == f"rule-{name}"}


def test_the_dashboard_has_a_data_source_variable_and_its_panels_do_not_overlap() -> None:
    assert [each["type"] for each in DASHBOARD["templating"]["list"]] == ["datasource"]
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & covered, panel["title"]
        assert max(x for x, _ in cells) < 24
        covered |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"


# --- alerts --------------------------------------------------------------------------------------


def test_every_kind_of_alert_is_documented() -> None:
    section = ALERTS.split("\n## Alert types\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(AlertKind)


def test_every_setting_of_alerts_is_documented_with_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for field in AlertSettings.model_fields:
        monkeypatch.delenv(variable(AlertSettings, field), raising=False)
    rows = dict(re.findall(r"^\| `(TIDEGATE_\w+)` \| *`?([^|`]*?)`? *\|", ALERTS, re.MULTILINE))
    defaults = load(AlertSettings)
    assert rows == {
        variable(AlertSettings, field): "" if not value else f"{value:g}"
        for field in AlertSettings.model_fields
        for value in [getattr(defaults, field)]
    }


def test_the_figures_in_the_docs_match_the_sender() -> None:
    assert (TIMEOUT_S, FIRST_WAIT_S, MAX_WAIT_S, MAX_TRIES) == (20, 10, 900, 16)
    for figure in ("within 20 seconds", "after 10 seconds", "up to 15 minutes", "After 16 tries"):
        assert figure in " ".join(ALERTS.split())


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", METRICS, re.DOTALL))
def test_the_examples_work(example: str) -> None:
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["fleet"].breaker("openai").call(len, "four") == 4
    names["fleet"].close()


def test_the_example_for_prometheus_is_valid() -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", METRICS, re.DOTALL)
    assert yaml.safe_load(example)["scrape_configs"][0]["job_name"] == "tidegate"
