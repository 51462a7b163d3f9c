"""The resources of this deployment, by the names under which ops and sensors ask for them."""

import os
from pathlib import Path

from dagster_tidegate import BreakerResource
from resources.apollo import ApolloResource
from resources.instantly import InstantlyResource
from resources.lead_directory import LeadDirectory
from resources.millionverifier import MillionVerifierResource
from resources.openai import OpenAIResource
from resources.perplexity import PerplexityResource
from resources.results import ResultsDatabase
from resources.services import SERVICES, address

PROJECT = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("DAGSTER_HOME") or PROJECT / ".tidegate" / "home")

# Also TIDEGATE_STORE_URL, which the breakers read for themselves.
LEADS = os.environ.get("TIDEGATE_LEADS", str(PROJECT / "pipelines" / "leads"))
RESULTS_URL = os.environ.get("TIDEGATE_RESULTS_URL", f"sqlite:///{HOME / 'results.db'}")

breakers = BreakerResource(services=SERVICES)

RESOURCES = {
    "breakers": breakers,
    "apollo": ApolloResource(breakers=breakers, base_url=address("apollo")),
    "millionverifier": MillionVerifierResource(
        breakers=breakers, base_url=address("millionverifier")
    ),
    "perplexity": PerplexityResource(breakers=breakers, base_url=address("perplexity")),
    "openai": OpenAIResource(breakers=breakers, base_url=address("openai")),
    "instantly": InstantlyResource(breakers=breakers, base_url=address("instantly")),
    "lead_directory": LeadDirectory(path=LEADS, rejects=str(HOME / "rejects")),
    "results": ResultsDatabase(url=RESULTS_URL),
}
