"""The component for `dg` projects. Whatever `dg` does imports it: nothing optional in here."""

from collections.abc import Sequence
from typing import Annotated, Any

import dagster as dg
from pydantic import BaseModel, Field

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api.component_tree import definitions_beside
from dagster_tidegate.plugin.campaign import Campaign
from dagster_tidegate.plugin.definitions import gate_definitions
from dagster_tidegate.plugin.resource import ServiceConfig
from dagster_tidegate.store.campaigns import CatchUp


class CampaignModel(dg.Model, dg.Resolvable):
    """What can't be inferred about a campaign; the fields are those of `Campaign`."""

    job: str = Field(description="Name of the job.")
    catch_up: CatchUp | None = Field(
        default=None, description="Which missed schedule ticks run later."
    )
    triggers: list[str] = Field(default=[], description="Names of further sensors that start it.")
    priority: int = Field(
        default=0,
        description="Campaigns of higher priority resume first, and call first within a limit.",
    )
    max_ticks: int = Field(default=100, description="Maximum number of missed ticks to run.")
    owners: list[str] = Field(default=[], description="Names of API tokens that may control it.")


def _services(
    context: dg.ResolutionContext, services: str | Sequence[str | ServicePolicy]
) -> list[ServiceConfig]:
    if isinstance(services, str):  # a template
        services = list(context.resolve_value(services))
    return [
        ServiceConfig(name=str(context.resolve_value(each)))
        if isinstance(each, str)
        else ServiceConfig(**context.resolve_value(each.model_dump(exclude_unset=True)))
        for each in services
    ]


class ScaffoldParams(BaseModel):
    """Parameters of `dg scaffold defs dagster_tidegate.TidegateComponent`."""

    services: str = Field(
        default="my_api", description="Names of the services, separated by commas."
    )


class TidegateScaffolder(dg.Scaffolder[ScaffoldParams]):
    """Writes a defs.yaml with services."""

    @classmethod
    def get_scaffold_params(cls) -> type[ScaffoldParams]:
        """Return the model of the parameters."""
        return ScaffoldParams

    def scaffold(self, request: dg.ScaffoldRequest[ScaffoldParams]) -> None:
        """Write the file."""
        services = [name.strip() for name in request.params.services.split(",")]
        dg.scaffold_component(request, {"services": services})


@dg.scaffold_with(TidegateScaffolder)
class TidegateComponent(dg.Component, dg.Model, dg.Resolvable):
    """Pauses a project's jobs and assets with the services that they need: `build_definitions`.

    It covers everything in the project's defs folder. Where you call `build_definitions` yourself,
    you don't need it.

    Example:
        ```yaml
        type: dagster_tidegate.TidegateComponent
        attributes:
          services:
            - mailer
            - name: enrich_api
              pools: [api_pool]
          campaigns:
            - job: newsletter
              catch_up: latest
        ```
    """

    # Dagster's own models can't have the bounds that a policy's fields have.
    services: Annotated[
        Sequence[Any],
        dg.Resolver(_services, model_field_type=list[str | ServicePolicy]),
    ] = Field(description="The services, each by its name or with its policy.")
    campaigns: list[CampaignModel] = Field(
        default=[], description="What can't be inferred about campaigns."
    )
    store_url: str | None = Field(
        default=None, description="URL of the state database; default: that of the environment."
    )
    resource_key: str = Field(default="breakers", description="Key of the resource.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the resource and the sensors."""
        return gate_definitions(
            definitions_beside(context),
            self.services,
            campaigns=[Campaign(**each.model_dump(exclude_unset=True)) for each in self.campaigns],
            store_url=self.store_url,
            resource_key=self.resource_key,
        )
