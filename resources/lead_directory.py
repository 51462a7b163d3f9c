"""Where lead files come from, and where their rejects go."""

import os
import re
from pathlib import Path

import dagster as dg
import pandas as pd
from pydantic import Field

# A file's name is its partition: Dagster's keys and the names of files have these in common.
FILE_NAME = re.compile(r"[\w][\w.-]{0,99}\.csv")


class LeadDirectory(dg.ConfigurableResource):
    """A directory of lead files. Write elsewhere and rename into it: a file is read when seen."""

    path: str = Field(description="Directory of the lead files (*.csv).")
    rejects: str = Field(description="Directory where the rejected lines of each file are kept.")

    def files(self) -> dict[str, Path]:
        """Return the lead files by the name of their partition, in the order of their names.

        Raises:
            FileNotFoundError: If there is no such directory.
        """
        return {
            file.stem: file
            for file in sorted(Path(self.path).iterdir())
            if FILE_NAME.fullmatch(file.name) and file.is_file()
        }

    def file(self, name: str) -> Path:
        """Return the lead file of a partition.

        Raises:
            FileNotFoundError: If it is gone.
        """
        found = self.files().get(name)
        if found is None:
            raise FileNotFoundError(f"there is no lead file {name}.csv in {self.path}")
        return found

    def keep_rejects(self, name: str, rejects: pd.DataFrame) -> Path:
        """Write the rejected lines of a file, in place of those of an earlier reading.

        Args:
            name: Name of the partition.
            rejects: What is wrong with each line.

        Returns:
            The file that they are in.
        """
        directory = Path(self.rejects)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{name}.csv"
        unfinished = directory / f".{name}.{os.getpid()}.unfinished"
        rejects.to_csv(unfinished, index=False)
        unfinished.replace(path)
        return path
