"""Python processes that start in a tenth of the time: forked from one that has imported everything.

A process that imports Dagster takes three to five seconds of a processor, and hundreds start in a
run of the tests. In a process that has called `install`, `subprocess.Popen` and the starts of
`multiprocessing` ask a server instead, which forks. The fork gets the command, environment,
directory, files and process group that it would have had, and makes its own starts in this way too.
What differs: the modules of `IMPORTED` are there, its parent is the server, and a `preexec_fn` is
left out.

Two parts: who asks (`install`), and the server (`python -m tests.support.quick_children.processes
SOCKET`). Commands of other interpreters, and those without this folder in their PYTHONPATH, which
test the product as it is, start as ever.
"""

import atexit
import fcntl
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing import forkserver, popen_fork, util
from pathlib import Path
from shutil import which
from tempfile import gettempdir
from types import ModuleType
from typing import Any, cast
from uuid import uuid4

QUICK = str(Path(__file__).parent)
ROOT = Path(__file__).parents[3]
START_S = 240.0
ANSWER_BYTES = 8
HIGH = 512  # no process of a test has so many files

FORKED = {
    "dagster",
    "dagster_webserver",
    "dagster._daemon",
    "dagster_tidegate.cli",
    "demo",
    "tests.benchmarks.outage.daemon",
    "tests.chaos.away_worker",
    "tests.deployment.quick_daemon",
    "tests.support.forked_runs",
}
SCRIPTS = {"dagster", "dagster-daemon", "dagster-webserver", "dg", "tidegate"}
SPAWNS = ("from multiprocessing.spawn", "from multiprocessing.forkserver")
"""How the code of a process of `multiprocessing` begins."""
IMPORTED = (
    "dagster",
    "dagster._cli",
    "dagster._core.execution.api",
    "dagster._daemon.cli",
    "dagster._grpc.impl",
    "dagster_postgres",
    "dagster_webserver.cli",
    "dagster_graphql.schema",
    "dagster_tidegate.cli",
    "dagster_tidegate.plugin.sensors",
    "demo.up.deployment",
    "demo.sandbox.server",
    "pandas",
    "pipelines.account_digest",
    "pipelines.list_hygiene",
    "pipelines.outreach",
    "psycopg",
    "resources.deployment",
    "sensors.new_lead_files",
    "sqlalchemy.dialects.postgresql",
)

_socket: Path | None = None
_session = os.getsid(0)
_waiting: dict[int, "Forked"] = {}
_real_popen = subprocess.Popen
_real_spawn = util.spawnv_passfds


