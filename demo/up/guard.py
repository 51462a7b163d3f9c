"""Ends a process group when the process that created it is gone, even after SIGKILL.

Runs as its own process (`python -m demo.up.guard`) and leads the group. Its standard input is a
pipe from the creator, which closes when the creator ends. Process ids are not used: they can be
reused.
"""

import os
import signal
import sys
import time

GRACE_S = 5.0


def main() -> None:
    """Wait for the end of standard input, then end the group: SIGTERM, then SIGKILL."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    os.close(sys.stdout.fileno())  # the creator waits for this: before, SIGTERM would end the guard
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)  # including this process


if __name__ == "__main__":
    main()
