"""Apollo: who a lead is."""

from pydantic import BaseModel

from resources.client import ServiceClient


class Organization(BaseModel):
    """Where a person works."""

    name: str
    industry: str
    estimated_num_employees: int


class Person(BaseModel):
    """A person, as Apollo knows them."""

    title: str
    organization: Organization


class Match(BaseModel):
    """The answer to a search for one person; `person` is None for a stranger."""

    person: Person | None


class ApolloResource(ServiceClient):
    """Client of Apollo."""

    service = "apollo"

    def match(self, lead: dict[str, str], *, idempotency_key: str) -> Person | None:
        """Return who a lead is, or None if Apollo does not know them.

        Args:
            lead: `email`, `first_name`, `last_name` and `company`.
            idempotency_key: The same at every try.
        """
        body = {
            "email": lead["email"],
            "first_name": lead["first_name"],
            "last_name": lead["last_name"],
            "organization_name": lead["company"],
        }
        return self.call(
            "POST", "api/v1/people/match", Match, idempotency_key=idempotency_key, json=body
        ).person
