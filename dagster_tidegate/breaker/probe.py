"""The health probe of a service: one HTTP GET."""

import http.client
import logging
import urllib.error
import urllib.request
from datetime import datetime, timedelta

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.verdicts import VerdictKind, retry_after

log = logging.getLogger(__name__)


def http_get(policy: ServicePolicy, now: datetime) -> tuple[VerdictKind, datetime | None]:
    """Request the `probe_url` of a policy.

    Returns:
        Success for a status below 400, otherwise failure; and the time of its Retry-After (UTC),
        or None.
    """
    assert policy.probe_url is not None
    request = urllib.request.Request(policy.probe_url, headers={"User-Agent": "tidegate"})
    try:
        with urllib.request.urlopen(request, timeout=policy.probe_timeout_s):
            return VerdictKind.SUCCESS, None
    except (OSError, http.client.HTTPException) as error:
        log.info("probe of %s failed: %s", policy.name, error)
        wait_s = retry_after(error, now, policy.retry_after_cap_s)
        return VerdictKind.FAILURE, None if wait_s is None else now + timedelta(seconds=wait_s)
