from datetime import UTC, datetime, timedelta

import pytest

from demo.sandbox import books
from demo.sandbox.books import Book
from demo.sandbox.faults import Fault, Mode

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_a_fault_heals_by_itself():
    book = Book()
    book.place(NOW, Fault(mode=Mode.OUTAGE, for_s=10))
    assert book.arrive(NOW + timedelta(seconds=9.9), None) is not None
    assert book.arrive(NOW + timedelta(seconds=10), None) is None
    assert book.calls_during_fault == 1


def test_a_new_fault_replaces_the_one_that_lasts():
    book = Book()
    book.place(NOW, Fault(mode=Mode.OUTAGE))
    later = NOW + timedelta(seconds=5)
    book.place(later, Fault(mode=Mode.SLOW))
    first, second = book.as_json(later)["faults"]
    assert first["healed_at"] == second["placed_at"]
    assert book.as_json(later)["fault"]["mode"] == "slow"


def test_a_key_takes_effect_once_and_the_repetition_is_counted():
    book = Book()
    for _ in range(3):
        book.arrive(NOW, "k")
        book.take_effect("k", "dach/ann@acme.example")
    assert book.keys["k"].as_json() == {"arrivals": 3, "effects": 1, "repeats": 2}
    assert book.subjects == {"dach/ann@acme.example": 1}
    assert book.as_json(NOW)["keys_repeated"] == 1


def test_the_same_subject_under_two_keys_took_effect_twice():
    book = Book()
    for key in ("k1", "k2"):
        book.arrive(NOW, key)
        book.take_effect(key, "dach/ann@acme.example")
    assert book.as_json(NOW)["subjects_repeated"] == 1


def test_what_is_remembered_by_key_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(books, "MAX_KEYS", 3)
    book = Book()
    for n in range(5):
        book.arrive(NOW, str(n))
    assert list(book.keys) == ["2", "3", "4"]
    assert book.forgotten == 2
