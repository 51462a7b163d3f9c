"""Instantly: sends mail."""

from pydantic import BaseModel

from resources.client import ServiceClient


class AddedLead(BaseModel):
    """A lead that Instantly has accepted."""

    id: str


class InstantlyResource(ServiceClient):
    """Client of Instantly."""

    service = "instantly"

    def add_lead(self, letter: dict[str, str], *, campaign: str, idempotency_key: str) -> str:
        """Submit a letter; return the id of the lead.

        Args:
            letter: `email`, `first_name`, `last_name` and `text`.
            campaign: Instantly's campaign, which sends it.
            idempotency_key: The same for every try of a record.
        """
        body = {
            "campaign": campaign,
            "email": letter["email"],
            "first_name": letter["first_name"],
            "last_name": letter["last_name"],
            "personalization": letter["text"],
        }
        return self.call(
            "POST", "api/v2/leads", AddedLead, idempotency_key=idempotency_key, json=body
        ).id
