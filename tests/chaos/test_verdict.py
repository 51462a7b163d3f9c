"""The verdict on a round of chaos sees what it is there to see, and a plan is its seed's."""

from dataclasses import replace
from typing import Any

import pytest

from dagster_tidegate.statuses import RecordStatus, RunStatus
from tests.chaos.plan import Form, Kind, of, plan
from tests.chaos.verdict import Evidence, Listed, Sent, findings

KEYS = ["ada", "alan", "grace"]
UNBROKEN = Evidence(
    wanted=KEYS,
    left_in_doubt=1,
    grouped=0,
    crashes=1,
    sent=[Sent("run-1", key, f"id-{key}") for key in KEYS],
    listed=[],
    arrivals={f"id-{key}": 1 for key in KEYS},
    effects={f"id-{key}": 1 for key in KEYS},
    repeats={f"id-{key}": 0 for key in KEYS},
    subjects=dict.fromkeys(KEYS, 1),
    ledger=dict.fromkeys(KEYS, RecordStatus.DONE),
    status=RunStatus.COMPLETED,
    results=KEYS,
)
SENT_AGAIN = {**UNBROKEN.repeats, "id-alan": 1}


def test_an_unbroken_round_is_well():
    assert findings(UNBROKEN) == []


def test_a_record_that_was_in_doubt_may_be_sent_once_more():
    found = replace(UNBROKEN, listed=[Listed("run-2", "alan")], repeats=SENT_AGAIN)
    assert findings(found) == []


def test_a_crash_may_repeat_a_group():
    assert findings(replace(UNBROKEN, repeats=SENT_AGAIN, grouped=1)) == []
    assert findings(replace(UNBROKEN, repeats=SENT_AGAIN, grouped=1, crashes=0)) != []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"status": RunStatus.FAILED}, "the campaign run is failed"),
        (
            {"effects": {"id-ada": 1, "id-alan": 1}},
            "1 were lost, they never took effect",
        ),
        ({"sent": UNBROKEN.sent[:2]}, "1 were lost, they never took effect"),
        ({"subjects": {**UNBROKEN.subjects, "ada": 2}}, "ada took effect 2 times"),
        (
            {"sent": [*UNBROKEN.sent, Sent("run-2", "ada", "id-another")]},
            "ada was sent under 2 idempotency keys",
        ),
        ({"repeats": SENT_AGAIN}, "not listed as in doubt: alan"),
        (
            {"repeats": SENT_AGAIN, "listed": [Listed("run-2", "ada")]},
            "not listed as in doubt: alan",
        ),
        (
            {"listed": [Listed("run-2", "ada"), Listed("run-2", "alan")]},
            "2 records were in doubt when Dagster run run-2 began",
        ),
        (
            {"ledger": {**UNBROKEN.ledger, "ada": RecordStatus.STARTED}},
            "1 are not done in the ledger",
        ),
        (
            {"ledger": {**UNBROKEN.ledger, "kurt": RecordStatus.DONE}},
            "the ledger has records that nobody gave",
        ),
        ({"results": ["alan", "ada", "grace"]}, "the op's results are not those"),
        ({"results": None}, "the op's results are not those"),
    ],
)
def test_what_is_wrong_is_found(changed: dict[str, Any], said: str):
    found = findings(replace(UNBROKEN, **changed))
    assert any(said in finding for finding in found), found


def test_a_round_is_played_again_by_its_seed():
    assert plan(4711) == plan(4711) == of(plan(4711).partition)


def test_rounds_strike_everything_in_every_form():
    plans = [plan(seed) for seed in range(200)]
    assert all(each.blows for each in plans)
    assert {blow.kind for each in plans for blow in each.blows} == set(Kind)
    assert {each.form for each in plans} == set(Form)
    assert {each.database for each in plans} == {"sqlite", "postgres"}
