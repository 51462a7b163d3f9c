"""What a queued run waits for."""

from dagster_tidegate.gate.plan import Cover
from dagster_tidegate.gate.queue import holding
from tests.unit.situations import LETTERS, MAIL, MAPS, MONDAY, NOW, breakers_hold, hold

HOLDS = [breakers_hold(MAIL, id=1), breakers_hold(MAPS, id=2), hold(LETTERS, id=3)]


def ids(*pools: str, holds=HOLDS, adopted=None) -> list[int]:
    cover = Cover(holds, {"mail", "maps"}, adopted or {})
    return [each.id for each in holding(pools, cover, holds, NOW)]


def test_a_run_waits_for_the_services_and_the_campaign_in_its_pools() -> None:
    assert ids("mail") == [1]
    assert ids("mail+maps") == [1, 2]
    assert ids("mail", "@letters") == [1, 3]


def test_a_run_without_a_held_pool_waits_for_no_hold() -> None:
    assert ids() == []
    assert ids("database") == []
    assert ids("mail", holds=[breakers_hold(MAPS)]) == []
    assert ids("mail", holds=[hold(MONDAY)]) == []


def test_a_pool_that_stands_for_a_service_is_one_of_its() -> None:
    assert ids("api_pool", adopted={"api_pool": {"mail"}}) == [1]
