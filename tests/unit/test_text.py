"""What people give is data: kept whole or refused, shown whole, obeyed never."""

import doctest
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_tidegate import text
from dagster_tidegate.text import checked, shown

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(st.text())
def test_nothing_that_can_t_be_seen_reaches_a_terminal(text):
    assert not HIDDEN & {unicodedata.category(character) for character in shown(text)}


@given(st.text(alphabet=st.characters(exclude_categories=["C", "Z"])))
def test_what_can_be_seen_is_shown_as_it_is(text):
    assert shown(text) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" \t", "is empty"),
        ("a" * 11, "11 characters; the limit is 10"),
        ("a\nb", r"\\n at character 2"),
        ("a\x00", r"\\x00 at character 2"),
        ("\u202eevil", r"\\u202e at character 1"),
        ("a\x1b[2J", r"\\x1b at character 2"),
        ("a\u2028b", r"\\u2028 at character 2"),
    ],
)
def test_text_that_would_do_harm_is_refused_and_the_refusal_says_where(text, says):
    with pytest.raises(ValueError, match=says):
        checked(text, "reason", 10)


def test_ordinary_text_of_any_language_is_kept():
    assert checked("Störung 東京 🚢", "reason", 100) == "Störung 東京 🚢"


def test_the_examples_work():
    assert doctest.testmod(text).failed == 0
