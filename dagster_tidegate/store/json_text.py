"""JSON columns accept a value, or text that is JSON already."""

import json
from typing import Any


class JsonText(str):
    """Text that is JSON."""

    @classmethod
    def of(cls, value: object) -> "JsonText":
        """Serialise a value.

        Raises:
            TypeError: If JSON can't hold it.
            ValueError: If it holds NaN or an infinite number.
        """
        return cls(json.dumps(value, allow_nan=False))


def json_text(value: Any) -> str:
    """Serialise the value of a JSON column for SQLAlchemy."""
    return value if type(value) is JsonText else JsonText.of(value)
