"""Everybody in the lead files, for the campaigns that look after them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd

from pipelines.lead_files import FIELDS, LeadFileError, read_lead_file

T = TypeVar("T")


def read_address_book(files: Iterable[Path], warn: Callable[[str], None]) -> pd.DataFrame:
    """Return the leads of all files, each address once.

    Args:
        files: Lead files.
        warn: Told of a file that can't be read; the others are.

    Returns:
        Columns `FIELDS`.
    """
    frames = [pd.DataFrame(columns=list(FIELDS), dtype=str)]
    for file in files:
        try:
            frames.append(read_lead_file(file).leads.loc[:, list(FIELDS)])
        except LeadFileError as error:
            warn(f"left out: {error}")
    book = pd.concat(frames, ignore_index=True)
    return book.loc[~book["email"].str.casefold().duplicated()]


def rotation(things: Sequence[T], nth: int, size: int) -> list[T]:
    """Return the `nth` handful of at most `size` things; going on from n to n + 1 reaches all.

    Example:
        >>> [rotation("abcde", n, 2) for n in range(3)]
        [['a', 'b'], ['c', 'd'], ['e', 'a']]
    """
    count = len(things)
    return [things[(nth * size + n) % count] for n in range(min(size, count))]
