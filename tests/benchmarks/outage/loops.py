"""What a worker without Dagster does: a loop over the leads of a list, with one library.

Each library is used as its documentation has it for a job that would rather wait than fail. No loop
remembers which leads it has sent: none of the libraries does that.
"""

import logging
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from fractions import Fraction
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import httpx
from pybreaker import CircuitBreaker, CircuitBreakerError

from tests.benchmarks.outage.service import (
    FAILURES,
    LONGEST_WAIT_S,
    NAME,
    PATIENCE_S,
    RESET_S,
    connected,
    is_transient,
    slow_call_s,
)

Send = Callable[[str], None]
SCALE = "OUTAGE_SCALE"
SCENARIO = "OUTAGE_SCENARIO"
POSTGRES = "OUTAGE_POSTGRES"
"""URL of a PostgreSQL database, for the libraries that can share their breaker there."""


class GaveUp(Exception):
    """A worker has tried one lead for as long as its patience lasts."""


class Patience:
    """How long to go on with one lead."""

    def __init__(self, scale: float) -> None:
        self._until = time.monotonic() + PATIENCE_S * scale

    def wait(self, seconds: float) -> None:
        """Sleep.

        Raises:
            GaveUp: If it is over.
        """
        if time.monotonic() > self._until:
            raise GaveUp
        time.sleep(seconds)


def plain(send: Send, leads: Sequence[str], scale: float) -> None:
    """Try again at once, for as long as the patience lasts."""
    for lead in leads:
        patience = Patience(scale)
        while True:
            try:
                send(lead)
            except httpx.HTTPError as error:
                if not is_transient(error):
                    raise
                patience.wait(0)
            else:
                break


def _backoff(scale: float) -> Any:
    """tenacity's exponential backoff with jitter."""
    backoff = import_module("tenacity").wait_exponential_jitter
    return backoff(initial=scale, max=LONGEST_WAIT_S * scale, jitter=scale)


def tenacity(send: Send, leads: Sequence[str], scale: float) -> None:
    """Exponential backoff with jitter."""
    library = import_module("tenacity")
    retrying = library.Retrying(
        retry=library.retry_if_exception(is_transient),
        wait=_backoff(scale),
        stop=library.stop_after_delay(PATIENCE_S * scale),
        reraise=True,
    )
    for lead in leads:
        retrying(send, lead)


def _wait_while_refused(
    guarded: Callable[[str], object],
    leads: Sequence[str],
    refused: type[Exception],
    scale: float,
) -> None:
    """Send to each lead; wait while the breaker is open, and after an error that may pass."""
    for lead in leads:
        patience = Patience(scale)
        while True:
            try:
                guarded(lead)
            except refused:
                patience.wait(RESET_S * scale)
            except httpx.HTTPError as error:
                if not is_transient(error):
                    raise
                patience.wait(scale)
            else:
                break


def pybreaker(send: Send, leads: Sequence[str], scale: float) -> None:
    """A breaker per worker; while it is open, wait until it lets a call through."""
    breaker = CircuitBreaker(
        fail_max=FAILURES,
        reset_timeout=RESET_S * scale,
        exclude=[lambda error: not is_transient(error)],
    )
    _wait_while_refused(lambda lead: breaker.call(send, lead), leads, CircuitBreakerError, scale)


class _Transient:
    """interlock's classifier."""

    def is_failure(self, *, result: object, exception: Exception | None) -> bool:  # noqa: ARG002 -- interlock's signature
        return exception is not None and is_transient(exception)


def interlock(send: Send, leads: Sequence[str], scale: float) -> None:
    """A breaker per worker in the patient mode: `wait_probe` waits for the next probe."""
    library, retries = import_module("interlock"), import_module("tenacity")
    wait_probe = import_module("interlock.integrations.tenacity").wait_probe
    breaker = library.CircuitBreaker(
        name=NAME,
        config=library.Config(
            minimum_number_of_calls=FAILURES,
            window_size=2 * FAILURES,
            wait_duration_in_open=RESET_S * scale,
            permitted_calls_in_half_open=1,
            slow_call_duration_threshold=slow_call_s(scale),
            slow_call_rate_threshold=0.9,
        ),
        classifier=_Transient(),
    )
    retrying = retries.Retrying(
        retry=retries.retry_if_exception(
            lambda error: isinstance(error, library.CircuitOpenError) or is_transient(error)
        ),
        wait=wait_probe(_backoff(scale), jitter=0.1 * scale),
        stop=retries.stop_after_delay(PATIENCE_S * scale),
        reraise=True,
    )
    for lead in leads:
        retrying(breaker.call, send, lead)


