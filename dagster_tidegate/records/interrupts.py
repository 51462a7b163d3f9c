"""Signals that end a process, put off until the record in flight is done."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Puts off SIGINT and SIGTERM while it is entered, within bounds.

    Dagster raises an error wherever the code is when its run is to be cancelled: in the middle of
    a call, too, which leaves the record in doubt. Here the signal is noted, the loop looks at it
    between records, and when that takes too long the former handler has its way. Only the main
    thread has signals; elsewhere nothing is put off.

    Args:
        grace_s: How long it is put off at most, in seconds.
        log: Where it is told.

    Attributes:
        received: The signal that came, or None.
        handled: Set it when the signal has been answered for; else it is sent again at the end.
    """

    def __init__(self, grace_s: float, log: logging.Logger) -> None:
        self._grace_s = grace_s
        self._log = log
        self._former: dict[int, Any] = {}
        self._timer: threading.Timer | None = None
        self._over = False
        self.received: signal.Signals | None = None
        self.handled = False

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._restore()
        if self.received is not None and not self.handled and not self._over:
            signal.raise_signal(self.received)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._over:  # the grace is over
            self._restore()
            signal.raise_signal(number)
        elif self.received is None:
            self.received = signal.Signals(number)
            self._timer = threading.Timer(self._grace_s, self._end)
            self._timer.daemon = True
            self._timer.start()

    def _end(self) -> None:
        self._over = True
        main = threading.main_thread().ident
        if main is not None and self.received is not None:
            self._log.warning(
                "%s came %.0f s ago and the record is not done: it is cut off, and in doubt",
                self.received.name,
                self._grace_s,
            )
            signal.pthread_kill(main, self.received)

    def _restore(self) -> None:
        # Not where somebody else has taken the signal since.
        for number, former in self._former.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, former or signal.SIG_DFL)
        self._former = {}
