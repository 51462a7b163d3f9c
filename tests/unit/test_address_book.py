from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipelines.address_book import read_address_book, rotation


def test_each_address_is_in_the_book_once_and_a_bad_file_stops_no_other(tmp_path: Path):
    (tmp_path / "a.csv").write_text("email\nann@acme.example\nbob@acme.example\n")
    (tmp_path / "b.csv").write_text("name\nAnn\n")
    (tmp_path / "c.csv").write_text("email\nANN@acme.example\ncai@acme.example\n")
    warnings: list[str] = []
    book = read_address_book(sorted(tmp_path.iterdir()), warnings.append)
    assert book["email"].tolist() == ["ann@acme.example", "bob@acme.example", "cai@acme.example"]
    (warning,) = warnings
    assert "b.csv has no column 'email'" in warning


def test_a_book_of_no_files_is_empty():
    assert read_address_book([], print).empty


@given(things=st.lists(st.integers(), unique=True, max_size=40), size=st.integers(1, 50))
def test_a_rotation_reaches_everything_and_repeats_nothing_at_once(things: list[int], size: int):
    turns = [rotation(things, nth, size) for nth in range(len(things) // size + 1)]
    assert {thing for turn in turns for thing in turn} == set(things)
    assert all(len(set(turn)) == len(turn) for turn in turns)
