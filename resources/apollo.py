"""Apollo: identifies leads."""

from pydantic import BaseModel

from resources.client import ServiceClient


class Organization(BaseModel):
    """A person's employer."""

    name: str
    industry: str
    estimated_num_employees: int


class Person(BaseModel):
    """A person."""

    title: str
    organization: Organization


class Match(BaseModel):
    """The response to a search for one person; `person` is None if not found."""

    person: Person | None


class ApolloResource(ServiceClient):
    """Client of Apollo."""

    service = "apollo"

    def match(self, lead: dict[str, str], *, idempotency_key: str) -> Person | None:
        """Find a lead (`email`, `first_name`, `last_name`, `company`); None if unknown."""
        body = {
            "email": lead["email"],
            "first_name": lead["first_name"],
            "last_name": lead["last_name"],
            "organization_name": lead["company"],
        }
        return self.call(
            "POST", "api/v1/people/match", Match, idempotency_key=idempotency_key, json=body
        ).person
