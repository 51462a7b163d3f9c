"""The Dagster instance that the ticks of a process share."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.remote_origin import RegisteredCodeLocationOrigin
from dagster._grpc.impl import get_external_sensor_execution

from dagster_tidegate import build_definitions
from dagster_tidegate.dagster_api.kept_instance import kept_instance


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def tick(instance: dg.DagsterInstance, *, fails: bool = False) -> dg.DagsterInstance:
    """Return the instance that a tick gets."""
    ref = None if instance.is_ephemeral else instance.get_ref()
    context = dg.SensorEvaluationContext(ref, None, None, None, None, instance=instance)
    with kept_instance(context) as kept:
        if fails:
            raise ConnectionError("server closed the connection")
        return kept


def test_ticks_share_an_instance(instance: dg.DagsterInstance):
    assert tick(instance) is tick(instance)
    assert tick(instance).root_directory == instance.root_directory


def test_after_an_error_the_next_tick_gets_a_new_one(instance: dg.DagsterInstance):
    first = tick(instance)
    with pytest.raises(ConnectionError):
        tick(instance, fails=True)
    assert tick(instance) is not first


def test_with_other_settings_a_tick_gets_another(instance: dg.DagsterInstance, tmp_path: Path):
    first = tick(instance)
    settings = {"run_retries": {"enabled": True}}
    with dg.DagsterInstance.local_temp(str(tmp_path), settings) as changed:
        assert tick(changed) is not first
        assert tick(changed).run_retries_enabled


def test_an_instance_in_memory_is_itself():
    with dg.DagsterInstance.ephemeral() as instance:
        assert tick(instance) is instance


def test_no_tick_makes_an_instance_of_its_own(
    instance: dg.DagsterInstance, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
):
    @dg.op(pool="mail")
    def send() -> None: ...

    @dg.job
    def letters() -> None:
        send()

    definitions = build_definitions(
        dg.Definitions(jobs=[letters]), services=["mail"], store_url=sqlite_url
    )
    repository = definitions.get_repository_def()
    location = RegisteredCodeLocationOrigin("here")

    def tick_all() -> None:
        for sensor in ("tidegate_pause", "tidegate_resume", "tidegate_breaker"):
            answer = get_external_sensor_execution(
                repository, location, instance.get_ref(), sensor, None, None, None, None, None
            )
            assert isinstance(answer, SensorExecutionData), answer

    tick_all()
    made = mock.Mock(side_effect=AssertionError("an instance was made"))
    monkeypatch.setattr(dg.DagsterInstance, "from_ref", made)
    tick_all()
