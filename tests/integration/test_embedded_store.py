"""A project that never ran `tidegate store upgrade`, started with and without DAGSTER_HOME."""

from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin

from dagster_tidegate import BreakerResource, ServiceConfig, build_definitions, pool

NAMES = ("ada", "alan", "grace")


@dg.op(pool=pool("mailer"))
def send(context: dg.OpExecutionContext, breakers: BreakerResource) -> list[str]:
    records = breakers.records(context, NAMES, key=str)
    for record in records:
        with record:
            record.result = breakers.breaker("mailer").call(str.upper, record.value)
    return records.results()


@dg.job
def newsletter() -> None:
    send()


def definitions(store_url: str | None = None) -> dg.Definitions:
    return dg.Definitions(
        jobs=[newsletter],
        resources={
            "breakers": BreakerResource(
                services=[ServiceConfig(name="mailer")], store_url=store_url
            )
        },
    )


def run(instance: dg.DagsterInstance, store_url: str | None = None) -> dg.ExecuteInProcessResult:
    job = definitions(store_url).resolve_job_def("newsletter")
    return job.execute_in_process(instance=instance, raise_on_error=False)


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDEGATE_STORE_URL", raising=False)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)


def test_a_run_creates_it_in_the_storage_directory_of_its_instance(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        assert run(instance).output_for_node("send") == ["ADA", "ALAN", "GRACE"]
    assert (tmp_path / "tidegate.db").is_file()


def test_a_sensor_creates_it_too(tmp_path: Path) -> None:
    @dg.sensor(job=newsletter)
    def look(breakers: BreakerResource) -> dg.SkipReason:
        return dg.SkipReason(f"{len(breakers.fleet.refresh().holds)} holds")

    resources = {"breakers": BreakerResource(services=[ServiceConfig(name="mailer")])}
    with (
        dg.DagsterInstance.local_temp(str(tmp_path)) as instance,
        dg.build_sensor_context(instance, resources=resources) as context,
    ):
        skipped = look(context)
    assert isinstance(skipped, dg.SkipReason)
    assert skipped.skip_message == "0 holds"
    assert (tmp_path / "tidegate.db").is_file()


def test_a_gate_on_an_instance_without_its_settings_says_so_in_each_tick_and_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    defs = build_definitions(dg.Definitions(jobs=[newsletter]), services=["mailer"])
    pause = defs.resolve_sensor_def("tidegate_pause")
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        for _ in range(2):
            with dg.SensorEvaluationContext(
                instance_ref=None,
                repository_name="__repository__",
                repository_def=defs.get_repository_def(),
                instance=instance,
                sensor_name=pause.name,
                resources=dict(defs.resources or {}),
                code_location_origin=GrpcServerCodeLocationOrigin(host="localhost", port=4000),
            ) as context:
                said = str(pause.evaluate_tick(context).skip_message)
            assert "nothing is held" in said
            assert "concurrency.pools.granularity: run" in said
            assert "run 'tidegate init'" in said
    [warning] = [each for each in caplog.records if "tidegate init" in each.getMessage()]
    assert warning.levelname == "WARNING"


def test_a_named_store_without_tables_fails_the_run_with_the_command_to_run(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        result = run(instance, store_url=f"sqlite:///{tmp_path / 'mine.db'}")
    [failure] = [event for event in result.all_events if event.is_step_failure]
    error = failure.step_failure_data.error
    assert error is not None
    cause = error.cause
    assert cause is not None
    assert "SchemaError" in cause.message
    assert "run 'tidegate store upgrade'" in cause.message
