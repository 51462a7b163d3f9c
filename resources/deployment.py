"""The resources of this deployment, by the names under which ops and sensors ask for them."""

import os
from pathlib import Path
from typing import Any

from dagster_tidegate import BreakerResource
from dagster_tidegate.settings import ReferenceSettings, load
from resources.apollo import ApolloResource
from resources.instantly import InstantlyResource
from resources.lead_directory import LeadDirectory
from resources.millionverifier import MillionVerifierResource
from resources.openai import OpenAIResource
from resources.perplexity import PerplexityResource
from resources.results import ResultsDatabase
from resources.services import address, services

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
        sandbox_url: Address of the sandbox, which plays the services.
        leads: Directory of the lead files.
        home: Directory for what the campaigns write; the DAGSTER_HOME.
        results_url: Database of the results. Default: results.db in `home`.
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
    """Return the resources as these variables of the environment say.

    `TIDEGATE_SANDBOX_URL`, `TIDEGATE_LEADS` (a directory), `TIDEGATE_RESULTS_URL`, `DAGSTER_HOME`,
    and `TIDEGATE_STORE_URL`, which the breakers read for themselves. docs/settings.md has them.
    """
    settings = load(ReferenceSettings)
    results = settings.results_url
    return build_resources(
        sandbox_url=settings.sandbox_url,
        leads=settings.leads or PROJECT / "pipelines" / "leads",
        home=Path(os.environ.get("DAGSTER_HOME") or PROJECT / ".tidegate" / "home"),
        results_url=None if results is None else results.get_secret_value(),
    )
