"""Pauses Dagster campaigns when a third-party service fails, and resumes them when it recovers."""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagster_tidegate.breaker.answers import Answer
    from dagster_tidegate.breaker.breaker import Breaker
    from dagster_tidegate.breaker.errors import (
        AnswerError,
        BreakerOpenError,
        Denied,
        Pending,
        Rejected,
        Throttled,
    )
    from dagster_tidegate.breaker.fleet import Fleet
    from dagster_tidegate.breaker.policy import ServicePolicy
    from dagster_tidegate.breaker.verdicts import Verdict
    from dagster_tidegate.plugin.attempt import CampaignCancelled, CampaignPaused
    from dagster_tidegate.plugin.campaign import ASSETS, Campaign
    from dagster_tidegate.plugin.components import TidegateComponent
    from dagster_tidegate.plugin.definitions import build_definitions
    from dagster_tidegate.plugin.each import each
    from dagster_tidegate.plugin.resource import (
        BreakerResource,
        Budget,
        Rate,
        ServiceConfig,
        Window,
    )
    from dagster_tidegate.plugin.sensors import (
        build_breaker_sensor,
        build_pause_sensor,
        build_resume_sensor,
    )
    from dagster_tidegate.plugin.service_assets import service_key
    from dagster_tidegate.pools import pool
    from dagster_tidegate.records.journal import Group
    from dagster_tidegate.records.loop import Records
    from dagster_tidegate.records.record import Record
    from dagster_tidegate.store.campaigns import CatchUp
    from dagster_tidegate.store.retention import Keep

    __version__: str

__all__ = [
    "ASSETS",
    "Answer",
    "AnswerError",
    "Breaker",
    "BreakerOpenError",
    "BreakerResource",
    "Budget",
    "Campaign",
    "CampaignCancelled",
    "CampaignPaused",
    "CatchUp",
    "Denied",
    "Fleet",
    "Group",
    "Keep",
    "Pending",
    "Rate",
    "Record",
    "Records",
    "Rejected",
    "ServiceConfig",
    "ServicePolicy",
    "Throttled",
    "TidegateComponent",
    "Verdict",
    "Window",
    "__version__",
    "build_breaker_sensor",
    "build_definitions",
    "build_pause_sensor",
    "build_resume_sensor",
    "each",
    "pool",
    "service_key",
]

# Imported on first use: the breaker and the store work without Dagster, and the command line
# starts without it.
_MODULES = {
    "ASSETS": "plugin.campaign",
    "Answer": "breaker.answers",
    "AnswerError": "breaker.errors",
    "Breaker": "breaker.breaker",
    "BreakerOpenError": "breaker.errors",
    "BreakerResource": "plugin.resource",
    "Budget": "plugin.resource",
    "Campaign": "plugin.campaign",
    "CampaignCancelled": "plugin.attempt",
    "CampaignPaused": "plugin.attempt",
    "CatchUp": "store.campaigns",
    "Denied": "breaker.errors",
    "Fleet": "breaker.fleet",
    "Group": "records.journal",
    "Keep": "store.retention",
    "Pending": "breaker.errors",
    "Rate": "plugin.resource",
    "Record": "records.record",
    "Records": "records.loop",
    "Rejected": "breaker.errors",
    "ServiceConfig": "plugin.resource",
    "ServicePolicy": "breaker.policy",
    "Throttled": "breaker.errors",
    "TidegateComponent": "plugin.components",
    "Verdict": "breaker.verdicts",
    "Window": "plugin.resource",
    "build_breaker_sensor": "plugin.sensors",
    "build_definitions": "plugin.definitions",
    "build_pause_sensor": "plugin.sensors",
    "build_resume_sensor": "plugin.sensors",
    "each": "plugin.each",
    "pool": "pools",
    "service_key": "plugin.service_assets",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return metadata.version("dagster-tidegate")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
