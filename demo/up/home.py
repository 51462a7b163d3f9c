"""The DAGSTER_HOME of a local deployment: its path, dagster.yaml and lock."""

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
    """Create the DAGSTER_HOME and return its path.

    It is the environment variable DAGSTER_HOME, else `.tidegate/home` in the project, and gets a
    link to the project's `dagster.yaml` unless it has its own.

    Raises:
        HomeError: If DAGSTER_HOME is not an absolute path, or there is no `dagster.yaml`.
    """
    named = os.environ.get("DAGSTER_HOME")
    home = Path(named) if named else project / ".tidegate" / "home"
    if not home.is_absolute():
        raise HomeError(f"DAGSTER_HOME is {named!r}; it must be an absolute path")
    home.mkdir(parents=True, exist_ok=True)
    link_instance_config(project, home)
    return home


def link_instance_config(project: Path, home: Path) -> None:
    """Link the project's `dagster.yaml` into `home`, unless it has its own file.

    Raises:
        HomeError: If the project has no `dagster.yaml` and `home` has none of its own.
    """
    source, target = project / "dagster.yaml", home / "dagster.yaml"
    if target.is_file() and not target.is_symlink():
        return
    if not source.is_file():
        raise HomeError(f"there is no dagster.yaml in {project}; run this in the project's folder")
    target.unlink(missing_ok=True)  # the project may have moved
    target.symlink_to(source.resolve())


@contextmanager
def lock(home: Path, tell: Callable[[str], None]) -> Iterator[int]:
    """Lock a home, so that only one deployment uses it.

    This is flock by hand, because the guard must inherit the descriptor: the lock is then held
    until the last child has ended, which `filelock` can't do. The file contains the holder's pid.

    Args:
        home: The DAGSTER_HOME.
        tell: Receives a message if the lock of a dead process is taken over.

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
                    + "), or use another DAGSTER_HOME and other ports"
                )
            time.sleep(0.1)  # a guard is still ending its children
            holder = _holder(file.fileno()) or holder
        if holder is not None:
            tell(f"taking over {path} from pid {holder}, which has ended")
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
