"""Python imports this module when a process starts that has its folder in the PYTHONPATH."""

import patches  # pyright: ignore[reportMissingImports] -- in this folder

__all__ = ["patches"]
