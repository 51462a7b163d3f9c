"""Circuit breakers for third-party services, shared by all processes of a fleet.

Usable without Dagster, and without a database.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagster_tidegate.breaker.answers import Answer
    from dagster_tidegate.breaker.backend import BreakerBackend, MemoryBackend
    from dagster_tidegate.breaker.breaker import Breaker
    from dagster_tidegate.breaker.errors import (
        AnswerError,
        BreakerOpenError,
        Denied,
        OutdatedError,
        Pending,
        Rejected,
        Throttled,
        UnknownServiceError,
    )
    from dagster_tidegate.breaker.events import (
        CallEnded,
        CallFailed,
        CallRefused,
        CallsCounted,
        ChangeLearned,
        Event,
        Hook,
        StateChanged,
        StoreLost,
        StoreRegained,
    )
    from dagster_tidegate.breaker.fleet import Fleet
    from dagster_tidegate.breaker.judge import Judge, every_error
    from dagster_tidegate.breaker.policy import ServicePolicy
    from dagster_tidegate.breaker.pybreaker_storage import SharedStorage
    from dagster_tidegate.breaker.snapshot import FleetSnapshot
    from dagster_tidegate.breaker.state_machine import BreakerStatus
    from dagster_tidegate.breaker.verdicts import (
        Scope,
        Verdict,
        VerdictKind,
    )

__all__ = [
    "Answer",
    "AnswerError",
    "Breaker",
    "BreakerBackend",
    "BreakerOpenError",
    "BreakerStatus",
    "CallEnded",
    "CallFailed",
    "CallRefused",
    "CallsCounted",
    "ChangeLearned",
    "Denied",
    "Event",
    "Fleet",
    "FleetSnapshot",
    "Hook",
    "Judge",
    "MemoryBackend",
    "OutdatedError",
    "Pending",
    "Rejected",
    "Scope",
    "ServicePolicy",
    "SharedStorage",
    "StateChanged",
    "StoreLost",
    "StoreRegained",
    "Throttled",
    "UnknownServiceError",
    "Verdict",
    "VerdictKind",
    "every_error",
]
# Imported on first use: the store needs only a few of these modules.
_MODULES = {
    "answers": ("Answer",),
    "backend": ("BreakerBackend", "MemoryBackend"),
    "breaker": ("Breaker",),
    "errors": (
        "AnswerError",
        "BreakerOpenError",
        "Denied",
        "OutdatedError",
        "Pending",
        "Rejected",
        "Throttled",
        "UnknownServiceError",
    ),
    "events": (
        "CallEnded",
        "CallFailed",
        "CallRefused",
        "CallsCounted",
        "ChangeLearned",
        "Event",
        "Hook",
        "StateChanged",
        "StoreLost",
        "StoreRegained",
    ),
    "fleet": ("Fleet",),
    "judge": ("Judge", "every_error"),
    "policy": ("ServicePolicy",),
    "pybreaker_storage": ("SharedStorage",),
    "snapshot": ("FleetSnapshot",),
    "state_machine": ("BreakerStatus",),
    "verdicts": ("Scope", "Verdict", "VerdictKind"),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
