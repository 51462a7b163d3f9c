"""Child processes that end with this process, including their own children."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from demo.up.guard import GRACE_S

PR_SET_PDEATHSIG = 1
KEPT_LOG_BYTES = 64 * 1024


class ChildDiedError(Exception):
    """A child exited unexpectedly; the message has its name and last log lines."""


class NotReadyError(Exception):
    """A child was not ready in time; the message has its name and last log lines."""


@dataclass(frozen=True)
class Child:
    """A started process and its log file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def last_lines(self, count: int = 15) -> str:
        """Return the last lines of its log, indented for a message."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - KEPT_LOG_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-count:]
        return "\n".join(f"  {line}" for line in lines) or "  (its log is empty)"


class Children:
    """Starts processes in one process group and ends the whole group.

    A guard process (see `guard`) leads the group and ends it if this process dies first. Each
    child logs to `<name>.log`; the previous log is kept as `<name>.log.1`. Run workers and code
    servers, which the children start, belong to the group too.

    Args:
        logs: Directory for the log files; created if missing.
        keep_open: A file descriptor that stays open until the group has ended, such as a lock.

    Example:
        ```python
        with Children(Path("logs")) as children:
            children.start("server", [sys.executable, "-m", "http.server"])
            children.wait_until(ready, timeout_s=10, waiting_for="server")
        ```
    """

    def __init__(self, logs: Path, *, keep_open: int | None = None) -> None:
        self.logs = logs
        self._started: dict[str, Child] = {}
        logs.mkdir(parents=True, exist_ok=True)
        # The write end closes with this process: Python's pipes are not inherited by children.
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "demo.up.guard"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,
            pass_fds=() if keep_open is None else (keep_open,),
        )
        assert self._guard.stdout is not None
        with self._guard.stdout as ready:
            ready.read()

    def __enter__(self) -> "Children":
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Child:
        """Start a process.

        Args:
            name: Used in messages and for the log file. Replaces an ended child of that name and
                appends to its log.
            command: Program and arguments.
            env: Environment; None inherits.
            cwd: Working directory; None inherits.
        """
        log = self.logs / f"{name}.log"
        if name not in self._started and log.exists():
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                process_group=self._guard.pid,
                preexec_fn=_end_with_parent(),
            )
        child = Child(name, process, log)
        self._started[name] = child
        return child

    def pid(self, name: str) -> int:
        """Return the process id of a child."""
        return self._started[name].process.pid

    def kill(self, name: str) -> None:
        """Kill a child with SIGKILL; `check` raises until it is started again."""
        process = self._started[name].process
        process.kill()
        process.wait()

    def check(self) -> None:
        """Check that all children are alive.

        Raises:
            ChildDiedError: If one has ended.
        """
        for child in self._started.values():
            if (code := child.process.poll()) is not None:
                how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
                raise ChildDiedError(
                    f"{child.name} ended {how}. The end of {child.log}:\n{child.last_lines()}"
                )
        if self._guard.poll() is not None:
            raise ChildDiedError("the guard of the process group has ended; was it killed?")

    def wait_until(
        self,
        ready: Callable[[], bool],
        *,
        timeout_s: float,
        waiting_for: str,
    ) -> None:
        """Poll until `ready()`, checking the children meanwhile.

        Args:
            ready: The condition.
            timeout_s: Timeout in seconds.
            waiting_for: The child that the condition is about, for the message.

        Raises:
            ChildDiedError: If a child ended.
            NotReadyError: On timeout.
        """
        until = time.monotonic() + timeout_s
        while not ready():
            self.check()
            if time.monotonic() > until:
                child = self._started[waiting_for]
                raise NotReadyError(
                    f"{waiting_for} was not ready after {timeout_s:.0f} s. "
                    f"The end of {child.log}:\n{child.last_lines()}"
                )
            time.sleep(0.1)

    def stop(self, grace_s: float = GRACE_S) -> None:
        """End the group: SIGTERM, and SIGKILL after `grace_s` seconds.

        Run workers get the signal too and stop after their current record.
        """
        if self._guard.returncode is not None:
            return
        if self._guard.poll() is None:
            os.killpg(self._guard.pid, signal.SIGTERM)  # the guard ignores it
        else:
            for child in self._started.values():
                child.process.terminate()
        until = time.monotonic() + grace_s
        for child in self._started.values():
            try:
                child.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        if self._guard.poll() is None:
            os.killpg(self._guard.pid, signal.SIGKILL)
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()


def _end_with_parent() -> Callable[[], None] | None:
    """Return a preexec function with which the kernel ends the child with its parent (Linux).

    A second safety net, in case the guard is killed at the same moment.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded before the fork, where little is safe
    parent = os.getpid()

    def set_signal() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent died before prctl
            os._exit(1)

    return set_signal
