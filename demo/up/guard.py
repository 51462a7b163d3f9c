"""Ends a process group when the process that made it is gone, however it went.

Run as a process of its own (`python -m demo.up.guard`), the leader of the group, with
a pipe from that process as standard input. The end of the pipe is the end of that process, also
after a SIGKILL; no process id is looked at, which could have been given to somebody else.
"""

import os
import signal
import sys
import time

GRACE_S = 5.0


def main() -> None:
    """Wait for the end of standard input, then end the group: SIGTERM, and soon SIGKILL."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)  # itself included


if __name__ == "__main__":
    main()