def resilient_circuit(send: Send, leads: Sequence[str], scale: float) -> None:
    """Its safety net of retries and a breaker, shared by the workers through PostgreSQL."""
    library = import_module("resilient_circuit")
    refused = import_module("resilient_circuit.exceptions").ProtectedCallError
    storage = import_module("resilient_circuit.storage.postgres").PostgresStorage
    longest = timedelta(seconds=LONGEST_WAIT_S * scale)
    net = library.SafetyNet(
        policies=(
            library.RetryWithBackoffPolicy(
                backoff=library.ExponentialDelay(timedelta(seconds=scale), longest, jitter=0.1),
                max_retries=8,  # they take as long as PATIENCE_S
                should_handle=lambda error: isinstance(error, refused) or is_transient(error),
            ),
            library.CircuitProtectorPolicy(
                resource_key=NAME,
                storage=storage(os.environ[POSTGRES], namespace=os.environ[SCENARIO]),
                cooldown=timedelta(seconds=RESET_S * scale),
                failure_limit=Fraction(FAILURES, 2 * FAILURES),
                success_limit=Fraction(1, 1),
                should_handle=is_transient,
                admission_refresh_interval=timedelta(seconds=scale),
            ),
        )
    )
    guarded = net(send)
    for lead in leads:
        guarded(lead)


def baldur(send: Send, leads: Sequence[str], scale: float) -> None:
    """Its decorator with retries and a breaker; while that is open, wait.

    Without parking and replay, which need a Celery worker and Redis.
    """
    os.environ["BALDUR_CB_FAILURE_THRESHOLD"] = str(FAILURES)
    os.environ["BALDUR_CB_RECOVERY_TIMEOUT"] = str(max(1, round(RESET_S * scale)))
    os.environ["BALDUR_CB_SUCCESS_THRESHOLD"] = "1"
    protected = import_module("baldur").protected
    refused = import_module("baldur.services.circuit_breaker.exceptions").CircuitBreakerOpenError
    retry = import_module("baldur.services.retry_handler.models").RetryPolicyConfig(
        max_attempts=3,
        backoff_base=scale,
        backoff_max=LONGEST_WAIT_S * scale,
        domain=NAME,
    )
    guarded = protected(NAME, retry=retry, dlq=False, timeout=None, context_from=False)(send)
    _wait_while_refused(guarded, leads, refused, scale)


LOOPS: dict[str, Callable[[Send, Sequence[str], float], None]] = {
    "plain": plain,
    "tenacity": tenacity,
    "pybreaker": pybreaker,
    "interlock-cb": interlock,
    "resilient-circuit": resilient_circuit,
    "baldur-framework": baldur,
}
MODULES = {
    "plain": (),
    "tenacity": ("tenacity",),
    "pybreaker": ("pybreaker",),
    "interlock-cb": ("interlock", "tenacity"),
    "resilient-circuit": ("resilient_circuit", "psycopg"),
    "baldur-framework": ("baldur", "baldur.protect_facade"),
}
"""What each loop imports."""


def is_installed(contender: str) -> bool:
    """Return whether what a loop imports can be imported."""
    return all(find_spec(name.split(".")[0]) for name in MODULES[contender])


def work(
    contender: str,
    folder: Path,
    sandbox_url: str,
    name: str,
    leads: Sequence[str],
    errors: SimpleQueue[str],
) -> None:
    """Send the letters to all leads of a list. The process ends with 1 if it gives up.

    Args:
        folder: Where a library may write files: baldur does so in the working directory.
    """
    os.chdir(folder)
    random.seed(name)
    os.environ[SCENARIO] = name.rpartition("-")[0]
    scale = float(os.environ[SCALE])
    # The errors are counted; what a library logs of them is no result.
    logging.disable()
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        try:
            with connected(sandbox_url) as service:
                LOOPS[contender](lambda lead: service.send(name, lead), leads, scale)
        except Exception as error:  # noqa: BLE001 -- each library gives up with one of its own
            errors.put(f"{type(error).__name__}: {error}".splitlines()[0])
            sys.exit(1)
