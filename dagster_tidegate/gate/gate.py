"""What a gate works with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api.instance import Dagster
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store


@dataclass(frozen=True)
class Gate:
    """A gate.

    Attributes:
        location: The gate's code location; empty outside the sensors.
        specs: The campaigns of the code location; if empty, the plan covers all in the store.
        enabled: False if Tidegate is switched off: then no hold counts.
    """

    dagster: Dagster
    store: Store
    policies: Mapping[str, ServicePolicy]
    location: str = ""
    specs: Sequence[CampaignSpec] = ()
    enabled: bool = True

    @cached_property
    def campaigns(self) -> Mapping[str, CampaignSpec]:
        """The campaigns of the code location, by name."""
        return {spec.name: spec for spec in self.specs}
