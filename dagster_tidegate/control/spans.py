"""Spans of time that overlap, joined. Pure."""

from collections.abc import Iterable, Sequence
from datetime import datetime


def joined(
    spans: Iterable[tuple[datetime, datetime, str]],
) -> Sequence[tuple[datetime, datetime, Sequence[str]]]:
    """Join spans that overlap or touch, with the reasons of all of them, each once.

    Example:
        >>> at = datetime(2026, 3, 1, 9), datetime(2026, 3, 1, 10), datetime(2026, 3, 1, 11)
        >>> [(_, end, reasons)] = joined([(at[1], at[2], "b"), (at[0], at[1], "a")])
        >>> end == at[2], reasons
        (True, ['a', 'b'])
    """
    merged: list[tuple[datetime, datetime, list[str]]] = []
    for begin, end, reason in sorted(spans):
        if merged and begin <= merged[-1][1]:
            first, latest, reasons = merged[-1]
            merged[-1] = first, max(latest, end), list(dict.fromkeys([*reasons, reason]))
        else:
            merged.append((begin, end, [reason]))
    return merged
