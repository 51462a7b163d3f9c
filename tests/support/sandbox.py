"""A sandbox in a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from demo.sandbox.client import SandboxClient


@contextmanager
def sandbox_process(latency_s: float | None = None) -> Iterator[SandboxClient]:
    """Run a sandbox process on a free port."""
    latency = [] if latency_s is None else ["--latency", str(latency_s)]
    process = subprocess.Popen(
        [sys.executable, "-m", "demo", "sandbox", "serve", "--port", "0", *latency],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        with SandboxClient(process.stdout.readline().split()[1]) as control:
            control.wait_until_up()
            yield control
    finally:
        process.terminate()
        process.wait(10)
