"""All leads of all files, for campaigns that process them repeatedly."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd

from pipelines.lead_files import FIELDS, LeadFileError, read_lead_file

T = TypeVar("T")


def read_address_book(files: Iterable[Path], warn: Callable[[str], None]) -> pd.DataFrame:
    """Return the leads of all files as columns `FIELDS`, each address once.

    A file that can't be read is skipped with a warning.
    """
    frames = [pd.DataFrame(columns=list(FIELDS), dtype=str)]
    for file in files:
        try:
            frames.append(read_lead_file(file).leads.loc[:, list(FIELDS)])
        except (LeadFileError, OSError) as error:
            warn(f"skipped: {error}")
    book = pd.concat(frames, ignore_index=True)
    return book.loc[~book["email"].str.casefold().duplicated()]


def rotation(items: Sequence[T], nth: int, size: int) -> list[T]:
    """Return the `nth` batch of at most `size` items; consecutive batches cycle through all.

    Example:
        >>> [rotation("abcde", n, 2) for n in range(3)]
        [['a', 'b'], ['c', 'd'], ['e', 'a']]
    """
    count = len(items)
    return [items[(nth * size + n) % count] for n in range(min(size, count))]
