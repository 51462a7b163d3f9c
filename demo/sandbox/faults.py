"""Faults of simulated services, and which calls they affect."""

from datetime import datetime, timedelta
from enum import StrEnum
from math import floor
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

DEFAULT_STATUS = 503
DEFAULT_RETRY_AFTER_S = 5.0
DEFAULT_LATENCY_S = 5.0


class Mode(StrEnum):
    """How a service fails."""

    OUTAGE = "outage"
    """Every call fails with an error status and takes no effect."""
    SLOW = "slow"
    """Calls take effect at once; the response is late."""
    RATE_LIMIT = "rate_limit"
    """Every call fails with 429 and a Retry-After header."""
    WRONG = "wrong"
    """Calls take effect; the response is 200 with an invalid body."""
    SHARE = "share"
    """An outage for a share of the calls."""


class Fault(BaseModel):
    """The body of `POST /_control/{service}`. Fields that the mode does not use are rejected.

    Example:
        >>> Fault(mode="rate_limit", retry_after_s=3).refusal_status
        429
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mode: Mode
    status: int | None = Field(
        default=None,
        ge=400,
        le=599,
        description="Status of failed calls (outage, share). Default: 503.",
    )
    retry_after_s: float | None = Field(
        default=None,
        ge=0,
        le=86_400,
        description="Seconds to send as Retry-After (rate_limit, outage, share). "
        "Default: 5 for rate_limit, none for the others.",
    )
    share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the calls that fail (share). Required.",
    )
    latency_s: float | None = Field(
        default=None, gt=0, le=600, description="Latency in seconds (slow). Default: 5."
    )
    for_s: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        description="Seconds until the service recovers. Default: never.",
    )

    @model_validator(mode="after")
    def _fits_the_mode(self) -> Self:
        uses = {
            Mode.OUTAGE: {"status", "retry_after_s"},
            Mode.SLOW: {"latency_s"},
            Mode.RATE_LIMIT: {"retry_after_s"},
            Mode.WRONG: set(),
            Mode.SHARE: {"status", "retry_after_s", "share"},
        }[self.mode]
        given = {
            name
            for name in ("status", "retry_after_s", "share", "latency_s")
            if getattr(self, name) is not None
        }
        if useless := given - uses:
            raise ValueError(
                f"mode {self.mode} does not use {', '.join(sorted(useless))}; "
                f"it uses {', '.join(sorted(uses | {'for_s'}))}"
            )
        if self.mode is Mode.SHARE and self.share is None:
            raise ValueError("mode share requires a share above 0 and up to 1")
        return self

    def affects(self, nth: int) -> bool:
        """Return whether the fault affects its `nth` call, counted from 1.

        A share is spread evenly: 0.25 affects every fourth call.
        """
        if self.share is None:
            return True
        return floor(nth * self.share) > floor((nth - 1) * self.share)

    @property
    def refusal_status(self) -> int | None:
        """Status of failed calls, or None if calls take effect."""
        if self.mode is Mode.RATE_LIMIT:
            return 429
        if self.mode in (Mode.OUTAGE, Mode.SHARE):
            return self.status or DEFAULT_STATUS
        return None

    @property
    def sent_retry_after_s(self) -> float | None:
        """Value of Retry-After in failed responses, or None."""
        if self.retry_after_s is None and self.mode is Mode.RATE_LIMIT:
            return DEFAULT_RETRY_AFTER_S
        return self.retry_after_s

    @property
    def delay_s(self) -> float:
        """Delay of a response, in seconds."""
        if self.mode is not Mode.SLOW:
            return 0.0
        return self.latency_s or DEFAULT_LATENCY_S


def explain(error: ValidationError) -> str:
    """Format the validation errors of a fault on one line."""
    return "; ".join(
        ": ".join([*map(str, part["loc"]), part["msg"].removeprefix("Value error, ")])
        for part in error.errors()
    )


class Episode:
    """A fault and the period in which it is active (UTC)."""

    def __init__(self, fault: Fault, placed_at: datetime) -> None:
        self.fault = fault
        self.placed_at = placed_at
        self.healed_at = None if fault.for_s is None else placed_at + timedelta(seconds=fault.for_s)
        self.calls = 0

    def is_active(self, now: datetime) -> bool:
        """Return whether the fault is active at `now`."""
        return self.healed_at is None or now < self.healed_at

    def heal(self, now: datetime) -> None:
        """End the fault at `now`, unless it has ended already."""
        if self.is_active(now):
            self.healed_at = now
