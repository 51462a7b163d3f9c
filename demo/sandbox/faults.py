"""What can be wrong with a service of the sandbox, and which of its calls that touches."""

from datetime import datetime, timedelta
from enum import StrEnum
from math import floor
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

DEFAULT_STATUS = 503
DEFAULT_RETRY_AFTER_S = 5.0
DEFAULT_LATENCY_S = 5.0


class Mode(StrEnum):
    """How a service misbehaves."""

    OUTAGE = "outage"
    """Every call is refused with an error status; nothing takes effect."""
    SLOW = "slow"
    """Calls take effect at once and are answered late."""
    RATE_LIMIT = "rate_limit"
    """Every call is refused with 429 and a Retry-After."""
    WRONG = "wrong"
    """Calls take effect, and the answer is 200 with something else in it."""
    SHARE = "share"
    """As an outage, for a share of the calls."""


class Fault(BaseModel):
    """An order to misbehave; the body of `POST /_control/{service}`.

    A field that the mode has no use for is refused.

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
        description="Status of refused calls (outage, share); 503 if unset.",
    )
    retry_after_s: float | None = Field(
        default=None,
        ge=0,
        le=86_400,
        description="Seconds to send as Retry-After (rate_limit, outage, share); "
        "rate_limit sends 5 if unset, the others none.",
    )
    share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the calls that are refused (share); required.",
    )
    latency_s: float | None = Field(
        default=None, gt=0, le=600, description="Seconds that an answer takes (slow); 5 if unset."
    )
    for_s: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        description="Seconds until it heals by itself; never if unset.",
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
                f"mode {self.mode} has no use for {', '.join(sorted(useless))}; "
                f"it takes {', '.join(sorted(uses | {'for_s'}))}"
            )
        if self.mode is Mode.SHARE and self.share is None:
            raise ValueError("mode share needs a share, above 0 and up to 1")
        return self

    def touches(self, nth: int) -> bool:
        """Return whether the `nth` call under this fault (counted from 1) is touched.

        A share is spread evenly and exactly: 0.25 touches every fourth call.
        """
        if self.share is None:
            return True
        return floor(nth * self.share) > floor((nth - 1) * self.share)

    @property
    def refusal_status(self) -> int | None:
        """Status of the calls that it refuses, or None if it lets them take effect."""
        if self.mode is Mode.RATE_LIMIT:
            return 429
        if self.mode in (Mode.OUTAGE, Mode.SHARE):
            return self.status or DEFAULT_STATUS
        return None

    @property
    def sent_retry_after_s(self) -> float | None:
        """Seconds that its refusals name in Retry-After, or None."""
        if self.retry_after_s is None and self.mode is Mode.RATE_LIMIT:
            return DEFAULT_RETRY_AFTER_S
        return self.retry_after_s

    @property
    def delay_s(self) -> float:
        """Seconds by which it delays an answer."""
        if self.mode is not Mode.SLOW:
            return 0.0
        return self.latency_s or DEFAULT_LATENCY_S


def explain(error: ValidationError) -> str:
    """Return in one line what is wrong with the fields of a fault."""
    return "; ".join(
        ": ".join([*map(str, part["loc"]), part["msg"].removeprefix("Value error, ")])
        for part in error.errors()
    )


class Episode:
    """A fault from when it was placed until it was healed.

    Args:
        fault: What is wrong.
        placed_at: Since when, UTC.
    """

    def __init__(self, fault: Fault, placed_at: datetime) -> None:
        self.fault = fault
        self.placed_at = placed_at
        self.healed_at = None if fault.for_s is None else placed_at + timedelta(seconds=fault.for_s)
        self.calls = 0

    def is_live(self, now: datetime) -> bool:
        """Return whether it lasts at `now` (UTC)."""
        return self.healed_at is None or now < self.healed_at

    def heal(self, now: datetime) -> None:
        """End it at `now` (UTC), unless it has ended before."""
        if self.is_live(now):
            self.healed_at = now
