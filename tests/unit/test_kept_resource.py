"""The gate's sensors build their resource once, since Dagster takes long to do so."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import dagster as dg
import pytest
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin

from dagster_tidegate import BreakerResource, ServiceConfig, build_definitions
from dagster_tidegate.breaker.fleet import Fleet

SENSORS = ("tidegate_breaker", "tidegate_pause", "tidegate_resume")


@dg.op
def send() -> None: ...


@dg.job
def newsletter() -> None:
    send()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def definitions(resource: BreakerResource) -> dg.Definitions:
    return build_definitions(dg.Definitions(jobs=[newsletter], resources={"breakers": resource}))


def tick(defs: dg.Definitions, name: str, instance: dg.DagsterInstance) -> str:
    """Evaluate a sensor as a code server does, and return its summary."""
    repository = defs.get_repository_def()
    with dg.SensorEvaluationContext(
        instance_ref=None,
        instance=instance,
        repository_name=repository.name,
        repository_def=repository,
        sensor_name=name,
        resources=dict(repository.get_top_level_resources()),
        code_location_origin=GrpcServerCodeLocationOrigin(host="localhost", port=4000),
    ) as context:
        return str(repository.get_sensor_def(name).evaluate_tick(context).skip_message)


@pytest.mark.parametrize("name", SENSORS)
def test_the_second_tick_uses_the_resource_of_the_first_and_reports_what_it_counted(
    name: str, instance: dg.DagsterInstance, sqlite_url: str
) -> None:
    services = [ServiceConfig(name="mailer")]
    defs = definitions(BreakerResource(services=services, store_url=sqlite_url))
    with (
        mock.patch.object(BreakerResource, "setup_for_execution") as built,
        mock.patch.object(Fleet, "flush") as flushed,
    ):
        summaries = [tick(defs, name, instance) for _ in range(3)]
    assert built.call_count == 1
    assert flushed.call_count >= 3
    assert all("nothing is held" in said or "closed" in said for said in summaries), summaries


def test_a_subclass_is_built_at_each_tick_since_it_may_do_more(
    instance: dg.DagsterInstance, sqlite_url: str
) -> None:
    built = []

    class Rotating(BreakerResource):
        """Its setup reads a secret anew."""

        def setup_for_execution(self, context: dg.InitResourceContext) -> None:
            built.append(context)

    defs = definitions(Rotating(services=[ServiceConfig(name="mailer")], store_url=sqlite_url))
    for _ in range(3):
        tick(defs, "tidegate_pause", instance)
    assert len(built) == 3
