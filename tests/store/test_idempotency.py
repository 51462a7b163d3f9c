"""Idempotency keys: claimed by one request, whose response is replayed."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from dagster_tidegate.store import idempotency
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.idempotency import (
    Claim,
    KeyInUseError,
    KeyReusedError,
    RequestKey,
    StoredAnswer,
)
from tests.support.clock import Clock

KEY = RequestKey("ana", "k-1", "digest")
ANSWER = StoredAnswer(201, {"id": 7, "ü": [None, 1.5]})


def claim(store: Store, clock: Clock, key: RequestKey = KEY) -> Claim:
    with store.begin() as conn:
        claimed = idempotency.claim(conn, clock(), key)
    assert isinstance(claimed, Claim)
    return claimed


def test_the_response_is_replayed_to_its_actor_and_request(store: Store, clock: Clock) -> None:
    claimed = claim(store, clock)
    with store.begin() as conn:
        idempotency.answer(conn, claimed, ANSWER)
        assert idempotency.claim(conn, clock(), KEY) == ANSWER
        with pytest.raises(KeyReusedError):
            idempotency.claim(conn, clock(), RequestKey("ana", "k-1", "another"))
    claim(store, clock, RequestKey("bo", "k-1", "another"))
    clock.advance(idempotency.KEEP.total_seconds())
    claim(store, clock)


def test_a_request_in_progress_keeps_its_key_until_it_must_have_died(
    store: Store, clock: Clock
) -> None:
    dead = claim(store, clock)
    with pytest.raises(KeyInUseError), store.begin() as conn:
        idempotency.claim(conn, clock(), KEY)
    clock.advance(idempotency.MAX_REQUEST.total_seconds())
    heir = claim(store, clock)
    assert heir.id == dead.id
    with store.begin() as conn:  # too late: the claim was taken over
        idempotency.answer(conn, dead, StoredAnswer(500, None))
        idempotency.forget(conn, dead)
        idempotency.answer(conn, heir, ANSWER)
        assert idempotency.claim(conn, clock(), KEY) == ANSWER


def test_a_forgotten_claim_may_be_made_again_and_an_answer_is_kept(
    store: Store, clock: Clock
) -> None:
    first = claim(store, clock)
    with store.begin() as conn:
        idempotency.forget(conn, first)
    second = claim(store, clock)
    with store.begin() as conn:
        idempotency.answer(conn, second, ANSWER)
        idempotency.forget(conn, second)
        assert idempotency.claim(conn, clock() + timedelta(hours=1), KEY) == ANSWER


def test_of_requests_at_once_one_gets_the_claim(store: Store, clock: Clock) -> None:
    def attempt(_number: int) -> bool:
        try:
            return bool(claim(store, clock))
        except KeyInUseError:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(attempt, range(4))) == 1
