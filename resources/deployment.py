"""The resources of this deployment, by resource key."""

import os
from pathlib import Path
from typing import Any

from dagster_tidegate import BreakerResource
from resources.apollo import ApolloResource
from resources.instantly import InstantlyResource
from resources.lead_directory import LeadDirectory
from resources.millionverifier import MillionVerifierResource
from resources.openai import OpenAIResource
from resources.perplexity import PerplexityResource
from resources.results import ResultsDatabase
from resources.services import address, services
from resources.settings import DemoSettings

PROJECT = Path(__file__).resolve().parents[1]


def build_resources(
    *,
    sandbox_url: str,
    leads: Path,
    home: Path,
    results_url: str | None = None,
    store_url: str | None = None,
) -> dict[str, Any]:
    """Return the resources.

    Args:
        sandbox_url: Address of the sandbox, which simulates the services.
        leads: Directory of the lead files.
        home: Directory that the campaigns write to; the DAGSTER_HOME.
        results_url: The results database. Default: results.db in `home`.
        store_url: The store. Default: that of `BreakerResource`.
    """
    breakers = BreakerResource(services=services(sandbox_url), store_url=store_url)
    clients = {
        client.service: client(breakers=breakers, base_url=address(sandbox_url, client.service))
        for client in (
            ApolloResource,
            MillionVerifierResource,
            PerplexityResource,
            OpenAIResource,
            InstantlyResource,
        )
    }
    return {
        **clients,
        "breakers": breakers,
        "lead_directory": LeadDirectory(path=str(leads), rejects=str(home / "rejects")),
        "results": ResultsDatabase(url=results_url or f"sqlite:///{home / 'results.db'}"),
    }


def resources_from_environment() -> dict[str, Any]:
    """Return the resources as configured by `DemoSettings`, DAGSTER_HOME and TIDEGATE_STORE_URL."""
    settings = DemoSettings.load()
    results = settings.results_url
    return build_resources(
        sandbox_url=settings.sandbox_url,
        leads=settings.leads or PROJECT / "pipelines" / "leads",
        home=Path(os.environ.get("DAGSTER_HOME") or PROJECT / ".tidegate" / "home"),
        results_url=None if results is None else results.get_secret_value(),
    )
