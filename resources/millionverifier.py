"""MillionVerifier: whether an address delivers."""

from typing import Literal

from pydantic import BaseModel

from resources.client import ServiceClient

Result = Literal["ok", "catch_all", "unknown", "disposable", "invalid"]


class Verification(BaseModel):
    """What is known of an address."""

    email: str
    result: Result


class MillionVerifierResource(ServiceClient):
    """Client of MillionVerifier."""

    service = "millionverifier"

    def verify(self, email: str, *, idempotency_key: str) -> Result:
        """Return whether an address delivers. `idempotency_key` is the same at every try."""
        return self.call(
            "GET", "api/v3", Verification, idempotency_key=idempotency_key, params={"email": email}
        ).result
