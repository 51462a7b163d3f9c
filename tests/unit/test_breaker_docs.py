import doctest
import re
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest

from dagster_tidegate.breaker import (
    answers,
    breaker,
    errors,
    events,
    excerpts,
    fleet,
    judge,
    policy,
    profiles,
    pybreaker_storage,
    time_texts,
)
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.telemetry import log, opentelemetry, prometheus

DOCS = (Path(__file__).parents[2] / "docs" / "breaker.md").read_text()


@pytest.mark.parametrize("name", ServicePolicy.model_fields)
def test_every_field_of_the_policy_is_documented_with_its_default(name: str):
    row = re.search(rf"^\| `{name}` \| (.*?) ?\|", DOCS, re.MULTILINE)
    assert row, f"docs/breaker.md has no row for {name}"
    default = ServicePolicy.model_fields[name].default
    if name == "name":
        assert row[1] == ""
    elif isinstance(default, list):
        assert row[1] == ", ".join(map(str, default))
    else:
        numeric = isinstance(default, int | float) and not isinstance(default, bool)
        assert row[1] == (f"{default:g}" if numeric else str(default))


def test_no_field_is_documented_that_does_not_exist():
    table = DOCS.partition("| field | default |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(ServicePolicy.model_fields)


def test_the_diagram_has_every_edge():
    edges = set(re.findall(r"(\w+) --> (\w+):", DOCS))
    assert edges == {(str(a), str(b)) for a, b in product(BreakerState, repeat=2) if a != b}
    named = set(re.findall(r"--> \w+: (\w+)$", DOCS, re.MULTILINE))
    table = DOCS.partition("| edge |")[2].partition("\n\n")[0]
    assert named <= set(re.findall(r"^\| (\w+)", table, re.MULTILINE))


@pytest.mark.parametrize("event", events.Event.__args__)
def test_every_event_is_documented(event: type):
    assert f"`{event.__name__}`" in DOCS


def test_the_examples_work(sqlite_url: str):
    names: dict = {}
    for example in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL):
        exec(example.replace("sqlite:////tmp/tidegate.db", sqlite_url), names)
    assert names["openai"].engine.admission.window.totals()[0] == 2
    assert names["mailer"].call(len, "four") == 4
    names["fleet"].close()


@pytest.mark.parametrize(
    "module",
    [
        answers,
        errors,
        excerpts,
        judge,
        profiles,
        time_texts,
        policy,
        breaker,
        fleet,
        log,
        opentelemetry,
        prometheus,
        pybreaker_storage,
    ],
)
def test_the_examples_in_docstrings_work(module: ModuleType):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
