"""What is read of a code location without running its code."""

import json
from types import SimpleNamespace

from dagster_tidegate.dagster_api.locations import _policies


def test_the_parts_of_a_service_have_policies_too():
    services = [{"name": "apollo", "parts": ["people_match"]}, {"name": "openai"}]
    resource = SimpleNamespace(configured_values={"services": json.dumps(services)})
    policies = _policies(resource)  # type: ignore[arg-type] -- only its configuration is read
    assert [policy.name for policy in policies] == ["apollo", "apollo/people_match", "openai"]
