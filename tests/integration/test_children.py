"""Real processes: what ends when their parent does."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from demo.up.children import ChildDiedError, Children, NotReadyError
from tests.support.polling import wait_until

# A child that has a child, as a code server has run workers; both stay when asked to end.
STUBBORN = textwrap.dedent("""
    import signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"
    subprocess.Popen([sys.executable, "-c", ignoring])
    time.sleep(99)
""")
PARENT = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from demo.up.children import Children
    with Children(Path(sys.argv[1])) as children:
        children.start("stubborn", [sys.executable, "-c", sys.argv[2]])
        time.sleep(99)
""")


def family_of(process: psutil.Process, size: int) -> list[psutil.Process]:
    wait_until(lambda: len(process.children(recursive=True)) >= size)
    return process.children(recursive=True)


def test_children_that_ignore_sigterm_and_theirs_end_when_the_parent_is_killed(tmp_path: Path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), STUBBORN])
    family = family_of(psutil.Process(parent.pid), 3)
    parent.kill()
    parent.wait()
    left = psutil.wait_procs(family, timeout=60)[1]
    for process in left:
        process.kill()
    assert left == []


def test_stop_ends_children_that_ignore_sigterm_and_theirs(tmp_path: Path):
    with Children(tmp_path) as children:
        child = children.start("stubborn", [sys.executable, "-c", STUBBORN])
        grandchildren = family_of(psutil.Process(child.process.pid), 1)
        children.stop(grace_s=0.2)
    assert child.process.returncode == -signal.SIGKILL
    assert psutil.wait_procs(grandchildren, timeout=60)[1] == []


def test_the_guard_of_a_group_that_has_just_begun_survives_sigterm(tmp_path: Path):
    with Children(tmp_path) as children:
        child = children.start("sleeper", [sys.executable, "-c", "import time; time.sleep(99)"])
        guard = psutil.Process(os.getpgid(child.process.pid))
        guard.terminate()
        with pytest.raises(psutil.TimeoutExpired):
            guard.wait(0.5)


def test_a_child_that_ends_is_told_of_with_its_last_lines(tmp_path: Path):
    with Children(tmp_path) as children:
        children.start("talker", [sys.executable, "-c", "print('out of paper'); exit(3)"])
        with pytest.raises(ChildDiedError, match=r"(?s)talker ended with code 3.*out of paper"):
            children.wait_until(lambda: False, timeout_s=60, waiting_for="talker")


def test_waiting_has_an_end(tmp_path: Path):
    with Children(tmp_path) as children:
        children.start("sleeper", [sys.executable, "-c", "import time; time.sleep(99)"])
        with pytest.raises(NotReadyError, match="sleeper was not ready"):
            children.wait_until(lambda: False, timeout_s=0.2, waiting_for="sleeper")


def test_the_former_log_is_kept_beside_the_new_one(tmp_path: Path):
    for word in ("first", "second"):
        with Children(tmp_path) as children:
            child = children.start("talker", [sys.executable, "-c", f"print('{word}')"])
            child.process.wait()
    assert (tmp_path / "talker.log.1").read_text() == "first\n"
    assert (tmp_path / "talker.log").read_text() == "second\n"


def test_a_child_started_again_writes_its_log_on(tmp_path: Path):
    with Children(tmp_path) as children:
        for word in ("first", "second"):
            child = children.start("talker", [sys.executable, "-c", f"print('{word}')"])
            child.process.wait()
    assert child.log.read_text() == "first\nsecond\n"
