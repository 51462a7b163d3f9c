"""The generated pages of the reference say what the code says; so the public API has a snapshot."""

import doctest
from collections.abc import Callable
from pathlib import Path

import pytest

import dagster_tidegate
from dagster_tidegate import breaker, testing
from docs.generate import python_reference
from docs.generate.__main__ import PAGES


@pytest.mark.parametrize(
    ("path", "page"), PAGES.items(), ids=lambda each: getattr(each, "name", "")
)
def test_the_page_is_up_to_date(path: Path, page: Callable[[], str]) -> None:
    # If a public name or signature has changed: is it in CHANGELOG.md, with what to use instead?
    assert path.read_text().splitlines() == page().splitlines(), "run `make reference`"


@pytest.mark.parametrize("module", [dagster_tidegate, breaker, testing])
def test_every_public_name_exists(module: object) -> None:
    names: list[str] = vars(module)["__all__"]
    assert names == sorted(names)
    for name in names:
        assert getattr(module, name) is not None
    assert module.__name__ in python_reference.MODULES  # type: ignore[attr-defined] -- a module


def test_the_types_of_every_public_name_are_exercised() -> None:
    # Pyright checks tests/typing/api.py. It imports what it uses, and uses what it imports.
    imports = (python_reference.ROOT / "tests" / "typing" / "api.py").read_text()
    for name in dagster_tidegate.__all__:
        assert f"    {name},\n" in imports, name


def test_a_changed_signature_changes_the_page() -> None:
    page = python_reference.page()
    assert "pool(*services: str, campaign: str | None = None) -> str" in page
    assert "    reset_timeout_s: float = 30" in page
    assert "- `reset_timeout_s`: " in page
    assert "Turn a function of one record into an op or an asset." in page  # it has overloads
    assert "_" not in page.partition("### `ASSETS`")[2].partition("```python\n")[2][:6]


def test_the_examples_in_docstrings_work() -> None:
    result = doctest.testmod(python_reference)
    assert (result.failed, result.attempted > 0) == (0, True)
