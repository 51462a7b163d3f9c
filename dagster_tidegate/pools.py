"""Names of Dagster pools: which services, and which campaign, a pool belongs to.

A Dagster op has one pool. Its name says what the op needs, and so it is the only place where
that is declared: `instantly`, `openai+perplexity` (an op that needs both), `@outreach` (an op
that needs no service, but is to wait while the campaign is held), `openai@digest` (both).
"""

from collections.abc import Collection
from dataclasses import dataclass


def pool(*services: str, campaign: str | None = None) -> str:
    """Return the name of the pool for an op that needs `services`.

    Args:
        services: Names of the services that the op calls; their order does not matter.
        campaign: Name of the op's job, so that a hold on the campaign stops its queued runs too.
            One op of a job is enough.

    Returns:
        The name to pass to Dagster as `pool=`.

    Raises:
        ValueError: If neither a service nor a campaign is given, or a name has a character that
            separates names in a pool (`+`, `@`, white space) or in a tag (`,`).

    Example:
        >>> pool("perplexity", "openai")
        'openai+perplexity'
        >>> pool("instantly", campaign="outreach")
        'instantly@outreach'
    """
    if not services and campaign is None:
        raise ValueError("pool() needs at least one service or a campaign")
    for name in (*services, *([] if campaign is None else [campaign])):
        if not name or any(c in "+@," or c.isspace() for c in name):
            raise ValueError(
                f"{name!r} can't be part of a pool name: use no '+', '@', ',' or space"
            )
    return "+".join(sorted(set(services))) + ("" if campaign is None else f"@{campaign}")


@dataclass(frozen=True)
class PoolNeeds:
    """What the ops in a pool need.

    Attributes:
        services: Names of services that Tidegate knows.
        campaign: The campaign whose own pool it is, or None.
    """

    services: frozenset[str]
    campaign: str | None


def needs(pool_name: str | None, known_services: Collection[str]) -> PoolNeeds:
    """Read a pool name back into the services and the campaign it stands for.

    Args:
        pool_name: A Dagster pool name, of ours or of anybody, or None.
        known_services: Names of the services that have a breaker; other parts of the name are
            nobody's business.

    Returns:
        The needs; empty for a pool that has nothing to do with Tidegate.

    Example:
        >>> needs("openai+perplexity@digest", {"openai", "perplexity"}).campaign
        'digest'
    """
    if pool_name is None:
        return PoolNeeds(frozenset(), None)
    services, _, campaign = pool_name.partition("@")
    return PoolNeeds(frozenset(services.split("+")) & frozenset(known_services), campaign or None)
