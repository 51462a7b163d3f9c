import math

import dagster as dg
import pytest
from pydantic import ValidationError

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.plugin.resource import ServiceConfig


class Client(dg.ConfigurableResource):
    services: list[ServiceConfig]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": ""}, "at least 1 character"),
        ({"name": "open ai"}, "remove '+', '@', ',', '|' and spaces"),
        ({"name": "a+b"}, "remove '+', '@', ',', '|' and spaces"),
        ({"name": "a,b"}, "remove '+', '@', ',', '|' and spaces"),
        ({"name": "x\x00"}, "remove '+', '@', ',', '|' and spaces"),
        ({"name": "x" * 129}, "at most 128 characters"),
        ({"consecutive_failures": 0}, "greater than or equal to 1"),
        (
            {"consecutive_failures": None, "slow_call_rate": None},
            "would never trip: set one of consecutive_failures",
        ),
        ({"failure_rate": 50}, "less than or equal to 1"),
        ({"failure_rate": 0}, "greater than 0"),
        ({"reset_timeout_s": -1}, "greater than 0"),
        ({"reset_timeout_s": 60, "reset_timeout_cap_s": 30}, "is below its reset_timeout_s"),
        ({"failure_statuses": [503, 5]}, "not HTTP statuses (100 to 599): [5]"),
        ({"profile": "opnai"}, "there is no profile 'opnai': use one of anthropic, apollo"),
        ({"judge": "judge"}, "write it as package.module:function"),
        ({"retry_after_cap_s": 31 * 86400}, "less than or equal to 2592000"),
        ({"linger_s": math.inf}, "less than or equal to 316224000"),
        ({"reset_timeout_s": 1e12, "reset_timeout_cap_s": math.inf}, "less than or equal to 3162"),
        ({"trial_lease_s": math.inf}, "less than or equal to 316224000"),
        ({"ramp_interval_s": math.inf}, "less than or equal to 316224000"),
        ({"probe_timeout_s": math.inf}, "less than or equal to 316224000"),
        ({"probe_url": "file:///etc/passwd"}, "use an http:// or https:// URL"),
        ({"probe_url": "http://"}, "use an http:// or https:// URL"),
        ({"reset_timeout": 5}, "Extra inputs are not permitted"),
    ],
)
@pytest.mark.parametrize("policy", [ServicePolicy, ServiceConfig])
def test_a_wrong_policy_is_refused_with_what_would_be_right(policy, fields, says):
    with pytest.raises(ValidationError) as refused:
        policy(**{"name": "openai"} | fields)
    assert says in str(refused.value)


def test_every_field_is_described():
    for name, field in ServicePolicy.model_fields.items():
        assert field.description, name
        if name.endswith("_s"):
            assert "in seconds" in field.description, name


def test_a_policy_can_be_the_config_of_a_dagster_resource():
    seen = []

    @dg.op
    def look(client: Client) -> None:
        seen.extend(client.services)

    @dg.job
    def job() -> None:
        look()

    window = {"cron": "0 2 * * SUN", "duration_s": 7200, "timezone": "Europe/Berlin"}
    config = {
        "name": "openai",
        "failure_rate": 0.5,
        "failure_statuses": [429],
        "probe_url": None,
        "windows": [window],
    }
    result = job.execute_in_process(
        resources={"client": Client.configure_at_launch()},
        run_config={"resources": {"client": {"config": {"services": [config]}}}},
    )
    assert result.success
    assert seen == [ServiceConfig(**config)]
    assert isinstance(seen[0], ServicePolicy)


def test_a_probe_with_a_password_is_refused_without_repeating_it():
    with pytest.raises(ValidationError, match="can't contain a user or password") as refused:
        ServicePolicy(name="crm", probe_url="https://me:secret@crm.example:8443/up?deep=1")
    assert "secret" not in refused.value.errors()[0]["msg"]
