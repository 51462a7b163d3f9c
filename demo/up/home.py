"""The DAGSTER_HOME of a local deployment: its place, its dagster.yaml and its lock."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.up.guard import GRACE_S

LOCK_NAME = "tidegate-up.lock"


class HomeError(Exception):
    """The directory can't be used as DAGSTER_HOME; the message says why and what to do."""


def prepare(project: Path) -> Path:
    """Return the DAGSTER_HOME to use, made ready.

    Args:
        project: Directory with the project's `dagster.yaml`.

    Returns:
        The directory that the variable DAGSTER_HOME names, else `.tidegate/home` in the project.
        It has a `dagster.yaml`: its own, or a link to the project's.

    Raises:
        HomeError: If DAGSTER_HOME is not an absolute path, or no `dagster.yaml` is found.
    """
    named = os.environ.get("DAGSTER_HOME")
    home = Path(named) if named else project / ".tidegate" / "home"
    if not home.is_absolute():
        raise HomeError(f"DAGSTER_HOME is {named!r}; it must be an absolute path")
    home.mkdir(parents=True, exist_ok=True)
    link_instance_config(project, home)
    return home


def link_instance_config(project: Path, home: Path) -> None:
    """Give `home` a link to the project's `dagster.yaml`, unless it has a file of its own.

    Raises:
        HomeError: If the project has no `dagster.yaml` and `home` has none of its own.
    """
    ours, its = project / "dagster.yaml", home / "dagster.yaml"
    if its.is_file() and not its.is_symlink():
        return
    if not ours.is_file():
        raise HomeError(f"there is no dagster.yaml in {project}; run this in the project's folder")
    its.unlink(missing_ok=True)  # a link to where the project was before
    its.symlink_to(ours.resolve())


@contextmanager
def lock(home: Path, tell: Callable[[str], None]) -> Iterator[int]:
    """Hold the lock of a home, so that it has one set of processes.

    The lock is the kernel's (flock), so it ends with its holders: this process and the guard of
    its children. The file's text says who holds it.

    Args:
        home: The DAGSTER_HOME.
        tell: Told, if a process that is gone had left the lock.

    Yields:
        The file descriptor of the lock.

    Raises:
        HomeError: If another process holds it.
    """
    path = home / LOCK_NAME
    with path.open("a+") as file:
        holder = _holder(file.fileno())
        until = time.monotonic() + GRACE_S + 2
        while not _locked(file.fileno()):
            if _alive(holder) or time.monotonic() > until:
                raise HomeError(
                    f"{home} is in use by another 'python -m demo up', pid {holder or 'unknown'}. "
                    "Stop that one first (Ctrl-C in its terminal"
                    + (f", or 'kill {holder}'" if holder else "")
                    + "), or set DAGSTER_HOME to another directory and choose other ports"
                )
            time.sleep(0.1)  # its guard is still ending its children
            holder = _holder(file.fileno()) or holder
        if holder is not None:
            tell(f"taking over {path} from pid {holder}, which is gone")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield file.fileno()
        finally:
            file.truncate(0)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isdigit() else None


def _alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
