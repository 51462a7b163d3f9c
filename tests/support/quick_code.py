"""A code location whose run workers start quickly: forked from a process that has imported it.

Nothing else about Dagster's code server and its run workers is changed. One that imports everything
itself takes five seconds of a processor.
"""

import multiprocessing
import runpy
import sys
from pathlib import Path
from unittest import mock

import yaml

ROOT = Path(__file__).parents[2]
PRELOADED = ["dagster._core.execution.api", "dagster_postgres", "pipelines.definitions"]


def workspace(folder: Path) -> Path:
    """Write a `workspace.yaml` with the project's code location, and return its path.

    Args:
        folder: Gets a link to the project's `dagster.yaml` too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    executable = folder / "python"
    executable.write_text(
        f'#!/bin/sh\nPYTHONPATH="{ROOT}:$PYTHONPATH" exec "{sys.executable}" -m {__name__} "$@"\n'
    )
    executable.chmod(0o755)
    (folder / "dagster.yaml").symlink_to(ROOT / "dagster.yaml")
    [location] = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    code = {
        **location["python_file"],
        "relative_path": str(ROOT / location["python_file"]["relative_path"]),
        "working_directory": str(ROOT),
        "executable_path": str(executable),
    }
    path = folder / "workspace.yaml"
    path.write_text(yaml.safe_dump({"load_from": [{"python_file": code}]}))
    return path


def main() -> None:
    """Run a module as `python -m` does, with forks where Dagster starts processes anew."""
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(PRELOADED)
    anew = multiprocessing.get_context
    with mock.patch.object(
        multiprocessing,
        "get_context",
        lambda method=None: fork if method == "spawn" else anew(method),
    ):
        module, *arguments = sys.argv[2:]  # after -m
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
