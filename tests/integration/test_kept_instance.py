"""The Dagster instance that the ticks of a process share."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.remote_origin import RegisteredCodeLocationOrigin
from dagster._grpc.impl import get_external_sensor_execution
from sqlalchemy.exc import OperationalError

from dagster_tidegate import build_definitions
from dagster_tidegate.dagster_api.kept_instance import kept_instance
from tests.conftest import NewUrl


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def context_of(instance: dg.DagsterInstance) -> dg.SensorEvaluationContext:
    """Return the context of a tick in a code server."""
    ref = None if instance.is_ephemeral else instance.get_ref()
    return dg.SensorEvaluationContext(ref, None, None, None, None, instance=instance)


def tick(instance: dg.DagsterInstance, *, fails: bool = False) -> dg.DagsterInstance:
    """Return the instance that a tick gets."""
    with kept_instance(context_of(instance)) as kept:
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


def test_when_the_database_closed_its_connections_one_tick_fails(
    tmp_path: Path, new_dagster_url: NewUrl
):
    url = new_dagster_url()
    storage = {"storage": {"postgres": {"postgres_url": url}}}
    with dg.DagsterInstance.local_temp(str(tmp_path), storage) as instance:

        def read() -> None:
            with kept_instance(context_of(instance)) as kept:
                kept.get_runs(limit=1)
                kept.event_log_storage.get_pool_limits()
                kept.all_instigator_state()

        read()
        with sa.create_engine(url).connect() as conn:
            conn.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        with pytest.raises(OperationalError):
            read()
        read()
