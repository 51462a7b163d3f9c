"""The verdict on a round in which `tidegate serve` is killed, and its plan."""

from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.serve_plan import Evidence, Kind, Look, findings, plan

DONE, NOTHING = Look(effects=1, events=1), Look(effects=0, events=0)
BEGUN = Look(effects=0, events=1, begun=True)
ANSWERED = Evidence(
    kind=Kind.START,
    subject="start-1",
    answers=[202],
    at_restart=DONE,
    at_once=[202],
    again=[202],
    replayed=True,
    at_end=DONE,
)
CUT_OFF = replace(ANSWERED, answers=[None], at_restart=NOTHING)
TWO = replace(ANSWERED, answers=[None, 409], at_once=[202, 409], again=[202, 409])


@pytest.mark.parametrize(
    "found",
    [
        ANSWERED,
        CUT_OFF,
        replace(CUT_OFF, at_restart=DONE),
        replace(CUT_OFF, at_restart=BEGUN, at_once=[409]),
        replace(CUT_OFF, at_restart=BEGUN, gate_first=True, at_end=Look(effects=1, events=2)),
        TWO,
        replace(CUT_OFF, kind=Kind.SKIP, at_restart=DONE, at_once=[404], again=[404]),
        replace(CUT_OFF, kind=Kind.SKIP, at_once=[200], again=[404]),
        replace(ANSWERED, kind=Kind.KEEP_CLOSED, at_end=Look(effects=1, events=4)),
    ],
)
def test_a_round_that_is_well(found: Evidence):
    assert findings(found) == []


@pytest.mark.parametrize(
    ("found", "changed", "said"),
    [
        (ANSWERED, {"at_restart": NOTHING}, "had no effect"),
        (ANSWERED, {"at_end": Look(effects=2, events=1)}, "at the end it is in effect 2 times"),
        (ANSWERED, {"at_end": Look(effects=1, events=2)}, "the audit log has 2 events"),
        (ANSWERED, {"at_restart": Look(effects=1, events=0)}, "the audit log has no event"),
        (ANSWERED, {"replayed": False}, "it got another answer"),
        (ANSWERED, {"answers": [500]}, "it was answered with 500"),
        (ANSWERED, {"answers": [409]}, "it was answered with 409"),
        (CUT_OFF, {"at_restart": replace(BEGUN, half="1 of 2 records")}, "a part of it: 1 of 2"),
        (CUT_OFF, {"kind": Kind.HOLD, "at_restart": BEGUN}, "an event of it, and it is not"),
        (CUT_OFF, {"kind": Kind.HOLD, "at_once": [409]}, "repeated at once, it was answered"),
        (CUT_OFF, {"at_once": [503]}, "repeated at once, it was answered with 503"),
        (CUT_OFF, {"again": [409]}, "repeated later, it was answered with 409"),
        (CUT_OFF, {"at_end": NOTHING}, "repeated, it had no effect"),
        (TWO, {"again": [409, 409]}, "repeated later, it was answered with 409"),
    ],
)
def test_what_is_wrong_is_said(found: Evidence, changed: dict[str, Any], said: str):
    assert any(said in finding for finding in findings(replace(found, **changed)))


def test_a_plan_follows_from_its_seed():
    assert plan(7) == plan(7)
    assert {plan(seed).database for seed in range(2)} == {"sqlite", "postgres"}
    kinds = {request.kind for seed in range(30) for request in plan(seed).requests}
    assert kinds == set(Kind)
