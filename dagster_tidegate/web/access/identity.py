"""Who makes a request, and what that allows. Pure."""

from collections.abc import Collection
from dataclasses import dataclass

from dagster_tidegate.store.tokens import Role


@dataclass(frozen=True)
class Identity:
    """Who makes a request.

    Attributes:
        name: The actor recorded with its changes.
        token: Id of its token; None while there are no tokens.
    """

    name: str
    role: Role
    token: int | None = None

    def may_control(self, owners: Collection[str]) -> bool:
        """Return whether the request may control a campaign with these owners.

        A campaign without owners is controlled by every operator.
        """
        if self.role is Role.ADMIN:
            return True
        return self.role is Role.OPERATOR and (not owners or self.name in owners)
