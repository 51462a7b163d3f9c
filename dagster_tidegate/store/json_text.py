"""JSON columns take a value, or JSON that has been written down already."""

import json
from typing import Any


class JsonText(str):
    """A value as JSON."""

    @classmethod
    def of(cls, value: object) -> "JsonText":
        """Write a value as JSON.

        Raises:
            TypeError: If JSON can't hold it.
            ValueError: If it is not a number, or infinite.
        """
        return cls(json.dumps(value, allow_nan=False))


def json_text(value: Any) -> str:
    """What SQLAlchemy asks for a value of a JSON column."""
    return value if type(value) is JsonText else JsonText.of(value)
