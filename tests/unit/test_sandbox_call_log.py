from datetime import UTC, datetime, timedelta

import pytest

from demo.sandbox import call_log
from demo.sandbox.call_log import CallLog
from demo.sandbox.faults import Fault, Mode

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_a_fault_heals_by_itself():
    log = CallLog()
    log.place(NOW, Fault(mode=Mode.OUTAGE, for_s=10))
    assert log.arrive(NOW + timedelta(seconds=9.9), None) is not None
    assert log.arrive(NOW + timedelta(seconds=10), None) is None
    assert log.calls_during_fault == 1


def test_a_new_fault_replaces_the_one_that_lasts():
    log = CallLog()
    log.place(NOW, Fault(mode=Mode.OUTAGE))
    later = NOW + timedelta(seconds=5)
    log.place(later, Fault(mode=Mode.SLOW))
    first, second = log.as_json(later)["faults"]
    assert first["healed_at"] == second["placed_at"]
    assert log.as_json(later)["fault"]["mode"] == "slow"


def test_a_key_takes_effect_once_and_the_repetition_is_counted():
    log = CallLog()
    for _ in range(3):
        log.arrive(NOW, "k")
        log.take_effect("k", "dach/ann@acme.example")
    assert log.keys["k"].as_json() == {"arrivals": 3, "effects": 1, "repeats": 2}
    assert log.subjects == {"dach/ann@acme.example": 1}
    assert log.as_json(NOW)["keys_repeated"] == 1


def test_the_same_subject_under_two_keys_took_effect_twice():
    log = CallLog()
    for key in ("k1", "k2"):
        log.arrive(NOW, key)
        log.take_effect(key, "dach/ann@acme.example")
    assert log.as_json(NOW)["subjects_repeated"] == 1


def test_what_is_remembered_by_key_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(call_log, "MAX_KEYS", 3)
    log = CallLog()
    for n in range(5):
        log.arrive(NOW, str(n))
    assert list(log.keys) == ["2", "3", "4"]
    assert log.forgotten == 2


def test_calls_beyond_a_limit_are_refused_and_counted_and_each_window_permits_as_many_again():
    log = CallLog()
    placed = log.place(NOW, Fault(mode=Mode.LIMIT, calls=2, per_s=60))
    refused = [
        log.arrive(NOW + timedelta(seconds=second), None) is not None for second in (0, 1, 2, 59)
    ]
    assert refused == [False, False, True, True]
    assert placed.limit_headers(NOW + timedelta(seconds=59)) == {
        "X-RateLimit-Limit": "2",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": "1",
    }
    assert log.arrive(NOW + timedelta(seconds=130), None) is None
    assert placed.retry_after_s(NOW + timedelta(seconds=130)) == 50
    assert log.as_json(NOW)["over_limit"] == 2
