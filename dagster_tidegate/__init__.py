"""Pauses Dagster campaigns when a third-party service fails, and resumes them when it recovers."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagster_tidegate.breaker.breaker import Breaker as Breaker
    from dagster_tidegate.breaker.errors import BreakerOpenError as BreakerOpenError
    from dagster_tidegate.breaker.fleet import Fleet as Fleet
    from dagster_tidegate.breaker.policy import ServicePolicy as ServicePolicy
    from dagster_tidegate.plugin.campaign import Campaign as Campaign
    from dagster_tidegate.plugin.pause import CampaignCancelled as CampaignCancelled
    from dagster_tidegate.plugin.pause import CampaignPaused as CampaignPaused
    from dagster_tidegate.plugin.resource import BreakerResource as BreakerResource
    from dagster_tidegate.plugin.resource import ServiceConfig as ServiceConfig
    from dagster_tidegate.plugin.sensors import build_breaker_sensor as build_breaker_sensor
    from dagster_tidegate.plugin.sensors import build_pause_sensor as build_pause_sensor
    from dagster_tidegate.plugin.sensors import build_resume_sensor as build_resume_sensor
    from dagster_tidegate.pools import pool as pool
    from dagster_tidegate.records.journal import Group as Group
    from dagster_tidegate.records.loop import Records as Records
    from dagster_tidegate.records.record import Record as Record
    from dagster_tidegate.store.campaigns import CatchUp as CatchUp
    from dagster_tidegate.store.retention import Keep as Keep

# Loaded when first asked for: the breaker and the store are usable without Dagster, and the
# command line answers without waiting for it.
_HOMES = {
    "Breaker": "breaker.breaker",
    "BreakerOpenError": "breaker.breaker",
    "BreakerResource": "plugin.resource",
    "Campaign": "plugin.campaign",
    "CampaignCancelled": "plugin.pause",
    "CampaignPaused": "plugin.pause",
    "CatchUp": "plugin.campaign",
    "Fleet": "breaker.fleet",
    "Group": "records.journal",
    "Keep": "store.retention",
    "Record": "records.record",
    "Records": "records.loop",
    "ServiceConfig": "plugin.resource",
    "ServicePolicy": "breaker.policy",
    "build_breaker_sensor": "plugin.sensors",
    "build_pause_sensor": "plugin.sensors",
    "build_resume_sensor": "plugin.sensors",
    "pool": "pools",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
