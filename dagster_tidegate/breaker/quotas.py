"""What a service says in its headers of how many calls are left, and until when."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from math import isfinite

from dagster_tidegate.breaker.answers import Answer
from dagster_tidegate.breaker.time_texts import seconds_of, service_time

MAX_VALUE = 1000
"""So much of a header is read."""
_QUOTA = re.compile(r"rate-?limit|quota|requests-left|calls-(left|remaining)")
_NO_CALLS = re.compile(r"token|byte|point|credit|cost|unit|size")
"""In the name of a quota that counts something else, of which a call may use more than one."""
_PERIODS = (
    (re.compile(r"24-?hour|daily|day"), 86400.0),
    (re.compile(r"hour"), 3600.0),
    (re.compile(r"minute"), 60.0),
    (re.compile(r"second(ly)?$"), 1.0),
)
_ROLES = re.compile(
    r"remaining|left|resets?(-?(after|on|at|in))?|(?<!rate)(?<!rate-)limit|usage|used"
    r"|-(ms|milliseconds)$"
)
_ALIKE = re.compile(r"^x-|rate-?limit|quota|requests?|calls?")


@dataclass(frozen=True)
class Quota:
    """How many calls a service permits, as one of its answers says.

    Attributes:
        name: What distinguishes it from the others of the service; "" if it is the only one.
        left: How many are left; None if unknown.
        reset_s: Seconds until it is full again; None if unknown.
        calls: How many there are in all; None if unknown.
        window_s: In which time; None if unknown.
        of_calls: Whether it counts calls; otherwise a call may use more than one up.
    """

    name: str
    left: float | None = None
    reset_s: float | None = None
    calls: float | None = None
    window_s: float | None = None
    of_calls: bool = True


def names_quota(headers: Iterable[str]) -> bool:
    """Return whether any of these headers (in lower case) is about a quota. Cheap.

    Example:
        >>> names_quota(["date", "x-ratelimit-remaining"]), names_quota(["date", "etag"])
        (True, False)
    """
    return any(map(_is_quota, headers))


def quotas_of(answer: Answer) -> list[Quota]:
    """Return the quotas that the headers of an answer name.

    Example:
        >>> quotas_of(Answer(200, {"X-RateLimit-Remaining": "9", "X-RateLimit-Reset": "30"}))
        [Quota(name='', left=9.0, reset_s=30.0, calls=None, window_s=None, of_calls=True)]
    """
    headers = answer.headers
    if not names_quota(headers):
        return []
    at = service_time(answer)
    quotas: dict[str, Quota] = {}
    policies: dict[str, Quota] = {}
    for name, value in headers.items():
        if not _is_quota(name):
            continue
        value = value[:MAX_VALUE]
        if "policy" in name:
            policies |= _policies(value)
        elif '"' in value or ("=" in value and ";" not in value.partition("=")[0]):
            quotas |= {quota.name: quota for quota in _combined(value, at)}
        else:
            key = _key(name)
            before = quotas.get(key) or Quota(
                key, window_s=_period(name), of_calls=_NO_CALLS.search(name) is None
            )
            quotas[key] = _with(before, name, value, at)
    return [
        _with_policy(quota, policies.get(quota.name))
        for quota in quotas.values()
        if _says_more(quota)
    ]


@lru_cache(maxsize=4096)
def _is_quota(name: str) -> bool:
    return _QUOTA.search(name) is not None


@lru_cache(maxsize=1024)
def _key(name: str) -> str:
    """Return what the headers of one quota have in common."""
    words = _ALIKE.sub("", _ROLES.sub("", name)).split("-")
    return "-".join(word for word in words if word)


@lru_cache(maxsize=1024)
def _period(name: str) -> float | None:
    return next((seconds for period, seconds in _PERIODS if period.search(name)), None)


def _with(quota: Quota, name: str, value: str, at: datetime) -> Quota:
    """Return a quota with what one more of its headers says."""
    if "reset" in name:
        in_ms = name.endswith(("-ms", "-milliseconds"))
        return replace(quota, reset_s=seconds_of(value, at, unit_s=0.001 if in_ms else 1.0))
    if "remaining" in name or name.endswith("-left"):
        return replace(quota, left=_number(value))
    if "usage" in name or "used" in name:
        return quota
    window = re.search(r";\s*w=(\d+)", value)
    return replace(
        quota,
        calls=_number(value),
        window_s=_number(window[1]) if window else quota.window_s,
    )


def _combined(value: str, at: datetime) -> Iterator[Quota]:
    """Parse the `RateLimit` field of the IETF drafts, in the old form and the new one."""
    # "limit=10, remaining=0, reset=5" is one quota; '"minute";r=0;t=45, "day";r=9;t=60' are two.
    for quota in _items(value):
        fields = {
            name.lower(): number
            for name, number in re.findall(r"([a-z_]+)\s*=\s*\"?([\d.]+)", quota, re.IGNORECASE)
        }
        left = fields.get("r", fields.get("remaining", ""))
        reset = fields.get("t", fields.get("reset", fields.get("resets", "")))
        if left or reset:
            calls = _number(fields.get("limit", ""))
            yield Quota(_item_name(quota), _number(left), seconds_of(reset, at), calls)


def _policies(value: str) -> Mapping[str, Quota]:
    """Parse `RateLimit-Policy`: how many, and in how many seconds, by name."""
    policies: dict[str, Quota] = {}
    for item in _items(value):
        calls = re.search(r"\bq\s*=\s*(\d+)", item) or re.match(r"\s*(\d+)\s*;", item)
        window = re.search(r"\bw\s*=\s*(\d+)", item)
        unit = re.search(r"\bqu\s*=\s*\"?([\w-]+)", item)
        name = _item_name(item)
        policies[name] = Quota(
            name,
            calls=_number(calls[1]) if calls else None,
            window_s=_number(window[1]) if window else None,
            of_calls=unit is None or unit[1].lower() == "requests",
        )
    return policies


def _items(value: str) -> list[str]:
    return re.split(r',\s*(?=")', value) if '"' in value else [value]


def _item_name(item: str) -> str:
    match = re.match(r'\s*"([^"]*)"', item)
    return match[1] if match else ""


def _with_policy(quota: Quota, policy: Quota | None) -> Quota:
    if policy is None:
        return quota
    return replace(
        quota,
        calls=policy.calls or quota.calls,
        window_s=policy.window_s or quota.window_s,
        of_calls=quota.of_calls and policy.of_calls,
    )


def _says_more(quota: Quota) -> bool:
    """Whether it says more than how many calls there are in all."""
    return quota.left is not None or quota.reset_s is not None


def _number(text: str) -> float | None:
    """Return a number; None for an empty value, which means no limit, and for nonsense."""
    try:
        number = float(text.partition(",")[0].partition(";")[0])
    except ValueError:
        return None
    return number if isfinite(number) else None