class Forked:
    """A fork, as who asked for it sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pid = int(self._answer())
        self.returncode: int | None = None

    def wait(self, timeout_s: float | None) -> int | None:
        """Return its return code as `Popen` has it, or None if it has not ended within the time."""
        if self.returncode is None and self._connection.fileno() < 0:
            # Garbage with its Popen, which `subprocess` keeps, and polls at each later start.
            self.returncode = -signal.SIGKILL
        if self.returncode is None:
            self._connection.settimeout(timeout_s)
            with suppress(BlockingIOError, TimeoutError):
                # The server says nothing more if it has ended.
                self.returncode = int(self._answer() or -signal.SIGKILL)
                self._connection.close()
        return self.returncode

    def _answer(self) -> bytes:
        return self._connection.recv(ANSWER_BYTES, socket.MSG_WAITALL)


def ask(
    arguments: Sequence[str],
    files: Mapping[int, int],
    *,
    env: Mapping[str, str],
    cwd: str,
    group: int = -1,
    session: bool = False,
) -> Forked:
    """Ask for a fork.

    Args:
        arguments: As in `sys.orig_argv`, without the interpreter; a script's path comes first.
        files: Its open files, each by its number in the fork.
        env: Its environment.
        cwd: Its directory.
        group: Its process group, as `Popen` takes it; by default that of who asks.
        session: Whether it gets a session of its own.
    """
    if _socket is None:
        raise RuntimeError("install() comes first")
    request = {
        "arguments": list(arguments),
        "files": list(files),
        "env": dict(env),
        "cwd": cwd,
        "group": os.getpgrp() if group < 0 else group,
        "session": session,
    }
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(START_S)
    connection.connect(str(_socket))
    body = json.dumps(request).encode()
    head = len(body).to_bytes(4, "big")
    socket.send_fds(connection, [head], list(files.values()))
    connection.sendall(body)
    return Forked(connection)


def _forked_as(command: Sequence[str], env: Mapping[str, str]) -> list[str] | None:
    """Return the arguments of the interpreter for one of the commands named here, or else None."""
    if os.getsid(0) != _session or QUICK not in env.get("PYTHONPATH", "").split(os.pathsep):
        return None  # a process group is part of a session
    program = which(command[0], path=env.get("PATH")) if command else None
    if program is None or os.path.dirname(program) != os.path.dirname(sys.executable):
        return None  # of another virtual environment
    if os.path.basename(program) in SCRIPTS:
        return [program, *command[1:]]
    match [os.path.realpath(program), *(each for each in command[1:] if each != "-B")]:
        case [interpreter, "-m" | "-c" as option, what, *arguments]:
            is_known = what in FORKED if option == "-m" else what.startswith(SPAWNS)
            is_ours = interpreter == os.path.realpath(sys.executable)
            return [option, what, *arguments] if is_known and is_ours else None
    return None


class Popen(_real_popen):  # pyright: ignore[reportMissingTypeArgument] -- generic for annotations only
    """`subprocess.Popen`, where a command of `FORKED` is a fork."""

    _forked: Forked | None = None

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *others: Any) -> None:
        close_fds, pass_fds, cwd, env, _startup, _flags, shell = others[:7]
        p2cread, _, _, c2pwrite, _, errwrite = others[7:13]
        _restore, gid, gids, uid, _umask, session, group = others[13:20]
        env = os.environ if env is None else env
        command = [os.fspath(each) for each in args] if isinstance(args, (list, tuple)) else []
        plain = not (shell or executable or gid is not None or gids is not None or uid is not None)
        arguments = _forked_as(command, env) if plain and close_fds else None
        if arguments is None:
            super()._execute_child(args, executable, preexec_fn, *others)  # pyright: ignore
            return
        standard = {0: p2cread, 1: c2pwrite, 2: errwrite}
        files = {n: n if file == -1 else file for n, file in standard.items()}
        self._forked = ask(
            arguments,
            files | {file: file for file in pass_fds},
            env=env,
            cwd=os.fspath(cwd or Path.cwd()),
            group=group,
            session=session,
        )
        self.pid = self._forked.pid
        self._child_created = True
        self._close_pipe_fds(*others[7:13])  # pyright: ignore[reportAttributeAccessIssue]

    def _internal_poll(self, *args: Any, **kwargs: Any) -> int | None:
        if self._forked is None:
            return super()._internal_poll(*args, **kwargs)  # pyright: ignore
        if self.returncode is None:
            self.returncode = self._forked.wait(0)
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._forked is None:
            return super()._try_wait(wait_flags)  # pyright: ignore
        code = self._forked.wait(0 if wait_flags & os.WNOHANG else None)
        return (0, 0) if code is None else (self.pid, code)

    def _handle_exitstatus(self, sts: int, *args: Any, **kwargs: Any) -> None:
        if self._forked is None:
            super()._handle_exitstatus(sts, *args, **kwargs)  # pyright: ignore
        else:
            self.returncode = sts


def _spawn(path: Any, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """Do what `multiprocessing.util.spawnv_passfds` does."""
    command = [os.fsdecode(each) for each in args]
    if (arguments := _forked_as(command, os.environ)) is None:
        return _real_spawn(path, args, passfds)
    files = {0: 0, 1: 1, 2: 2, **{file: file for file in passfds}}
    forked = ask(arguments, files, env=os.environ, cwd=str(Path.cwd()))
    _waiting[forked.pid] = forked
    return forked.pid


def _polling(poll: Callable[..., int | None]) -> Callable[..., int | None]:
    def ask_who_forked(self: Any, flag: int = os.WNOHANG) -> int | None:
        if (forked := _waiting.get(self.pid)) is None:
            return poll(self, flag)
        if self.returncode is None:
            self.returncode = forked.wait(0 if flag & os.WNOHANG else None)
            if self.returncode is not None:
                del _waiting[self.pid]
        return self.returncode

    return ask_who_forked


def _ensuring(ensure_running: Callable[[Any], None]) -> Any:
    def ask_who_forked(self: Any) -> None:
        if (forked := _waiting.get(self._forkserver_pid)) is not None:
            if forked.wait(0) is None:
                return
            os.close(self._forkserver_alive_fd)
            self._forkserver_address = self._forkserver_alive_fd = self._forkserver_pid = None
        ensure_running(self)

    return ask_who_forked


def _patch(path: Path) -> None:
    global _socket
    _socket = path
    subprocess.Popen = Popen
    util.spawnv_passfds = _spawn
    popen_fork.Popen.poll = _polling(popen_fork.Popen.poll)
    forkserver.ForkServer.ensure_running = _ensuring(forkserver.ForkServer.ensure_running)


def install() -> None:
    """Let processes that this one starts be forks; the server starts with the first.

    All workers of pytest-xdist share one. It ends with the worker that has started it, and these
    end together.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid4().hex)
    path = Path(gettempdir(), f"tidegate-forks-{run}", "socket")
    started: list[Any] = []

    def start() -> None:
        command = [sys.executable, "-m", __name__, str(path)]
        started.append(_real_popen(command, cwd=ROOT, stdin=subprocess.PIPE))
        until = time.monotonic() + START_S
        while not path.exists():
            if started[0].poll() is not None or time.monotonic() > until:
                raise RuntimeError("the process that forks has not started")
            time.sleep(0.02)

    global ask
    really_ask = ask

    def start_and_ask(*args: Any, **kwargs: Any) -> Forked:
        if not path.exists():
            with _alone_in(path.parent):
                if not path.exists():
                    start()
        return really_ask(*args, **kwargs)

    ask = start_and_ask
    _patch(path)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Make a folder, and keep other processes from being in here for it."""
    folder.mkdir(0o700, exist_ok=True)
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def serve(path: Path) -> None:
    """Fork for each process that is asked for, until standard input ends."""
    for module in IMPORTED:
        import_module(module)
    import_module("tests.support.first_run").execute()
    import_module("patches").disconnect()
    _check_that_no_file_is_open()
    _patch(path)
    gc.collect()
    gc.freeze()  # a fork that looks for garbage would copy all of this
    asked: dict[int, socket.socket] = {}
    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)  # those that it gets are for its forks
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as selector:
        listening.bind(f"{path}.new")
        listening.listen(64)
        Path(f"{path}.new").rename(path)  # who sees it can connect
        for file in (listening, woken, sys.stdin):
            selector.register(file, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                with suppress(BlockingIOError):
                    os.read(woken, 4096)
                _tell_ends(asked)
            if listening in ready:
                connection, _ = listening.accept()
                request, files = _request(connection)
                pid = os.fork()
                if not pid:
                    for other in (connection, *asked.values()):
                        other.close()
                    break
                for file in files:
                    os.close(file)
                asked[pid] = connection
                with suppress(OSError):
                    connection.sendall(_answer(pid))
            if sys.stdin in ready:
                path.unlink()
                path.parent.rmdir()
                return
    with ending():
        _become(request, files)


def _check_that_no_file_is_open() -> None:
    """Refuse to fork where something has left a file open.

    A fork closes the file by its number. Whoever has it there, such as a log handler, closes the
    number again later, and with it whatever the fork has opened since.
    """
    numbers = [number for number in range(3, HIGH) if _is_open(number)]
    if numbers:
        left = ", ".join(os.path.realpath(f"/dev/fd/{number}") for number in numbers)
        raise RuntimeError(f"a fork would close these, and their owner again: {left}")


def _is_open(number: int) -> bool:
    with suppress(OSError):
        os.fstat(number)
        return True
    return False


@contextmanager
def ending() -> Iterator[None]:
    """End the process after what is in here as Python does, but without freeing all its memory.

    That takes longer than most of these processes do, since a fork would copy it before.
    """
    code: object = 0
    try:
        yield
    except SystemExit as error:
        code = error.code
    except BaseException as error:  # noqa: BLE001 -- as the interpreter does
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    # Nothing public waits for the threads and calls what shall be called at the end.
    cast("Any", threading)._shutdown()  # noqa: SLF001 -- see above
    atexit._run_exitfuncs()  # noqa: SLF001 -- see above
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code or 0)


def _request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, files, _, _ = socket.recv_fds(connection, 4, 64)
    with connection.makefile("rb") as stream:
        return json.loads(stream.read(int.from_bytes(head, "big"))), files


def _answer(number: int) -> bytes:
    return str(number).rjust(ANSWER_BYTES).encode()


def _tell_ends(asked: dict[int, socket.socket]) -> None:
    while asked:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        connection = asked.pop(pid)
        with connection, suppress(OSError):
            connection.sendall(_answer(os.waitstatus_to_exitcode(status)))


def _become(request: Mapping[str, Any], files: Sequence[int]) -> None:
    """Be the process that was asked for."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["session"]:
        os.setsid()
    else:
        os.setpgid(0, request["group"])
    # Out of the way of the numbers that they get, while all others close.
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, HIGH) for file in files]
    os.closerange(0, HIGH)
    for file, number in zip(moved, request["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    sys.path[0] = ""
    for folder in reversed(request["env"].get("PYTHONPATH", "").split(os.pathsep)):
        if folder and folder not in sys.path:
            sys.path.insert(1, folder)
    option, *arguments = request["arguments"]
    if option not in ("-c", "-m"):
        sys.argv = [option, *arguments]
        sys.path[0] = os.path.dirname(option)
        runpy.run_path(option, run_name="__main__")
        return
    what, *arguments = arguments
    if option == "-c":
        sys.argv = ["-c", *arguments]
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(what, main.__dict__)  # what `multiprocessing` starts
        return
    sys.argv = [what, *arguments]
    sys.path[0] = request["cwd"]
    sys.modules.pop(what, None)  # it is the main module, as with `python -m`
    runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
