"""The resource is copied for a run or a step, and made anew only with other values."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dagster_tidegate import BreakerResource, Budget, Rate, ServiceConfig, Window

SERVICES = [
    ServiceConfig(
        name="mail",
        budget=Budget(10, per="day"),
        limits=[Rate(calls=1, per_s=1)],
        windows=[Window(cron="0 2 * * SUN", duration_s=7200)],
    ),
    ServiceConfig(name="maps", failure_rate=0.5),
]

made: list["Counted"] = []


@pytest.fixture(autouse=True)
def _stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stores are files of a directory of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIDEGATE_STORE_URL", "sqlite:///default.db")


class Counted(BreakerResource):
    """Counts how often one is made."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        made.append(self)


def _used(resource: Any, **options: Any) -> tuple[BreakerResource, int]:
    """Return the resource that an op gets, and how many were made for it."""
    found: list[BreakerResource] = []

    @dg.op
    def use(breakers: Counted) -> None:
        found.append(breakers)

    @dg.job
    def job() -> None:
        use()

    before = len(made)
    assert job.execute_in_process(resources={"breakers": resource}, **options).success
    return found[0], len(made) - before


def test_a_run_makes_no_resource_anew_and_gets_the_same_values():
    resource = Counted(services=SERVICES, store_url="sqlite:///here.db", drain_timeout_s=3)
    used, number = _used(resource)
    assert number == 0
    assert used is not resource
    assert (used.services, used.store_url, used.drain_timeout_s) == (
        SERVICES,
        "sqlite:///here.db",
        3,
    )


def test_an_environment_variable_is_read_when_a_run_starts(monkeypatch: pytest.MonkeyPatch):
    resource = Counted(services=SERVICES, store_url=dg.EnvVar("TEST_STORE"))
    for url in ("sqlite:///a.db", "sqlite:///b.db"):
        monkeypatch.setenv("TEST_STORE", url)
        used, _ = _used(resource)
        assert (used.services, used.store_url) == (SERVICES, url)


def test_what_the_launchpad_says_counts():
    config = {"services": [{"name": "mail", "consecutive_failures": 7}], "drain_timeout_s": 4}
    used, _ = _used(
        Counted.configure_at_launch(),
        run_config={"resources": {"breakers": {"config": config}}},
    )
    assert (used.services[0].consecutive_failures, used.drain_timeout_s) == (7, 4)


def test_an_environment_variable_may_have_its_name_as_its_value(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("mail", "mail")
    used, _ = _used(Counted(services=[ServiceConfig(name=dg.EnvVar("mail"))]))
    assert used.services[0].name == "mail"
