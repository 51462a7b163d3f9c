"""What a user's project sees of the package: names, sensors, log lines."""

import logging
import subprocess
import sys

import dagster as dg
import pytest
from dagster_shared.libraries import DagsterLibraryRegistry

import dagster_tidegate
from dagster_tidegate import (
    BreakerOpenError,
    BreakerResource,
    Campaign,
    ServiceConfig,
    build_breaker_sensor,
    build_pause_sensor,
    build_resume_sensor,
)


@dg.job
def outreach() -> None: ...


def test_all_public_names_can_be_imported() -> None:
    assert dagster_tidegate.__all__ == sorted(dagster_tidegate.__all__)
    for name in dagster_tidegate.__all__:
        assert getattr(dagster_tidegate, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = dagster_tidegate.nothing  # pyright: ignore[reportAttributeAccessIssue] -- the point


def test_importing_the_package_imports_no_dagster() -> None:
    code = "import dagster_tidegate, sys; print('dagster' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_dagster_lists_the_library() -> None:
    assert DagsterLibraryRegistry.get()["dagster-tidegate"] == dagster_tidegate.__version__


def test_each_sensor_of_the_gate_has_a_description() -> None:
    campaigns = [Campaign(job=outreach)]
    for build in (build_pause_sensor, build_resume_sensor, build_breaker_sensor):
        assert build(campaigns=campaigns).description


def test_a_resource_logs_when_a_breaker_trips_and_when_it_recovers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "dagster_tidegate")
    policy = ServiceConfig(name="crm", consecutive_failures=1, reset_timeout_s=600)
    breaker = BreakerResource.in_memory([policy]).breaker("crm")
    with pytest.raises(BreakerOpenError):
        breaker.call(fail)
    breaker.close()
    [trip, recovery] = [r for r in caplog.records if r.message.startswith("crm: ")]
    assert "closed -> open" in trip.message
    assert trip.levelno == logging.WARNING
    assert "open -> closed" in recovery.message
    assert recovery.levelno == logging.INFO


def fail() -> None:
    raise ConnectionError("down")
