"""The policy of a service: when its breaker trips, how it is probed, how it recovers."""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dagster_tidegate.breaker.budget import MAX_AMOUNT, SpendingLimit, billionths
from dagster_tidegate.breaker.calendar import check_timezone
from dagster_tidegate.breaker.limits import RateLimit
from dagster_tidegate.breaker.profiles import check_name
from dagster_tidegate.pools import check_service_name, merged
from dagster_tidegate.text import MAX_DURATION

Share = Annotated[float, Field(gt=0, le=1)]


MAX_DURATION_S = 7 * 86400
MAX_SECONDS = MAX_DURATION.total_seconds()
"""The longest time in a policy: no date is far enough away for infinity."""
MIN_WAIT_S = 5.0
"""A call or a record waits for so long at least in place: to pause a run takes longer."""


class MaintenanceWindow(BaseModel):
    """A time at which a service must not be called, and that returns: `dagster_tidegate.Window`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cron: str = Field(
        min_length=1,
        max_length=128,
        description="When it begins, as a cron expression of five fields, such as `0 2 * * SUN`.",
    )
    duration_s: int = Field(
        ge=1, le=MAX_DURATION_S, description="How long it lasts, in seconds: at most 7 days."
    )
    timezone: str = Field(
        default="UTC",
        max_length=64,
        description="Time zone of the cron expression, such as `Europe/Berlin`.",
    )
    reason: str = Field(
        default="maintenance", min_length=1, max_length=500, description="Why, for people."
    )

    _timezone_exists = field_validator("timezone")(check_timezone)

    @field_validator("reason")
    @classmethod
    def _reason_says_something(cls, reason: str) -> str:
        if not reason.strip():
            raise ValueError("the reason of a maintenance window can't be empty")
        return reason


class ServicePolicy(BaseModel):
    """When the breaker of a service trips, how the service is probed, and how it recovers.

    Fields that end in `_s` are seconds. A rule that is None is off; at least one rule must be set.
    Counts are those of the whole fleet.

    Example:
        >>> ServicePolicy(name="openai", consecutive_failures=3).reset_timeout_s
        30.0
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        min_length=1,
        max_length=128,
        description="Name of the service, or service/part of a part of it; also the name of its "
        "Dagster pool.",
    )
    parts: list[str] = Field(
        default=[],
        description="Parts of the service that may fail on their own, such as endpoints with a "
        "quota. Each has a breaker of this policy, named `service/part`.",
    )
    pools: list[str] = Field(
        default=[],
        description="Existing Dagster pools of your ops and assets that stand for this service; "
        "they keep their names and limits. Several services may name the same pool.",
    )
    consecutive_failures: int | None = Field(
        default=5,
        ge=1,
        le=100_000,
        description="Trip after this many failures without a success in between, however long "
        "that takes.",
    )
    min_records: int = Field(
        default=3,
        ge=1,
        le=8,
        description="In record loops, the failures without a success in between must come from "
        "this many different records, so that one bad record can't stop a service.",
    )
    window_s: float = Field(
        default=60.0,
        ge=1,
        le=3600,
        description="Length of the window of the next four rules, in seconds.",
    )
    window_failures: int | None = Field(
        default=None, ge=1, description="Trip at this many failures within the window."
    )
    failure_rate: Share | None = Field(
        default=None, description="Trip when the calls in the window prove that this share failed."
    )
    slow_call_rate: Share | None = Field(
        default=0.9,
        description="Trip when this share of the calls in the window was slow, or 15 in a row of "
        "one process.",
    )
    slow_call_s: float | None = Field(
        default=None,
        gt=0,
        description="A successful call that takes this long or longer is slow, in seconds. None: "
        "20 times as long as usual in its process, and at least 2 seconds.",
    )
    min_calls: int = Field(
        default=20,
        ge=1,
        description="Minimum number of calls in the window before the two rates apply.",
    )
    min_workers: int = Field(
        default=1,
        ge=1,
        description="Trip only if this many processes, or all active ones, had a failure; 2 keeps "
        "one broken machine from stopping the fleet.",
    )
    failure_statuses: list[int] = Field(
        default=[],
        description="More HTTP statuses that count as a failure, besides those of the profile.",
    )
    profile: str | None = Field(
        default="generic",
        description="What the service's answers mean: the name of a profile, or the path of a "
        "TOML file of your own. None: only exceptions are judged.",
    )
    judge: str | None = Field(
        default=None,
        description="Your own function that judges answers instead of the profile, as "
        '"package.module:function".',
    )
    reset_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=MAX_SECONDS,
        description="Time from the trip to the first trial call, in seconds.",
    )
    backoff_factor: float = Field(
        default=2.0,
        ge=1,
        le=10,
        description="Each failed trial call multiplies the reset timeout by this.",
    )
    reset_timeout_cap_s: float = Field(
        default=600.0,
        gt=0,
        le=MAX_SECONDS,
        description="Upper limit of the reset timeout, in seconds.",
    )
    jitter: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Maximum random share added to the reset timeout.",
    )
    retry_after_cap_s: float = Field(
        default=7 * 86400.0,
        ge=0,
        le=30 * 86400.0,
        description="Upper limit of a wait that the service asks for, in seconds.",
    )
    trial_calls: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Concurrent trial calls in half open, in the whole fleet.",
    )
    success_threshold: int = Field(
        default=1, ge=1, le=100, description="Trial calls that must succeed before it closes."
    )
    trial_lease_s: float = Field(
        default=60.0,
        gt=0,
        le=MAX_SECONDS,
        description="A trial call without a result after this time is abandoned, in seconds; must "
        "be longer than any call takes.",
    )
    linger_s: float = Field(
        default=0.0,
        ge=0,
        le=MAX_SECONDS,
        description="How long a run waits for a recovery before it pauses, in seconds.",
    )
    ramp_interval_s: float = Field(
        default=30.0,
        ge=0,
        le=MAX_SECONDS,
        description="How long the service must stay healthy between two steps of the ramp, in "
        "seconds.",
    )
    enforce: bool = Field(
        default=True,
        description="False: calls are counted and the audit log says when the breaker would have "
        "opened, but nothing is refused or paused.",
    )
    probe_url: str | None = Field(
        default=None,
        description="URL that answers GET with a status below 400 while the service is healthy. "
        "None: a call of a campaign is the trial call.",
    )
    repair_check: str | None = Field(
        default=None,
        description="Your own function that returns whether a service that denied this client "
        'accepts it again, as "package.module:function". It must be free of charge and return '
        "within seconds. None: an operator declares the repair.",
    )
    probe_timeout_s: float = Field(
        default=5.0, gt=0, le=MAX_SECONDS, description="Timeout of the health probe, in seconds."
    )
    limits: Sequence[RateLimit] = Field(
        default=[],
        description="How many calls the whole fleet may make to the service and its parts. All "
        "limits apply at once.",
    )
    max_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="How many calls of the whole fleet to the service and its parts may be in "
        "flight at once. None: no limit.",
    )
    heed_quotas: bool = Field(
        default=True,
        description="Respect the remaining calls that the service reports in its quota headers. "
        "Set it to False if these headers are wrong.",
    )
    budget: SpendingLimit | None = Field(
        default=None,
        description="How much the whole fleet may spend on the service and its parts in a period.",
    )
    cost: Annotated[float, Field(ge=0, le=MAX_AMOUNT)] | str = Field(
        default=1.0,
        description="What a call costs: a number, or your own function that computes it from the "
        'return value of the call, as "package.module:function".',
    )
    windows: Sequence[MaintenanceWindow] = Field(
        default=[],
        description="Maintenance windows: recurring times at which the gate holds the service.",
    )

    @field_validator("name")
    @classmethod
    def _name_fits_a_pool(cls, name: str) -> str:
        if any(c in "+@,|" or c.isspace() or not c.isprintable() for c in name):
            raise ValueError(
                f"{name!r} can't be a service's name: remove '+', '@', ',', '|' and spaces"
            )
        check_service_name(name)
        return name

    @field_validator("parts")
    @classmethod
    def _parts_are_names(cls, parts: list[str]) -> list[str]:
        for part in parts:
            cls._name_fits_a_pool(part)
            if not part or "/" in part:
                raise ValueError(f"{part!r} can't be the name of a part: remove the slash")
        return parts

    @field_validator("pools")
    @classmethod
    def _pools_are_names(cls, pools: list[str]) -> list[str]:
        if not all(pool.strip() for pool in pools):
            raise ValueError("the name of a pool can't be empty")
        return pools

    @field_validator("failure_statuses")
    @classmethod
    def _statuses_are_http(cls, statuses: list[int]) -> list[int]:
        if wrong := [status for status in statuses if not 100 <= status <= 599]:
            raise ValueError(f"not HTTP statuses (100 to 599): {wrong}")
        return statuses

    @field_validator("profile")
    @classmethod
    def _profile_may_exist(cls, profile: str | None) -> str | None:
        return profile if profile is None else check_name(profile)

    @field_validator("judge", "repair_check", "cost")
    @classmethod
    def _function_is_a_path(cls, path: float | str | None) -> float | str | None:
        if isinstance(path, str) and re.fullmatch(r"[\w.]+:\w+", path) is None:
            raise ValueError(f"{path!r} names no function: write it as package.module:function")
        return path

    @field_validator("cost")
    @classmethod
    def _cost_is_a_price(cls, cost: float | str) -> float | str:
        if not isinstance(cost, str):
            billionths(cost)
        return cost

    @field_validator("probe_url")
    @classmethod
    def _probe_is_http(cls, url: str | None) -> str | None:
        if url is None:
            return url
        parts = urlsplit(url)
        if "@" in parts.netloc:  # not repeated in the message: it may contain a password
            raise ValueError("probe_url can't contain a user or password: remove them")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} can't be probed: use an http:// or https:// URL")
        return url

    def with_parts(self) -> "list[ServicePolicy]":
        """Return this policy and those of the parts."""
        names = [f"{self.name}/{part}" for part in self.parts]
        only_of_whole = {
            "parts": [],
            "pools": [],
            "limits": [],
            "budget": None,
            "windows": [],
            "max_concurrency": None,
        }
        return [self, *(self.model_copy(update={"name": n, **only_of_whole}) for n in names)]

    @model_validator(mode="after")
    def _rules_agree(self) -> Self:
        rules = ("consecutive_failures", "window_failures", "failure_rate", "slow_call_rate")
        if all(getattr(self, rule) is None for rule in rules):
            raise ValueError(f"{self.name} would never trip: set one of {', '.join(rules)}")
        if self.reset_timeout_cap_s < self.reset_timeout_s:
            raise ValueError(
                f"reset_timeout_cap_s ({self.reset_timeout_cap_s}) of {self.name} is below its "
                f"reset_timeout_s ({self.reset_timeout_s})"
            )
        return self


def wait_in_place_s(policy: ServicePolicy) -> float:
    """Return how long a call or a record waits in place for a service, in seconds."""
    return max(policy.linger_s, MIN_WAIT_S)


def adopted_pools(policies: Iterable[ServicePolicy]) -> dict[str, frozenset[str]]:
    """Return the pools that policies name besides their own, each with the services it stands for.

    Example:
        >>> adopted_pools([ServicePolicy(name="enrich", pools=["api_pool"])])
        {'api_pool': frozenset({'enrich'})}
    """
    return merged({pool: [policy.name] for pool in policy.pools} for policy in policies)
