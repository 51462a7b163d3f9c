"""Instantly: sends the mails."""

from pydantic import BaseModel

from resources.client import ServiceClient


class AddedLead(BaseModel):
    """A lead that Instantly has taken over."""

    id: str


class InstantlyResource(ServiceClient):
    """Client of Instantly."""

    service = "instantly"

    def add_lead(self, letter: dict[str, str], *, campaign: str, idempotency_key: str) -> str:
        """Hand a lead and its letter over.

        Args:
            letter: `email`, `first_name`, `last_name` and `text`.
            campaign: Instantly's campaign, which sends it.
            idempotency_key: The same at every try.

        Returns:
            The lead's id.
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
