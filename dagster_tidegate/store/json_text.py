"""JSON columns accept a value, or text that is JSON already."""

import json
from typing import Any

# `json.dumps` makes an encoder for each call that has options.
_ENCODER = json.JSONEncoder(allow_nan=False)


class JsonText(str):
    """Text that is JSON."""

    @classmethod
    def of(cls, value: object) -> "JsonText":
        """Serialise a value.

        Raises:
            TypeError: If JSON can't hold it.
            ValueError: If it holds NaN or an infinite number.
        """
        return cls(_ENCODER.encode(value))


def json_text(value: Any) -> str:
    """Serialise the value of a JSON column for SQLAlchemy."""
    return value if type(value) is JsonText else JsonText.of(value)
