"""Names of Dagster pools, which declare the services and the campaign that an op depends on.

A Dagster op has one pool. `instantly` is an op that needs that service, `openai+perplexity` one
that needs both, `@outreach` one that needs no service but waits while the campaign is held, and
`openai@digest` combines the two. `apollo|clearbit` is an op that needs one of two services, and
`apollo|clearbit+instantly` one that needs one of them and a third.

A pool that a project has already keeps its name: `ServicePolicy.pools` says what it stands for.

A service may have parts: `apollo/people_match`. An op that needs a part needs the whole too, since
a hold on the whole covers its parts.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType


def pool(*services: str, campaign: str | None = None) -> str:
    """Return the name of the pool for an op that needs `services`.

    Args:
        services: Names of the services that the op calls, in any order. `apollo|clearbit` is a
            chain, of which one service is enough.
        campaign: Name of the op's job, so that a hold on the campaign also holds its queued runs.
            One op of a job is enough.

    Returns:
        The value for `pool=` of a Dagster op.

    Raises:
        ValueError: If neither a service nor a campaign is given, or a name contains `+`, `@`, `,`
            or white space.

    Example:
        >>> pool("perplexity", "openai")
        'openai+perplexity'
        >>> pool("instantly", campaign="outreach")
        'instantly@outreach'
        >>> pool("instantly", "clearbit|apollo")
        'apollo|clearbit+instantly'
    """
    if not services and campaign is None:
        raise ValueError("pool() needs at least one service or a campaign")
    chains = [sorted(set(service.split("|"))) for service in services]
    for name in (*chain.from_iterable(chains), *([] if campaign is None else [campaign])):
        if not name or any(c in "+@," or c.isspace() for c in name):
            raise ValueError(
                f"{name!r} can't be part of a pool name: remove '+', '@', ',' and spaces"
            )
    named = "+".join(sorted({"|".join(alternatives) for alternatives in chains}))
    return named + ("" if campaign is None else f"@{campaign}")


# In the API, /services/apollo/history is the history of apollo.
_TAKEN = ("campaigns", "history", "windows")


@dataclass(frozen=True)
class PoolNeeds:
    """What the ops in a pool depend on.

    Attributes:
        services: All services that it names, alternatives of a chain too.
        campaign: The campaign whose pool it is, or None.
        chains: The services of which one is enough, each time; of a service that has no
            alternative, it alone.
    """

    services: frozenset[str]
    campaign: str | None
    chains: frozenset[frozenset[str]] = field(default=frozenset(), compare=False)

    def blocked_by(self, held: Collection[str]) -> frozenset[str]:
        """Return which of the held services keep the ops from running.

        The services of a chain do once all of them are held, or the wholes that they are parts of.

        Example:
            >>> need = needs("apollo|clearbit+instantly", {"apollo", "clearbit", "instantly"})
            >>> sorted(need.blocked_by(["apollo"])), sorted(need.blocked_by(["apollo", "clearbit"]))
            ([], ['apollo', 'clearbit'])
        """
        blocking: set[str] = set()
        for alternatives in self.chains:
            held_of_each = [with_wholes([name]).intersection(held) for name in alternatives]
            if all(held_of_each):
                blocking.update(*held_of_each)
        return frozenset(blocking)


def whole_of(service: str) -> str:
    """Return the service that a service is a part of; for one that is no part, itself.

    Example:
        >>> whole_of("apollo/people_match"), whole_of("apollo")
        ('apollo', 'apollo')
    """
    return service.partition("/")[0]


def with_wholes(services: Collection[str]) -> set[str]:
    """Return services, and for each part the service that it belongs to.

    Example:
        >>> sorted(with_wholes(["apollo/people_match", "instantly"]))
        ['apollo', 'apollo/people_match', 'instantly']
    """
    return {*services, *map(whole_of, services)}


def check_service_name(name: str) -> None:
    """Check that a service or a part of one can have a name.

    Raises:
        ValueError: If not; the message says why.
    """
    whole, slash, part = name.partition("/")
    if slash and (not whole or not part or "/" in part):
        raise ValueError(f"{name!r} can't be a service's name: a part is named service/part")
    if part in _TAKEN:
        raise ValueError(f"{name!r} can't be a service's name: call the part something else")


Adopted = Mapping[str, Collection[str]]
"""The services that pools of other names stand for (`ServicePolicy.pools`), by pool."""


def needs(
    pool_name: str | None, known_services: Collection[str], adopted: Adopted = MappingProxyType({})
) -> PoolNeeds:
    """Return the services and the campaign that a pool name stands for.

    Args:
        pool_name: Any Dagster pool name, or None.
        known_services: Services with a breaker; other parts of the name are ignored.
        adopted: What pools stand for whose names don't say it.

    Returns:
        The needs, with the service that each part belongs to. They are empty for a pool unrelated
        to Tidegate.

    Example:
        >>> needs("openai+perplexity@digest", {"openai", "perplexity"}).campaign
        'digest'
        >>> sorted(needs("apollo/people", {"apollo", "apollo/people", "apollo/find"}).services)
        ['apollo', 'apollo/people']
        >>> sorted(needs("api_pool", {"enrich"}, {"api_pool": ["enrich"]}).services)
        ['enrich']
    """
    if pool_name is None:
        return PoolNeeds(frozenset(), None)
    services, _, campaign = pool_name.partition("@")
    terms = [*services.split("+"), *adopted.get(pool_name, ())]
    chains = [frozenset(term.split("|")) for term in terms]
    known = {*known_services}
    needed = with_wholes([*chain.from_iterable(chains)])
    return PoolNeeds(
        frozenset(needed & known),
        campaign or None,
        frozenset(each for each in chains if not known.isdisjoint(with_wholes(each))),
    )


def merged(parts: Iterable[Adopted]) -> dict[str, frozenset[str]]:
    """Return what pools stand for according to any of several.

    Example:
        >>> sorted(merged([{"api_pool": ["enrich"]}, {"api_pool": ["geo"]}])["api_pool"])
        ['enrich', 'geo']
    """
    services: dict[str, frozenset[str]] = {}
    for adopted in parts:
        for name, of_it in adopted.items():
            services[name] = services.get(name, frozenset()).union(of_it)
    return services
