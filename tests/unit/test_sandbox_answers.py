import pytest

from demo.sandbox.answers import SERVICES, Request, answer

LEAD = {"email": "zoë@acme.example", "campaign": "dach", "messages": [{"content": "Acme"}]}


@pytest.mark.parametrize("service", SERVICES)
def test_the_same_request_gets_the_same_answer(service: str):
    endpoint, method, _ = SERVICES[service]
    requests = [Request(method, endpoint, {"email": LEAD["email"]}, LEAD) for _ in range(2)]
    first, second = (answer(service, request) for request in requests)
    assert first == second
    assert first.status == 200


@pytest.mark.parametrize("service", SERVICES)
def test_a_request_that_lacks_what_is_needed_is_refused(service: str):
    endpoint, method, _ = SERVICES[service]
    assert answer(service, Request(method, endpoint, {}, {})).status in (400, 422)
    assert answer(service, Request(method, "nothing/here", {}, LEAD)).status == 404


@pytest.mark.parametrize(
    ("address", "result"),
    [
        ("ann@acme.example", "ok"),
        ("ann@invalid.example", "invalid"),
        ("ann@Disposable.example", "disposable"),
        ("ann@catchall.example", "catch_all"),
    ],
)
def test_the_domain_of_an_address_says_what_it_is_worth(address: str, result: str):
    answered = answer("millionverifier", Request("GET", "api/v3", {"email": address}, {}))
    assert answered.body["result"] == result
