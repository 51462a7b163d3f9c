"""The health probe of a service: one HTTP GET."""

import logging
import urllib.request
from dataclasses import replace
from datetime import datetime
from queue import Empty, SimpleQueue
from threading import Thread

from dagster_tidegate.breaker.answers import Answer
from dagster_tidegate.breaker.judge import Judge
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind

log = logging.getLogger(__name__)


def http_get(policy: ServicePolicy, now: datetime, judge: Judge) -> Verdict:
    """Request the `probe_url` of a policy.

    Returns:
        Success for a status below 400; `throttled` if the service names a time; otherwise failure.
    """
    assert policy.probe_url is not None
    ends: SimpleQueue[Exception | None] = SimpleQueue()
    # In a thread: the timeout of urllib is one of each read, and a server may send its headers
    # byte by byte.
    Thread(target=_get, args=(ends, policy.probe_url, policy.probe_timeout_s), daemon=True).start()
    try:
        error = ends.get(timeout=policy.probe_timeout_s)
    except Empty:
        error = TimeoutError(f"no answer within {policy.probe_timeout_s:g} s")
    if error is None:
        return Verdict(VerdictKind.SUCCESS)
    log.info("probe of %s failed: %s", policy.name, error)
    verdict = judge(Answer.of(error, now))
    # The probe has no key, so that what it is refused says nothing about that of the calls.
    throttled = verdict.kind is VerdictKind.THROTTLED
    return verdict if throttled else replace(verdict, kind=VerdictKind.FAILURE)


def _get(ends: "SimpleQueue[Exception | None]", url: str, timeout_s: float) -> None:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "tidegate"})
        with urllib.request.urlopen(request, timeout=timeout_s):
            ends.put(None)
    except Exception as error:  # noqa: BLE001 -- a redirect may lead to what is no URL
        ends.put(error)
