"""The client of the sending service that all contenders use, and what each of them is given."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

NAME = "instantly"
WORKERS = 8
"""Workers, and lists of leads: one campaign run each."""
LEADS = 40
"""Leads of a list."""
LATENCY_S = 0.2
"""How long the service takes to answer, in seconds; not scaled."""
TIMEOUT_S = 30.0
POISON = "poison@acme.example"
"""The lead that the service can't process, in the first list of the scenario `poison`."""

# All in seconds, and scaled.
RESET_S = 10.0
"""How long an open breaker waits before it lets a call through."""
LONGEST_WAIT_S = 60.0
PATIENCE_S = 180.0
"""How long a worker goes on trying one lead."""
OPERATOR_S = 60.0
"""How long it takes a person to notice that something failed, once the service is well again."""
SLOW_S = 2.0
"""A call that takes this much longer than usual is slow."""

FAILURES = 5
"""Failures that open a breaker."""


def lists(scenario: str) -> list[str]:
    """Return the names of the lists of a scenario."""
    return [f"{scenario}-{number}" for number in range(WORKERS)]


def leads(name: str, *, without_poison: bool = False) -> list[str]:
    """Return the addresses of a list."""
    addresses = [f"{number}@acme.example" for number in range(LEADS)]
    if name == "poison-0" and not without_poison:
        addresses[LEADS // 2] = POISON
    return addresses


def slow_call_s(scale: float) -> float:
    """Return how long a slow call takes, or longer, in seconds."""
    return LATENCY_S + SLOW_S * scale


class Service:
    """Sends letters. The idempotency key of a letter is always the same."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def send(self, name: str, address: str) -> None:
        """Send the letter to a lead of a list.

        Raises:
            httpx.HTTPError: If the service refuses, or does not answer.
        """
        response = self._http.post(
            f"/{NAME}/api/v2/leads",
            json={"campaign": name, "email": address},
            headers={"Idempotency-Key": f"{name}/{address}"},
        )
        response.raise_for_status()


@contextmanager
def connected(sandbox_url: str) -> Iterator[Service]:
    """Yield the service."""
    with httpx.Client(base_url=sandbox_url, timeout=TIMEOUT_S, trust_env=False) as http:
        yield Service(http)


def is_transient(error: BaseException) -> bool:
    """Return whether another try may help, by the rule that most projects have."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)
