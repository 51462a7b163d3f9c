"""Runs in processes of their own, forked from one that has imported everything.

Two parts: the process that forks (`python -m tests.support.forked_runs SOCKET MODULE...`), and the
run launcher that asks it to. A fork does what `dagster api execute_run` does, in a tenth of the
time.
"""

import gc
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import dagster as dg
import psutil
from dagster._cli.api import _execute_run_command_body
from dagster._core.launcher.base import (
    CheckRunHealthResult,
    LaunchRunContext,
    RunLauncher,
    WorkerStatus,
)
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from dagster._utils.interrupts import capture_interrupts

from tests.support import first_run

ANSWER_TIMEOUT_S = 30.0


class ForkLauncher(RunLauncher, ConfigurableClass):
    """Asks for a fork, and looks after it as a cluster looks after a container.

    Args:
        path: Of the socket where it listens.
    """

    def __init__(self, path: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._path, self._inst_data = path, inst_data
        super().__init__()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> Any:
        return {"path": str}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        return cls(config_value["path"], inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(ANSWER_TIMEOUT_S)
            asking.connect(self._path)
            home = self._instance.root_directory
            asking.sendall(f"{context.dagster_run.run_id} {home}\n".encode())
            asking.recv(1)

    def terminate(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        for process in self._processes(run_id):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        processes = self._processes(run.run_id)
        if not processes:
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "its process is gone")
        with suppress(psutil.NoSuchProcess):
            if all(process.status() == psutil.STATUS_STOPPED for process in processes):
                return CheckRunHealthResult(WorkerStatus.FAILED, "its process does not answer")
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def _processes(self, run_id: str) -> list[psutil.Process]:
        """Those of a run that are alive: two daemons may launch it twice, and one may end early."""
        processes = []
        for pid in _pid_file(self._path, run_id).read_text().split():
            with suppress(psutil.NoSuchProcess):
                processes.append(psutil.Process(int(pid)))
        return processes


def _pid_file(path: str, run_id: str) -> Path:
    return Path(f"{path}.{run_id}")


def launcher(path: Path) -> dict[str, Any]:
    """Return the `run_launcher` of a dagster.yaml."""
    return {"module": __name__, "class": "ForkLauncher", "config": {"path": str(path)}}


def command(path: Path, *modules: str) -> list[str]:
    """Return the command of the process that forks; `modules` are imported before."""
    return [sys.executable, "-m", __name__, str(path), *modules]


def serve(path: str, *modules: str) -> None:
    """Fork for each run that is asked for, until SIGTERM."""
    for name in modules:
        module = import_module(name)
        # A run looks for the module of a file by this name, and else executes it again.
        sys.modules.setdefault(name.rpartition(".")[2], module)
    first_run.execute()
    gc.freeze()  # a fork that looks for garbage would copy all of this
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes the dead away
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{path}.new")
        listening.listen(64)
        Path(f"{path}.new").rename(path)  # who sees it can connect
        while True:
            asked, _ = listening.accept()
            with asked:
                asking = asked.makefile().readline()
                if not asking.endswith("\n"):  # who asked was killed
                    continue
                run_id, home = asking.rstrip("\n").split(" ", 1)
                pid = os.fork()
                if pid:
                    # Here, and not by who asked: that one may be killed before it has the answer.
                    with _pid_file(path, run_id).open("a") as pids:
                        pids.write(f"{pid}\n")
                    with suppress(OSError):  # it may be killed now
                        asked.sendall(b".")
                    continue
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.environ["DAGSTER_HOME"] = home
            work(run_id)


def work(run_id: str) -> None:
    """Execute a run, and end this process as Python ends one."""
    with capture_interrupts(), dg.DagsterInstance.get() as instance:
        _execute_run_command_body(run_id, instance, lambda _: None, False)
    sys.exit()


if __name__ == "__main__":
    serve(*sys.argv[1:])
