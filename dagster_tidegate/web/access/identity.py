"""Who asks, and what that allows. Pure."""

from collections.abc import Collection
from dataclasses import dataclass

from dagster_tidegate.store.tokens import Role

ONLY_LOOKS = "only_looks"
"""In the state of a request: whether Dagster's pages let whoever sends it change nothing."""


@dataclass(frozen=True)
class Identity:
    """Who makes a request.

    Attributes:
        name: The actor that changes are recorded with.
        role: What the request may do.
        address: The network address it comes from; None where there is none.
        token: Id of the token that it was made with; None on a machine without tokens.
    """

    name: str
    role: Role
    address: str | None
    token: int | None = None

    def may_steer(self, owners: Collection[str]) -> bool:
        """Return whether the request may steer a campaign.

        Args:
            owners: Who owns the campaign; nobody: every operator steers it.
        """
        if self.role is Role.ADMIN:
            return True
        return self.role is Role.OPERATOR and (not owners or self.name in owners)
