"""Pool names say what an op needs, and are read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.holds import TargetKind, named
from dagster_tidegate.pools import PoolNeeds, needs, pool

names = st.text(st.characters(categories=["L", "N"], include_characters="-_./"), min_size=1)


@given(services=st.sets(names, max_size=4), campaign=st.none() | names)
def test_what_a_pool_name_says_is_read_back(services: set[str], campaign: str | None) -> None:
    if not services and campaign is None:
        return
    assert needs(pool(*services, campaign=campaign), services) == PoolNeeds(
        frozenset(services), campaign
    )


part_names = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")).map("/".join)


@given(
    services=st.sets(st.sampled_from("abc") | part_names, min_size=1),
    known=st.sets(st.sampled_from("abc") | part_names),
)
def test_who_needs_a_part_needs_the_whole_and_not_the_other_way_round(
    services: set[str], known: set[str]
) -> None:
    needed = needs(pool(*services), known).services
    assert needed == (services | {name[0] for name in services}) & known


@pytest.mark.parametrize("name", ["/", "/a", "a/", "a//b", "a/b/c", "a/history", "a/windows"])
def test_a_name_that_is_neither_a_service_nor_a_part_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="can't be a service's name"):
        ServicePolicy(name=name)
    with pytest.raises(ValueError, match="can't be a service's name"):
        named(TargetKind.SERVICE, name)


def test_the_order_of_services_does_not_matter() -> None:
    assert pool("openai", "perplexity") == pool("perplexity", "openai") == "openai+perplexity"


@given(
    services=st.lists(st.lists(st.sampled_from("abc") | part_names, min_size=1), min_size=1),
    held=st.sets(st.sampled_from("abc") | part_names),
)
def test_a_chain_is_blocked_once_each_of_its_services_is_held(
    services: list[list[str]], held: set[str]
) -> None:
    name = pool(*map("|".join, services))
    assert name == pool(*("|".join(reversed(chain)) for chain in reversed(services)))
    known = {each for chain in services for each in chain}
    blocking = needs(name, known | held).blocked_by(held)
    is_blocked = any(all({each, each[0]} & held for each in chain) for chain in services)
    assert bool(blocking) == is_blocked
    assert blocking <= held


def test_a_pool_of_somebody_else_needs_nothing() -> None:
    assert needs("snowflake", {"openai"}) == PoolNeeds(frozenset(), None)
    assert needs(None, {"openai"}) == PoolNeeds(frozenset(), None)


@pytest.mark.parametrize("name", ["", "a+b", "a@b", "a,b", "a b", "a\n", "a|", "a|b c"])
def test_a_name_that_could_not_be_read_back_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="can't be part of a pool name"):
        pool(name)


def test_a_pool_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one service or a campaign"):
        pool()
