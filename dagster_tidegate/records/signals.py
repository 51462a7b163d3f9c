"""Defers the signals that end a process until the record in flight is finished."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
RESEND_S = 0.05


class SignalGuard:
    """Defers SIGINT and SIGTERM while entered, for up to `grace_s` seconds.

    Dagster's handler raises an error wherever the code is, also in the middle of a call, which
    leaves the record in doubt. Here the signal is only noted: the loop checks for it between
    records. After the grace period the previous handler gets it. Only the main thread receives
    signals; in other threads this does nothing.

    Attributes:
        cut_off: Whether the grace period is over and the previous handler was called.
        handled: Set it once the signal has been acted on; otherwise it is sent again on exit.
        left_early: Set it if nothing can be raised on exit: the loop was left by `break`.
    """

    def __init__(self, grace_s: float, log: logging.Logger) -> None:
        self._grace_s = grace_s
        self._log = log
        self._previous: dict[int, Any] = {}
        self._timer: threading.Timer | None = None
        self._over = False  # the grace period, or the loop
        self.received: signal.Signals | None = None
        self.cut_off = False
        self.handled = False
        self.left_early = False

    def __enter__(self) -> "SignalGuard":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Leave a handler alone that was installed since. If that one restores ours later, as with
        # two interleaved loops, `_note` passes signals on.
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, previous or signal.SIG_DFL)
        pending = None if self.handled or self._over else self.received
        self._over = True
        if pending is None:
            return
        if self.left_early:
            threading.Timer(RESEND_S, self._send).start()
        else:
            self._pass_on(pending, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._over:
            self._pass_on(number, frame)
        elif self.received is None:
            self.received = signal.Signals(number)
            self._timer = threading.Timer(self._grace_s, self._cut_off)
            self._timer.daemon = True
            self._timer.start()

    def _cut_off(self) -> None:
        self._over = self.cut_off = True
        self._log.warning(
            "The record in flight did not finish within %.0f s of the signal; it is cut off and "
            "in doubt",
            self._grace_s,
        )
        self._send()

    def _send(self) -> None:
        main = threading.main_thread().ident
        if main is not None and self.received is not None:
            signal.pthread_kill(main, self.received)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous[number]
        if callable(previous):
            previous(number, frame)
        elif previous != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
