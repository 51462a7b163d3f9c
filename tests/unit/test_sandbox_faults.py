import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from demo.sandbox.faults import Fault, Mode, explain


@given(share=st.floats(0.01, 1), calls=st.integers(1, 500))
def test_a_share_is_spread_exactly(share: float, calls: int):
    fault = Fault(mode=Mode.SHARE, share=share)
    touched = sum(fault.affects(nth) for nth in range(1, calls + 1))
    assert abs(touched - share * calls) < 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mode": "outage", "share": 0.5}, "mode outage does not use share"),
        ({"mode": "slow", "status": 500}, "it uses for_s, keys, latency_s"),
        ({"mode": "share"}, "mode share requires a share"),
        ({"mode": "limit", "calls": 5}, "mode limit requires calls and per_s"),
        ({"mode": "share", "share": 1.5}, "share: Input should be less than or equal to 1"),
        ({"mode": "outage", "status": 200}, "status: "),
        ({"mode": "outage", "for_s": float("inf")}, "for_s: "),
        ({"mode": "flood"}, "mode: "),
        ({"mode": "outage", "sinse": 1}, "sinse: Extra inputs"),
        ({}, "mode: Field required"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_and_explained(fields: dict, says: str):
    with pytest.raises(ValidationError) as caught:
        Fault.model_validate(fields)
    assert says in explain(caught.value)
