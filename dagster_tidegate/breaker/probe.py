"""The health probe of a service: one HTTP GET."""

import http.client
import logging
import urllib.error
import urllib.request
from dataclasses import replace
from datetime import datetime

from dagster_tidegate.breaker.answers import Answer
from dagster_tidegate.breaker.judge import judge_for
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind

log = logging.getLogger(__name__)


def http_get(policy: ServicePolicy, now: datetime) -> Verdict:
    """Request the `probe_url` of a policy.

    Returns:
        Success for a status below 400; `throttled` if the service names a time; otherwise failure.
    """
    assert policy.probe_url is not None
    request = urllib.request.Request(policy.probe_url, headers={"User-Agent": "tidegate"})
    try:
        with urllib.request.urlopen(request, timeout=policy.probe_timeout_s):
            return Verdict(VerdictKind.SUCCESS)
    except (OSError, http.client.HTTPException) as error:
        log.info("probe of %s failed: %s", policy.name, error)
        verdict = judge_for(policy)(Answer.of(error, now))
        # The probe has no key, so that what it is refused says nothing about that of the calls.
        throttled = verdict.kind is VerdictKind.THROTTLED
        return verdict if throttled else replace(verdict, kind=VerdictKind.FAILURE)
