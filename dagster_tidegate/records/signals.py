"""Signals that end a process, put off until the record in flight is done."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SOON_S = 0.05


class SignalGuard:
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
        cut_off: Whether it was put off for as long as it can be, and had its way.
        handled: Set it when the signal has been answered for; else it is sent again at the end.
        left_early: Set it where nothing can be raised at the end: the loop was left by `break`.
    """

    def __init__(self, grace_s: float, log: logging.Logger) -> None:
        self._grace_s = grace_s
        self._log = log
        self._former: dict[int, Any] = {}
        self._timer: threading.Timer | None = None
        self._over = False  # the grace, or the loop
        self.received: signal.Signals | None = None
        self.cut_off = False
        self.handled = False
        self.left_early = False

    def __enter__(self) -> "SignalGuard":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Not where somebody else has taken the signal since. Whoever puts this handler back, as
        # one of two loops by turns does, gets the former one.
        for number, former in self._former.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, former or signal.SIG_DFL)
        unanswered = self.received is not None and not self.handled and not self._over
        self._over = True
        if not unanswered or self.received is None:
            return
        if self.left_early:
            threading.Timer(SOON_S, self._send).start()
        else:
            self._pass_on(self.received, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._over:
            self._pass_on(number, frame)
        elif self.received is None:
            self.received = signal.Signals(number)
            self._timer = threading.Timer(self._grace_s, self._end)
            self._timer.daemon = True
            self._timer.start()

    def _end(self) -> None:
        self._over = self.cut_off = True
        self._log.warning(
            "A signal came %.0f s ago and the record is not done: it is cut off, and in doubt",
            self._grace_s,
        )
        self._send()

    def _send(self) -> None:
        main = threading.main_thread().ident
        if main is not None and self.received is not None:
            signal.pthread_kill(main, self.received)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        former = self._former[number]
        if callable(former):
            former(number, frame)
        elif former != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
