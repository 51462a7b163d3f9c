"""The directory of lead files, and of their rejects."""

import re
import unicodedata
import uuid
from collections.abc import Iterable
from pathlib import Path

import dagster as dg
import pandas as pd
from pydantic import Field

# What a spreadsheet takes for the start of a formula, wherever it may begin a cell: Excel separates
# by semicolons in much of Europe. The last four are full-width.
FORMULA = re.compile(r"((?:^|[,;|\t\r\n\"])\s*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")
HIDDEN = (".", "~$")  # files that are still being written, and lock files of Excel


class LeadDirectory(dg.ConfigurableResource):
    """A directory of lead files. Write a file elsewhere and rename it into the directory."""

    path: str = Field(description="Directory of the lead files (*.csv).")
    rejects: str = Field(description="Directory for the rejected lines of each file.")

    def files(self) -> dict[str, Path]:
        """Return the lead files by partition key, sorted.

        Raises:
            FileNotFoundError: If the directory does not exist.
        """
        return self._sorted()[0]

    def left_out(self) -> dict[str, str]:
        """Return why files in the directory are not lead files, by file name.

        Hidden files and directories are not mentioned.

        Raises:
            FileNotFoundError: If the directory does not exist.
        """
        return self._sorted()[1]

    def file(self, name: str) -> Path:
        """Return the lead file of a partition.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        path = self.files().get(name)
        if path is None:
            raise FileNotFoundError(f"there is no lead file {name}.csv in {self.path}")
        return path

    def _sorted(self) -> tuple[dict[str, Path], dict[str, str]]:
        return sort_files(file for file in sorted(Path(self.path).iterdir()) if file.is_file())

    def keep_rejects(self, name: str, rejects: pd.DataFrame) -> Path:
        """Write the rejects of a partition, replacing earlier ones; return the file."""
        directory = Path(self.rejects)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{name}.csv"
        unfinished = directory / f".{uuid.uuid4().hex}.unfinished"
        columns = {
            column: values.map(lambda value: safe_cell(value) if isinstance(value, str) else value)
            for column, values in rejects.items()
        }
        # With a byte order mark, or Excel takes it for Windows-1252.
        pd.DataFrame(columns).to_csv(unfinished, index=False, encoding="utf-8-sig")
        unfinished.replace(path)
        return path


def sort_files(files: Iterable[Path]) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the lead files by partition key, and why others are none, by file name.

    The partition key is the file name without its ending.
    """
    lead_files: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    for file in files:
        if file.name.startswith(HIDDEN):
            continue
        flaw = _flaw_of_name(file)
        if not flaw and file.stem in lead_files:
            flaw = f"{lead_files[file.stem].name} has the same name"
        if flaw:
            left_out[printable(file.name)] = flaw
        else:
            lead_files[file.stem] = file
    return lead_files, left_out


def printable(name: str) -> str:
    """Return a file name that can be shown, whatever its bytes."""
    return name.encode("utf-8", "backslashreplace").decode()


def safe_cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula, with a quote before each.

    Example:
        >>> safe_cell('=HYPERLINK("http://evil.example")')
        '\'=HYPERLINK("http://evil.example")'
    """
    return FORMULA.sub(r"\1'", text)


def _flaw_of_name(file: Path) -> str:
    """Return why a file name can't be a partition key; empty if it can."""
    if file.suffix.lower() != ".csv":
        return "its name does not end in .csv"
    categories = {unicodedata.category(character) for character in file.stem}
    if "Cs" in categories:
        return "its name is not UTF-8"
    if "Cc" in categories:
        return "its name has a control character"
    if "..." in file.stem:  # Dagster's notation for a range of partitions
        return "its name has '...'"
    return ""
