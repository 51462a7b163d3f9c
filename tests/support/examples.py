"""How many examples a property gets: a share of the Hypothesis profile's."""

from hypothesis import settings


def share_of_examples(divisor: int) -> int:
    """Return the examples of the current profile, divided."""
    default = settings.default
    assert default is not None  # tests/conftest.py loads a profile
    return default.max_examples // divisor
