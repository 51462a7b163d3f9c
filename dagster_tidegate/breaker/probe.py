"""The health probe of a service: one HTTP GET."""

import logging
import urllib.request
from dataclasses import replace
from datetime import datetime
from functools import partial

from dagster_tidegate.breaker.answers import Answer
from dagster_tidegate.breaker.judge import Judge
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.question import Question
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind

log = logging.getLogger(__name__)


def http_get(policy: ServicePolicy, now: datetime, judge: Judge) -> Verdict:
    """Request the `probe_url` of a policy.

    Returns:
        Success for a status below 400; `throttled` if the service names a time; otherwise failure.
    """
    assert policy.probe_url is not None
    timeout_s = policy.probe_timeout_s
    error = Question(partial(_get, policy.probe_url, timeout_s)).answer(timeout_s)
    if error is None:
        return Verdict(VerdictKind.SUCCESS)
    log.info("probe of %s failed: %s", policy.name, error)
    verdict = judge(Answer.of(error, now))
    # The probe has no key, so that what it is refused says nothing about that of the calls.
    throttled = verdict.kind is VerdictKind.THROTTLED
    return verdict if throttled else replace(verdict, kind=VerdictKind.FAILURE)


def _get(url: str, timeout_s: float) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "tidegate"})
    with urllib.request.urlopen(request, timeout=timeout_s):
        pass
