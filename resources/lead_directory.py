"""The directory of lead files, and of their rejects."""

import os
import re
from pathlib import Path

import dagster as dg
import pandas as pd
from pydantic import Field

# The file name is the partition key: characters that both allow.
FILE_NAME = re.compile(r"[\w][\w.-]{0,99}\.csv")


class LeadDirectory(dg.ConfigurableResource):
    """A directory of lead files. Write a file elsewhere and rename it into the directory."""

    path: str = Field(description="Directory of the lead files (*.csv).")
    rejects: str = Field(description="Directory for the rejected lines of each file.")

    def files(self) -> dict[str, Path]:
        """Return the lead files by partition key, sorted.

        Raises:
            FileNotFoundError: If the directory does not exist.
        """
        return {
            file.stem: file
            for file in sorted(Path(self.path).iterdir())
            if FILE_NAME.fullmatch(file.name) and file.is_file()
        }

    def file(self, name: str) -> Path:
        """Return the lead file of a partition.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        path = self.files().get(name)
        if path is None:
            raise FileNotFoundError(f"there is no lead file {name}.csv in {self.path}")
        return path

    def keep_rejects(self, name: str, rejects: pd.DataFrame) -> Path:
        """Write the rejects of a partition, replacing earlier ones; return the file."""
        directory = Path(self.rejects)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{name}.csv"
        unfinished = directory / f".{name}.{os.getpid()}.unfinished"
        rejects.to_csv(unfinished, index=False)
        unfinished.replace(path)
        return path
