"""What Dagster warns about: nothing that this package does."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import dagster as dg

from dagster_tidegate import BreakerResource, ServiceConfig, build_definitions, each, pool
from dagster_tidegate.testing import Service, assert_each_once, assert_paused

SERVICES = [ServiceConfig(name="instantly", consecutive_failures=2, reset_timeout_s=600)]
LEADS = [{"email": f"{name}@example.org"} for name in ("ada", "alan", "grace")]
APIS = {"dagster", "dagster_shared", "pydantic", "warnings", "contextlib", "functools"}
"""The modules that warn of themselves, and those through which they are called."""


@contextmanager
def warnings_of_ours() -> Iterator[list[str]]:
    """Collect the warnings about deprecated or unfinished APIs that this package uses.

    Dagster's own calls of such an API, and a test's, are none.
    """
    ours: list[str] = []

    def note(message: Warning | str, category: type[Warning], *_: Any) -> None:
        if not issubclass(category, DeprecationWarning | dg.BetaWarning | dg.PreviewWarning):
            return
        frame = inspect.currentframe()
        frame = frame and frame.f_back
        while frame is not None and name_of(frame).partition(".")[0] in APIS:
            frame = frame.f_back
        if frame is not None and name_of(frame).startswith("dagster_tidegate."):
            ours.append(f"{name_of(frame)}:{frame.f_lineno}: {message}")

    def name_of(frame: FrameType) -> str:
        return frame.f_globals.get("__name__", "")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        yield ours


def test_a_loop_each_a_plain_call_and_a_resume_use_nothing_that_is_deprecated_or_beta() -> None:
    mailer, printer = Service(200, 503, 503), Service()

    @dg.asset
    def people() -> list[dict]:
        return LEADS

    @each("instantly", key="email", items="people", asset=True)
    def letters(person: dict) -> str:
        return printer(person["email"])

    @dg.asset(pool=pool("instantly"), partitions_def=dg.StaticPartitionsDefinition(["a", "b"]))
    def partitioned(context: dg.AssetExecutionContext, breakers: BreakerResource) -> list[str]:
        breaker = breakers.breaker("instantly")
        records = breakers.records(context, LEADS, key="email")
        for record in records:
            with record:
                record.result = breaker.call(mailer, record.key)
        return [breaker.call(mailer, "plain"), *records.results()]

    @dg.asset_check(asset=letters)
    def all_of_them(letters: list[str]) -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=len(letters) == len(LEADS))

    with warnings_of_ours() as ours:
        build_definitions(
            dg.Definitions(assets=[people, letters, partitioned], asset_checks=[all_of_them]),
            services=["instantly"],
        ).get_repository_def()
        breakers = BreakerResource.in_memory(SERVICES)
        instance = dg.DagsterInstance.ephemeral()
        options: Any = {"instance": instance, "resources": {"breakers": breakers}}
        paused = dg.materialize([partitioned], partition_key="a", raise_on_error=False, **options)
        assert_paused(paused, "instantly")
        breakers.breaker("instantly").close()
        assert dg.materialize([partitioned], partition_key="a", **options).success
        assert dg.materialize([people, letters, all_of_them], **options).success
    assert_each_once(mailer, [*(lead["email"] for lead in LEADS), "plain"])
    assert ours == []
