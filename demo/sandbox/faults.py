"""Faults of simulated services, and which calls they affect."""

from datetime import datetime, timedelta
from enum import StrEnum
from math import ceil, floor
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from demo.sandbox.cases import CASES, ENDING, PlayedAnswer, played

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
    LIMIT = "limit"
    """Calls beyond a limit fail with 429 and take no effect; all answers say what is left."""
    ANSWER = "answer"
    """Every call gets a given answer, or that of a case such as "no-credits"."""


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
        description="Seconds to send as Retry-After (rate_limit, outage, share, answer). "
        "Default: 5 for rate_limit, none for the others; some cases have one.",
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
    calls: int | None = Field(
        default=None,
        ge=1,
        description="Calls that are permitted in each `per_s` (limit). Required.",
    )
    per_s: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        description="Seconds after which as many calls are permitted again (limit). Required.",
    )
    case: str | None = Field(
        default=None, description=f"What the service answers (answer): {', '.join(CASES)}."
    )
    answer: PlayedAnswer | None = Field(
        default=None, description="The answer, in place of a case (answer)."
    )
    takes_effect: bool | None = Field(
        default=None, description="Whether the calls take effect (answer). Default: no."
    )
    keys: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Only calls whose idempotency key, parameters or body contain one of these "
        "texts fail. Default: all calls.",
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
            Mode.LIMIT: {"calls", "per_s"},
            Mode.ANSWER: {"case", "answer", "takes_effect", "retry_after_s"},
        }[self.mode]
        given = {
            name
            for name in self.model_fields_set - {"mode", "for_s", "keys"}
            if getattr(self, name) is not None
        }
        if useless := given - uses:
            raise ValueError(
                f"mode {self.mode} does not use {', '.join(sorted(useless))}; "
                f"it uses {', '.join(sorted(uses | {'for_s', 'keys'}))}"
            )
        if self.mode is Mode.ANSWER and (self.case is None) == (self.answer is None):
            raise ValueError("mode answer requires a case or an answer, and not both")
        if self.case is not None and self.case not in CASES:
            raise ValueError(f"there is no case {self.case!r}; there are {', '.join(CASES)}")
        if self.case == "one-record" and not self.keys:
            raise ValueError("case one-record requires keys: the texts that name the record")
        if self.mode is Mode.SHARE and self.share is None:
            raise ValueError("mode share requires a share above 0 and up to 1")
        if self.mode is Mode.LIMIT and (self.calls is None or self.per_s is None):
            raise ValueError("mode limit requires calls and per_s")
        return self

    def concerns(self, said: str) -> bool:
        """Return whether the fault is about a call that says this."""
        return self.keys is None or any(key in said for key in self.keys)

    @property
    def lasts_s(self) -> float | None:
        """Seconds until the service recovers; None for never."""
        if self.for_s is None and self.case in ENDING:
            return self.retry_after_s or ENDING[self.case]
        return self.for_s

    @property
    def breaks_health(self) -> bool:
        """Whether the health check fails too: not if it is about records, keys or quotas."""
        if self.mode is Mode.ANSWER:
            return self.keys is None and self.case in ("maintenance", "internal-error")
        return self.mode not in (Mode.WRONG, Mode.LIMIT) and self.keys is None

    def answered(self, service: str) -> PlayedAnswer | None:
        """Return the answer that calls get; None if the mode has none."""
        return self.answer or (None if self.case is None else played(self.case, service))

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
        if self.mode in (Mode.RATE_LIMIT, Mode.LIMIT):
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
        lasts_s = fault.lasts_s
        self.healed_at = None if lasts_s is None else placed_at + timedelta(seconds=lasts_s)
        self.calls = 0
        self._window, self._used = 0, 0  # of its limit

    def is_active(self, now: datetime) -> bool:
        """Return whether the fault is active at `now`."""
        return self.healed_at is None or now < self.healed_at

    def retry_after_s(self, now: datetime) -> float | None:
        """Return the Retry-After of its answers: the rest of the time, where it ends by itself."""
        if self.fault.case in ENDING and self.healed_at is not None:
            named = self.fault.retry_after_s is not None or self.fault.case != "rate-limited"
            return (self.healed_at - now).total_seconds() if named else None
        if self.fault.per_s is not None:
            return self.fault.per_s * (1 + self._window) - (now - self.placed_at).total_seconds()
        return self.fault.sent_retry_after_s

    def affects_next(self, now: datetime) -> bool:
        """Count a call, and return whether the fault affects it."""
        self.calls += 1
        if self.fault.calls is None or self.fault.per_s is None:
            return self.fault.affects(self.calls)
        window = floor((now - self.placed_at).total_seconds() / self.fault.per_s)
        if window != self._window:
            self._window, self._used = window, 0
        if self._used == self.fault.calls:
            return True
        self._used += 1
        return False

    def limit_headers(self, now: datetime) -> dict[str, str]:
        """Return what all answers say of its limit."""
        left_s = self.retry_after_s(now)
        if self.fault.calls is None or left_s is None:
            return {}
        return {
            "X-RateLimit-Limit": str(self.fault.calls),
            "X-RateLimit-Remaining": str(self.fault.calls - self._used),
            "X-RateLimit-Reset": str(ceil(left_s)),
        }

    def heal(self, now: datetime) -> None:
        """End the fault at `now`, unless it has ended already."""
        if self.is_active(now):
            self.healed_at = now
