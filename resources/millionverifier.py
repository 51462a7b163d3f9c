"""MillionVerifier: verifies addresses."""

from typing import Literal

from pydantic import BaseModel

from resources.client import ServiceClient

Result = Literal["ok", "catch_all", "unknown", "disposable", "invalid"]


class Verification(BaseModel):
    """The verification of an address."""

    email: str
    result: Result


class MillionVerifierResource(ServiceClient):
    """Client of MillionVerifier."""

    service = "millionverifier"

    def verify(self, email: str, *, idempotency_key: str) -> Result:
        """Verify an address."""
        return self.call(
            "GET", "api/v3", Verification, idempotency_key=idempotency_key, params={"email": email}
        ).result
