"""The Dagster instance that the ticks of a process share."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

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
